"""`python -m benchmarks.accelerator`: how fast an accelerator trains (JAX).

What to know before a day of training: whether whole epochs in one dispatch pay, what bfloat16 and
larger batches bring, whether several processes share the chip well, how long it compiles, and how
far from the chip's ceilings all that is. Three ways to train:

- *fit*: batches made and augmented on the host, `model.fit`;
- *step*: the same training step, one dispatch each, on a batch that stays on the device;
- *epoch*: `mf_zoo.training.on_device`, an epoch in one dispatch, augmentation included.

Every measurement runs in processes of its own, so that compilation is cold, memory free, and a
failure costs one line of the table. They share a fresh compilation cache: a program that was
compiled before, as by the several processes at a time, shows what the cache saves.

Ceilings are measured first, in the same call: a product of large matrices in bfloat16 and in
float32, and reading and writing a large array. A training step counts 3 times the multiply-adds of
the forward pass, 2 operations each; its bytes are those that XLA counts after fusion.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness

WORKER = [sys.executable, "-m", "benchmarks.accelerator", "--worker"]
# Forward, gradient of the inputs, gradient of the weights; a multiplication and an addition.
OPERATIONS_PER_MULTIPLY_ADD = 3 * 2


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """What the chip can do at best.

    Attributes:
        bfloat16, float32: Operations a second of a matrix product.
        copy: Bytes a second, read and written.
    """

    bfloat16: float
    float32: float
    copy: float


@dataclasses.dataclass(frozen=True)
class Throughput:
    """How fast one setting trains: a row of the table and of the CSV file.

    Attributes:
        model: Name of the network.
        policy: Dtype policy.
        batch: Images in a batch.
        mode: `"fit"`, `"step"` or `"epoch"`.
        processes: So many at a time.
        compile_seconds: What the first epoch or step took longer, tracing included; of the
            slowest process.
        images_per_second: Of all processes together.
        operations_per_second: Of convolutions and dense layers.
        matmul_fraction: The same as a fraction of the bfloat16 ceiling.
        bytes_per_second: Bytes that the steps read and write, by XLA's count.
        copy_fraction: The same as a fraction of the ceiling.
    """

    model: str
    policy: str
    batch: int
    mode: str
    processes: int
    compile_seconds: float
    images_per_second: float
    operations_per_second: float
    matmul_fraction: float
    bytes_per_second: float
    copy_fraction: float


# --- In a process of its own -----------------------------------------------------------------


def measure_ceilings() -> dict[str, Any]:
    """Measures the ceilings and says what they are of."""
    import jax
    import jax.numpy as jnp

    from mf_zoo.devices import accelerator

    n, size, repeats = (8192, 2**28, 10) if accelerator() else (512, 2**23, 3)

    def seconds(function: Callable[..., Any], *arguments: Any) -> float:
        function = jax.jit(function)
        jax.block_until_ready(function(*arguments))
        return min(
            harness.timed_once(lambda: jax.block_until_ready(function(*arguments)))[0]
            for _ in range(5)
        )

    def products(a: Any, b: Any) -> Any:
        return jax.lax.fori_loop(0, repeats, lambda _, x: x @ b, a)

    def copies(x: Any) -> Any:
        return jax.lax.fori_loop(0, repeats, lambda _, x: x + 1, x)

    found = {}
    for dtype in ("bfloat16", "float32"):
        # Scaled so that products stay of the same size.
        a, b = jax.random.normal(jax.random.key(0), (2, n, n), dtype) / n**0.5
        found[dtype] = 2 * n**3 * repeats / seconds(products, a, b)
    found["copy"] = 2 * 4 * size * repeats / seconds(copies, jnp.zeros(size, "float32"))
    return {"ceilings": found, "circumstances": harness.circumstances(0, None)}


def measure(job: Mapping[str, Any], wait: Callable[[], Any] = lambda: None) -> dict[str, Any]:
    """Trains one network and takes the time.

    Args:
        job: `model`, `policy`, `batch`; `modes` to measure; `images` of an epoch; `epochs` to
            take the median of, after a first one that compiles.
        wait: Called before the timing of each mode, when all is compiled.

    Returns:
        `multiply_adds` and `bytes` for an image (the latter if `"step"` is among the modes), and
        for each mode `compile_seconds`, `images_per_second`, `steps`.
    """
    import keras

    from mf_zoo import applications
    from mf_zoo.optimizers import MeanFieldSGD

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(job["policy"])
    try:
        model = applications.get(job["model"])(classifier_activation=None)
    finally:
        keras.config.set_dtype_policy("float32")
    optimizer = MeanFieldSGD(0.01, momentum=0.9, nesterov=True)
    harness.compile_model(model, optimizer)
    optimizer.build(model.trainable_variables)
    found: dict[str, Any] = {"multiply_adds": applications.multiply_adds(model), "modes": {}}
    for mode in job["modes"]:
        if mode == "step":
            found["bytes"], times, images = _steps(model, job, wait)
        else:
            times, images = _fit(model, job, wait, on_device=mode == "epoch")
        first, *rest = times
        typical = statistics.median(rest)
        found["modes"][mode] = {
            "compile_seconds": max(first - typical, 0.0),
            "images_per_second": images / typical,
            "steps": int(optimizer.iterations.numpy()),
        }
    return found


def _fit(model, job, wait, on_device) -> tuple[list[float], int]:
    """Seconds of each epoch of `fit`, and the images in one."""
    import keras

    from mf_zoo import data
    from mf_zoo.training.on_device import train_on_device

    images, labels = harness.images_and_labels(job["images"])
    batches = data.Batches(
        images,
        labels,
        job["batch"],
        shuffle=True,
        augment=data.Augmentation(padding=4, flip=True),
        drop_remainder=True,
    )
    times: list[float] = []

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            batches.epoch = epoch
            if epoch == 1:
                wait()
            self.begin = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            keras.ops.convert_to_numpy(model.trainable_variables[0])  # waits for the device
            times.append(time.perf_counter() - self.begin)

    model.train_function = None
    training_data: Any = batches
    if on_device:
        model.evaluate(images[: job["batch"]], labels[: job["batch"]], verbose=0)
        training_data = train_on_device(model, batches)
    model.fit(
        training_data, epochs=1 + job["epochs"], shuffle=False, verbose=0, callbacks=[Clock()]
    )
    return times, len(batches) * job["batch"]


def _steps(model, job, wait) -> tuple[float, list[float], int]:
    """Bytes for an image, seconds of compiling and of each epoch of steps, images in an epoch."""
    import jax

    images, labels = jax.device_put(harness.images_and_labels(job["batch"]))
    model.evaluate(images, labels, batch_size=job["batch"], verbose=0)  # builds the metrics
    variables = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    state = tuple([variable.value for variable in part] for part in variables)
    step = jax.jit(model.train_step, donate_argnums=0)
    compiling, step = harness.timed_once(lambda: step.lower(state, (images, labels)).compile())
    cost = step.cost_analysis() or {}
    cost = cost[0] if isinstance(cost, list) else cost
    count = max(1, job["images"] // job["batch"])
    times = []
    for epoch in range(1 + job["epochs"]):
        if epoch == 1:
            wait()
        begin = time.perf_counter()
        for _ in range(count):
            _, state = step(state, (images, labels))
        jax.block_until_ready(state)
        times.append(time.perf_counter() - begin)
    for part, values in zip(variables, state, strict=True):
        for variable, value in zip(part, values, strict=True):
            variable.assign(value)
    times[0] += compiling
    return cost.get("bytes accessed", 0.0) / job["batch"], times, count * job["batch"]


def worker(text: str) -> None:
    """Does one job; says `ready` and waits for a line before each timing, then the result."""

    def wait() -> None:
        print("ready", flush=True)
        sys.stdin.readline()

    job = json.loads(text)
    result = measure(job, wait) if job else measure_ceilings()
    print(json.dumps(result), flush=True)


# --- Putting it together ---------------------------------------------------------------------


def run_job(job: Mapping[str, Any], processes: int, deadline: float) -> list[dict[str, Any]]:
    """Runs a job in several processes that are timed at the same time.

    Args:
        job: As for `measure`; an empty one is for the ceilings.
        processes: So many.
        deadline: When they are killed, on the clock `time.monotonic`.

    Returns:
        The result of each.

    Raises:
        RuntimeError: If one failed or took too long.
    """
    command = [*WORKER, json.dumps(job)]
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(tempfile.TemporaryFile("w+"))
        started = [
            stack.enter_context(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
                )
            )
            for _ in range(processes)
        ]
        timer = threading.Timer(
            max(0.0, deadline - time.monotonic()), lambda: [child.kill() for child in started]
        )
        stack.callback(lambda: [child.kill() for child in started])
        stack.callback(timer.cancel)
        timer.start()
        for _ in job.get("modes", ()):
            # All have compiled before any is timed.
            if [child.stdout.readline() for child in started] != ["ready\n"] * processes:
                break
            for child in started:
                print("go", file=child.stdin, flush=True)
        lines = [child.stdout.readline() for child in started]
        try:
            return [json.loads(line) for line in lines]
        except json.JSONDecodeError as error:
            errors.seek(0)
            said = [line for line in errors.read().splitlines() if line.strip()]
            late = time.monotonic() >= deadline
            reason = "out of time" if late else said[-1] if said else "it said nothing"
            raise RuntimeError(f"{reason}. Received: {dict(job)}") from error


def throughputs(
    job: Mapping[str, Any], results: Sequence[Mapping[str, Any]], bytes_: float, ceilings: Ceilings
) -> Iterator[Throughput]:
    """The rows of a job from what its processes measured.

    Args:
        job: As for `measure`.
        results: What `measure` returned in each process.
        bytes_: Bytes for an image.
        ceilings: What to compare with.
    """
    for mode in job["modes"]:
        rate = sum(result["modes"][mode]["images_per_second"] for result in results)
        operations = rate * results[0]["multiply_adds"] * OPERATIONS_PER_MULTIPLY_ADD
        yield Throughput(
            model=job["model"],
            policy=job["policy"],
            batch=job["batch"],
            mode=mode,
            processes=len(results),
            compile_seconds=max(result["modes"][mode]["compile_seconds"] for result in results),
            images_per_second=rate,
            operations_per_second=operations,
            matmul_fraction=operations / ceilings.bfloat16,
            bytes_per_second=rate * bytes_,
            copy_fraction=rate * bytes_ / ceilings.copy,
        )


def plan(options: argparse.Namespace) -> list[tuple[dict[str, Any], int]]:
    """The jobs with their numbers of processes, what matters most first.

    From the first model, policy and batch one thing is changed at a time; the other models are
    measured under every policy.
    """
    model, policy, batch = options.models[0], options.policies[0], options.batches[0]
    wanted = [(model, policy, batch, ("step", "epoch", "fit"), 1)]
    wanted += [(model, other, batch, ("step", "epoch"), 1) for other in options.policies[1:]]
    wanted += [(other, policy, batch, ("step", "epoch"), 1) for other in options.models[1:]]
    wanted += [
        (model, policy, batch, ("epoch",), count) for count in options.processes if count > 1
    ]
    wanted += [(model, policy, other, ("step", "epoch"), 1) for other in options.batches[1:]]
    wanted += [
        (other, another, batch, ("step", "epoch"), 1)
        for other in options.models[1:]
        for another in options.policies[1:]
    ]
    same = {"images": options.images, "epochs": options.epochs}
    return [
        (dict(zip(("model", "policy", "batch", "modes"), values, strict=True)) | same, count)
        for *values, count in wanted
    ]


def table(rows: Sequence[Throughput]) -> str:
    """The rows as a text table."""
    lines = [("model", "policy", "batch", "mode", "processes", "compile s", "images/s")]
    lines[0] += ("matmul", "copy")
    for row in rows:
        numbers = (f"{row.compile_seconds:.1f}", f"{row.images_per_second:.0f}")
        numbers += (f"{100 * row.matmul_fraction:.2g} %", f"{100 * row.copy_fraction:.2g} %")
        lines.append(
            (row.model, row.policy, str(row.batch), row.mode, str(row.processes), *numbers)
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="How fast an accelerator trains (JAX).")
    parser.add_argument("--models", nargs="+", default=["MFResNet20", "MFResNet56"])
    parser.add_argument(
        "--policies",
        nargs="+",
        default=["mixed_bfloat16", "float32"],
        choices=["float32", "mixed_bfloat16", "mixed_float16", "bfloat16"],
    )
    parser.add_argument("--batches", type=harness.positive, nargs="+", default=[128, 512, 1024])
    parser.add_argument("--processes", type=harness.positive, nargs="+", default=[1, 2, 4])
    parser.add_argument("--images", type=harness.positive, default=25600, help="in an epoch")
    parser.add_argument("--epochs", type=harness.positive, default=3, help="timed, of each setting")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after so long")
    parser.add_argument("--output", type=Path, help="CSV file to write")
    parser.add_argument("--worker", metavar="JOB", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker is not None:
        worker(options.worker)
        return 0

    os.environ.setdefault("KERAS_BACKEND", "jax")
    if os.environ["KERAS_BACKEND"] != "jax":
        raise SystemExit(
            "This benchmark needs the JAX backend. "
            f"Received: KERAS_BACKEND={os.environ['KERAS_BACKEND']}"
        )
    # Several processes share the memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    deadline = time.monotonic() + 60 * options.minutes
    rows: list[Throughput] = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
        _say("ceilings")
        (first,) = run_job({}, 1, deadline)
        ceilings = Ceilings(**first["ceilings"])
        shared = {k: v for k, v in first["circumstances"].items() if k != "batch"}
        shared |= {f"ceiling_{name}": f"{value:.4g}" for name, value in first["ceilings"].items()}
        output = options.output or harness.RESULTS / f"accelerator-{shared['backend']}.csv"
        print(", ".join(f"{name} {value}" for name, value in shared.items()), flush=True)
        bytes_: dict[tuple[Any, ...], float] = {}
        failed = 0
        for job, processes in plan(options):
            if time.monotonic() >= deadline:
                _say(f"left out: {job}, {processes} at a time")
                continue
            _say(f"{job['model']}, {job['policy']}, batch {job['batch']}, {processes} at a time")
            try:
                results = run_job(job, processes, deadline)
            except RuntimeError as error:
                late = time.monotonic() >= deadline
                _say(f"{'left out' if late else 'failed'}: {error}")
                failed += not late
                continue
            key = (job["model"], job["policy"], job["batch"])
            bytes_[key] = results[0].get("bytes", bytes_.get(key, 0.0))
            rows += throughputs(job, results, bytes_[key], ceilings)
            # After each: whoever is cut off keeps what there is.
            harness.write_csv(output, rows, shared)
    print(table(rows))
    if rows:
        print(f"written to {output}")
    return 1 if failed else 0


def _say(text: str) -> None:
    print(f"... {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
