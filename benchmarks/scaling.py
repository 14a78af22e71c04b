"""`python -m benchmarks.scaling`: a training step at ImageNet's size, and many devices.

Measures on one device, whatever backend is active, a training step of each network on images of 224
pixels a side (real CIFAR-10 images, enlarged) with 1000 classes, in turns with a product of large
matrices and a wide convolution; and between processes of this machine how long adding up
gradients takes, for several numbers of bytes. A training step counts 3 times the multiply-adds of
the forward pass, 2 operations each.

`--estimate` works out from such figures what 1, 8 and 64 devices would do: see `estimate`. The
tables of `docs/imagenet.md` are made of the committed results and of the assumptions below.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.accelerator import OPERATIONS_PER_MULTIPLY_ADD

WORKER = [sys.executable, "-m", "benchmarks.scaling", "--worker"]
MODELS = ("MFResNet20", "MFResNet56", "MFResNeXt29_32x4d")
DEVICES = (1, 8, 64)
IMAGES, CLASSES, EPOCHS = 1_281_167, 1000, 90  # of ImageNet; epochs of Goyal et al., 2017
# All-reduces of these many bytes: from a layer's statistics to ResNeXt's gradients and beyond.
SIZES = (256, 4096, 65536, 2**20, 2**22, 2**24, 2**26)


@dataclass(frozen=True)
class Step:
    """How fast one device trains a network: a row of the table and of the CSV file.

    Attributes:
        model: Name of the network.
        policy: Dtype policy.
        input_size: Pixels a side.
        parameters: Trained numbers; a gradient has as many, in float32.
        multiply_adds: For one image.
        activation_bytes: Kept for the backward pass, for one image.
        normalizations, channels: BatchNormalization layers, and their channels together.
        seconds: Of a step, the median.
        images_per_second: Batch over seconds.
        operations_per_second: Of convolutions and dense layers.
        matmul_operations, convolution_operations: Operations a second of the ceilings, the median.
        matmul_fraction, convolution_fraction: What the step reaches of each, the median of the
            rounds' fractions.
    """

    model: str
    policy: str
    input_size: int
    parameters: int
    multiply_adds: int
    activation_bytes: int
    normalizations: int
    channels: int
    seconds: float
    images_per_second: float
    operations_per_second: float
    matmul_operations: float
    matmul_fraction: float
    convolution_operations: float
    convolution_fraction: float


@dataclass(frozen=True)
class AllReduce:
    """How long adding up numbers of several processes takes: a row of the CSV file.

    Attributes:
        library: What did it.
        processes: Number of processes.
        bytes: Of each process.
        seconds: The median.
    """

    library: str
    processes: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """What a number of devices would do.

    Attributes:
        devices: Number of devices.
        batch: Images of a step, on all devices together.
        compute_seconds: Of a step, on one of them.
        gradient_seconds: Of averaging gradients, as far as nothing hides it.
        statistics_seconds: Of averaging the statistics of BatchNormalization.
        efficiency: Images a second over those of as many devices that need not talk.
    """

    devices: int
    batch: int
    compute_seconds: float
    gradient_seconds: float
    statistics_seconds: float

    @property
    def seconds(self) -> float:
        """Seconds of a step."""
        return self.compute_seconds + self.gradient_seconds + self.statistics_seconds

    @property
    def images_per_second(self) -> float:
        """Of all devices together."""
        return self.batch / self.seconds

    @property
    def efficiency(self) -> float:
        """Images a second, over those of as many devices that need not talk."""
        return self.compute_seconds / self.seconds

    def epoch_seconds(self, images: int = IMAGES) -> float:
        """Seconds of an epoch; the last batch takes as long as a full one."""
        return math.ceil(images / self.batch) * self.seconds


def all_reduce_seconds(bytes_: float, devices: int, bandwidth: float, latency: float) -> float:
    """Seconds for adding up so many bytes of each device, the sum being on all of them.

    By recursive halving and doubling, `2 log2(p)` messages one after the other, which carry
    `2 (p - 1) / p` of the bytes; additions are taken to cost nothing.

    Args:
        bytes_: Bytes on each device.
        devices: Their number `p`.
        bandwidth: Bytes a second that a device sends, while it receives as many.
        latency: Seconds of an empty message.

    Source: Thakur, Rabenseifner, Gropp, *Optimization of Collective Communication Operations in
    MPICH*, IJHPCA 2005, section 4.5.
    """
    messages = 2 * math.ceil(math.log2(devices))
    return messages * latency + 2 * (devices - 1) / devices * bytes_ / bandwidth


def estimate(
    images_per_second: float,
    devices: int,
    *,
    batch: int,
    parameters: int,
    bandwidth: float,
    latency: float,
    normalizations: int = 0,
    channels: int = 0,
    overlap: float = 0.0,
) -> Estimate:
    """Works out a training step on several devices that share a batch.

    `t(p) = compute + gradients + statistics`, where

    - `compute = batch / p / images_per_second`: a device is as fast as when it was measured, which
      is true of batches that are no smaller;
    - `gradients`: one all-reduce of 4 bytes for each parameter, less what is hidden behind the
      backward pass, which is two thirds of `compute`: `max(0, all_reduce - overlap * backward)`;
    - `statistics`: BatchNormalization over the whole batch needs two all-reduces a layer and step,
      forward (two sums for each channel) and backward (two more), each of 8 bytes a channel. What
      follows has to wait for them, so nothing hides them. Without normalizations, each device is
      normalised by its own part of the batch.

    Args:
        images_per_second: Of one device, measured.
        devices: Number `p` of devices.
        batch: Images of a step, on all devices together.
        parameters: Trained parameters.
        bandwidth, latency: Those of `all_reduce_seconds`.
        normalizations, channels: BatchNormalization layers that take the statistics of the whole
            batch, and their channels together.
        overlap: Which part of the backward pass can hide the averaging of gradients, from 0 to 1.

    Raises:
        ValueError: For numbers out of range.
    """
    positive = (images_per_second, devices, batch, parameters, bandwidth)
    if min(positive) <= 0 or min(latency, normalizations, channels) < 0 or not 0 <= overlap <= 1:
        raise ValueError(
            "Rates, counts and the bandwidth must be positive, the latency at least 0, and "
            f"`overlap` from 0 to 1. Received: images_per_second={images_per_second}, "
            f"devices={devices}, batch={batch}, parameters={parameters}, bandwidth={bandwidth}, "
            f"latency={latency}, normalizations={normalizations}, channels={channels}, "
            f"overlap={overlap}"
        )
    if batch % devices:
        raise ValueError(
            "`batch` must be divisible by the number of devices. "
            f"Received: batch={batch}, devices={devices}"
        )
    compute = batch / devices / images_per_second
    gradients = all_reduce_seconds(4 * parameters, devices, bandwidth, latency)
    # An all-reduce is linear in its bytes: those of all layers together, and the latency of each.
    waits = 2 * normalizations * all_reduce_seconds(0, devices, bandwidth, latency)
    return Estimate(
        devices=devices,
        batch=batch,
        compute_seconds=compute,
        gradient_seconds=max(0.0, gradients - overlap * 2 / 3 * compute),
        statistics_seconds=waits + all_reduce_seconds(2 * 8 * channels, devices, bandwidth, 0),
    )


# --- Measuring -------------------------------------------------------------------------------


def figures(network: Any) -> dict[str, int]:
    """What is known of a network without measuring: fields of `Step`."""
    import keras

    from mf_zoo import applications
    from mf_zoo.layers import MeanFieldStage
    from mf_zoo.layers.residual_function import ResidualFunction
    from mf_zoo.training.dry_run import activation_bytes

    widths: list[int] = []

    def count(layer: Any, times: int = 1) -> None:
        if isinstance(layer, MeanFieldStage):
            count(layer.pattern(), layer.num_particles)
        elif isinstance(layer, ResidualFunction):
            for part in layer.chain():
                count(part, times)
        elif isinstance(layer, keras.layers.BatchNormalization):
            widths.extend([layer.gamma.shape[0]] * times)

    for layer in network.layers:
        count(layer)
    return {
        "parameters": sum(math.prod(weight.shape) for weight in network.trainable_weights),
        "multiply_adds": applications.multiply_adds(network),
        "activation_bytes": activation_bytes(network),
        "normalizations": len(widths),
        "channels": sum(widths),
    }


def build(model: str, input_size: int, policy: str) -> Any:
    """The network for images of ImageNet, ending in logits."""
    from mf_zoo import applications
    from mf_zoo.training.assembly import dtype_policy

    with dtype_policy(policy):
        return applications.get(model)(
            input_shape=(input_size, input_size, 3), classes=CLASSES, classifier_activation=None
        )


def ceilings(policy: str) -> dict[str, tuple[Callable[[], Any], float]]:
    """What a device does at best: a product of large matrices, and a wide 3x3 convolution.

    Args:
        policy: Dtype policy, in whose compute dtype they are.

    Returns:
        By name a function that does it and waits, and the number of its operations.
    """
    import keras
    from keras import ops

    from mf_zoo.devices import accelerator

    n, batch = (8192, 256) if accelerator() else (1024, 2)
    repeats = 10
    side = width = 128 if accelerator() else 64
    dtype = keras.dtype_policies.get(policy).compute_dtype

    def normal(*shape: int) -> Any:
        return ops.cast(keras.random.normal(shape, seed=0), dtype)

    a, b = normal(n, n), normal(n, n)
    images, kernel = normal(batch, side, side, width), normal(3, 3, width, width)

    def repeated(function: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> None:
            for _ in range(repeats):
                result = function()
            ops.convert_to_numpy(result[(0,) * len(result.shape)])  # waits for the device

        return run

    matmul = repeated(lambda: ops.matmul(a, b))
    convolution = repeated(lambda: ops.conv(images, kernel, padding="same"))
    return {
        "matmul": (matmul, 2 * repeats * n**3),
        "convolution": (convolution, 2 * repeats * batch * side**2 * 9 * width**2),
    }


def measure(model: str, policy: str, input_size: int, batch: int, rounds: int, steps: int) -> Step:
    """Measures the training step of one network, in turns with the ceilings."""
    from mf_zoo.optimizers import MeanFieldSGD

    network = build(model, input_size, policy)
    harness.compile_model(network, MeanFieldSGD(0.1, momentum=0.9, weight_decay=1e-4))
    images, labels = harness.images_and_labels(batch, input_size)
    found = figures(network)
    work = {"step": OPERATIONS_PER_MULTIPLY_ADD * found["multiply_adds"] * batch}
    sides = {"step": lambda: network.train_on_batch(images, labels)}
    for name, (function, operations) in ceilings(policy).items():
        sides[name], work[name] = function, operations
    harness.interleave(sides, 1, 1)  # compiles
    seconds = harness.interleave(sides, rounds, steps)
    rates = {name: [work[name] / value for value in seconds[name]] for name in sides}
    step = statistics.median(seconds["step"])
    return Step(
        model=model,
        policy=policy,
        input_size=input_size,
        **found,
        seconds=step,
        images_per_second=batch / step,
        operations_per_second=work["step"] / step,
        matmul_operations=statistics.median(rates["matmul"]),
        matmul_fraction=harness.ratio(rates["step"], rates["matmul"]).median,
        convolution_operations=statistics.median(rates["convolution"]),
        convolution_fraction=harness.ratio(rates["step"], rates["convolution"]).median,
    )


def worker(argument: str) -> None:
    """One of the processes that add up: the first prints seconds by number of bytes."""
    import torch
    import torch.distributed as group

    job = json.loads(argument)
    rank, processes = job["rank"], job["processes"]
    several = torch.cuda.device_count() >= processes
    device = torch.device("cuda", rank) if several else torch.device("cpu")
    library = "nccl" if several else "gloo"
    rendezvous = Path(job["folder"], "rendezvous").as_uri()
    group.init_process_group(library, init_method=rendezvous, rank=rank, world_size=processes)
    found = []
    for size in job["sizes"]:
        values = torch.full((size // 4,), float(rank + 1), device=device)
        group.all_reduce(values)
        expected = processes * (processes + 1) / 2
        if values.min().item() != expected or values.max().item() != expected:
            raise RuntimeError(f"The sum must be {expected}. Received: {values}")
        values.zero_()
        taken = []
        for _ in range(job["repeats"]):
            group.barrier()
            start = time.perf_counter()
            group.all_reduce(values)
            values[0].item()  # waits for the device
            taken.append(time.perf_counter() - start)
        found.append(statistics.median(taken))
    if rank == 0:
        print(json.dumps({"library": library, "seconds": found}))
    group.destroy_process_group()


def measure_all_reduce(
    processes: int, sizes: Sequence[int] = SIZES, repeats: int = 20
) -> list[AllReduce]:
    """Measures adding up between processes of this machine: by NCCL if each has a GPU, else gloo.

    Raises:
        RuntimeError: If a process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = {"processes": processes, "sizes": sizes, "repeats": repeats, "folder": folder}
        started = [
            subprocess.Popen(
                [*WORKER, json.dumps({**job, "rank": rank})],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(processes)
        ]
        try:
            outputs = [process.communicate(timeout=600) for process in started]
        finally:
            for process in started:
                process.kill()
    for process, (_, errors) in zip(started, outputs, strict=True):
        if process.returncode:
            raise RuntimeError(f"{errors.strip().splitlines()[-1:]}. Received: {job}")
    found = json.loads(outputs[0][0].splitlines()[-1])
    return [
        AllReduce(found["library"], processes, size, seconds)
        for size, seconds in zip(sizes, found["seconds"], strict=True)
    ]


def link(rows: Sequence[AllReduce]) -> tuple[float, float]:
    """Bandwidth in bytes a second and latency in seconds that `all_reduce_seconds` has to be given.

    From the smallest and the largest of the measurements, which it then meets.
    """
    small, large = (function(rows, key=lambda row: row.bytes) for function in (min, max))
    p = small.processes
    bandwidth = 2 * (p - 1) / p * (large.bytes - small.bytes) / (large.seconds - small.seconds)
    without_latency = all_reduce_seconds(small.bytes, p, bandwidth, 0)
    return bandwidth, (small.seconds - without_latency) / (2 * math.ceil(math.log2(p)))


# --- Tables ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Assumption:
    """Accelerators of which nothing was measured here.

    Attributes:
        name: What they are.
        peak: Operations a second of the data sheet.
        fractions: Which parts of it a training step is taken to reach.
        memory: Bytes of each.
        batch: Images on each device, at most.
        links: By number of devices, bandwidth in bytes a second and latency in seconds.
    """

    name: str
    peak: float
    fractions: tuple[float, ...]
    memory: float
    batch: int
    links: dict[int, tuple[float, float]]

    def batch_of(self, activation_bytes: float) -> int:
        """Images on each device, halved until what they keep leaves a quarter of the memory."""
        batch = self.batch
        while batch > 1 and batch * activation_bytes > 3 / 4 * self.memory:
            batch //= 2
        return batch


# NVIDIA's data sheets of H100 SXM (dense bfloat16; NVLink, 900 GB/s both ways together) and of DGX
# H100 (one adapter of 400 Gbit/s for each GPU). Fractions and latencies are guesses.
H100 = Assumption(
    name="H100 SXM",
    peak=989e12,
    fractions=(0.02, 0.1),
    memory=80e9,
    batch=128,
    links={1: (450e9, 0.0), 8: (450e9, 10e-6), 64: (50e9, 20e-6)},
)
# The training images of ImageNet are an archive of 138 GiB.
BYTES_OF_IMAGE = 138 * 2**30 / IMAGES

_HEAD = ("devices", "batch", "step, ms", "gradients, ms", "statistics, ms", "images/s")
_HEAD += ("efficiency, %", "epochs/h", f"h for {EPOCHS} epochs")


def number(value: float) -> str:
    """Three digits, or all those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def cells(found: Estimate, images: int = IMAGES) -> list[str]:
    """An estimate as cells of a table."""
    seconds = (found.seconds, found.gradient_seconds, found.statistics_seconds)
    epoch = found.epoch_seconds(images)
    return [
        str(found.devices),
        f"{found.batch:,}",
        *(number(1000 * value) for value in seconds),
        number(found.images_per_second),
        f"{100 * found.efficiency:.1f}",
        number(3600 / epoch),
        number(EPOCHS * epoch / 3600),
    ]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def step_table(results: Path = harness.RESULTS) -> str:
    """The committed training steps as a Markdown table.

    Args:
        results: Folder of the `scaling-*.csv`.
    """
    head = ("model", "parameters", "multiply-adds", "activations, MB", "batch", "step, s")
    head += ("images/s", "G operations/s", "of matmul, %", "of convolution, %")
    rows, notes = [], []
    for path in sorted(results.glob("scaling-*.csv")):
        lines = harness.read_csv(path)
        for row in lines:
            rows.append(
                [
                    f"`{row['model']}`",
                    f"{int(row['parameters']):,}",
                    f"{int(row['multiply_adds']):,}",
                    number(int(row["activation_bytes"]) / 1e6),
                    row["batch"],
                    number(float(row["seconds"])),
                    number(float(row["images_per_second"])),
                    number(float(row["operations_per_second"]) / 1e9),
                    number(100 * float(row["matmul_fraction"])),
                    number(100 * float(row["convolution_fraction"])),
                ]
            )
        note = "- {backend}: {policy}, {input_size} pixels a side, {machine}; {date}; {versions}."
        notes.append(note.format(**lines[0]))
    return "\n".join([markdown(head, rows), "", *notes])


def all_reduces(results: Path = harness.RESULTS) -> tuple[list[AllReduce], dict[str, str]]:
    """The committed all-reduces, and what was the same for all of them."""
    lines = harness.read_csv(results / "all_reduce-gloo.csv")
    rows = [
        AllReduce(row["library"], int(row["processes"]), int(row["bytes"]), float(row["seconds"]))
        for row in lines
    ]
    return rows, lines[0]


def all_reduce_table(results: Path = harness.RESULTS) -> str:
    """The committed all-reduces as a Markdown table, with what `link` makes of them.

    Args:
        results: Folder of `all_reduce-gloo.csv`.
    """
    rows, shared = all_reduces(results)
    bandwidth, latency = link(rows)
    processes = rows[0].processes
    lines = [
        [
            f"{row.bytes:,}",
            number(1000 * row.seconds),
            number(1000 * all_reduce_seconds(row.bytes, processes, bandwidth, latency)),
        ]
        for row in rows
    ]
    return "\n".join(
        [
            markdown(("bytes", "measured, ms", "by the model, ms"), lines),
            "",
            f"- {rows[0].library}, {processes} processes, {shared['machine']}; {shared['date']}; "
            f"{shared['versions']}.",
            f"- The model's bandwidth is {number(bandwidth / 1e9)} GB/s, its latency "
            f"{number(1e6 * latency)} µs.",
        ]
    )


def _network_of(row: dict[str, str]) -> dict[str, int]:
    """What `estimate` wants to know of the network of a committed step."""
    return {key: int(row[key]) for key in ("parameters", "normalizations", "channels")}


def example_table(results: Path = harness.RESULTS) -> str:
    """Estimates from what was measured here alone, as a Markdown table.

    Args:
        results: Folder of the committed results.
    """
    bandwidth, latency = link(all_reduces(results)[0])
    rows = [
        [
            f"`{row['model']}`",
            *cells(
                estimate(
                    float(row["images_per_second"]),
                    devices,
                    batch=devices * int(row["batch"]),
                    bandwidth=bandwidth,
                    latency=latency,
                    **_network_of(row),
                )
            ),
        ]
        for path in sorted(results.glob("scaling-*.csv"))
        for row in harness.read_csv(path)
        for devices in DEVICES
    ]
    return markdown(("model", *_HEAD), rows)


def assumed_table(assumed: Assumption = H100, results: Path = harness.RESULTS) -> str:
    """Estimates for accelerators of which nothing was measured, as a Markdown table.

    Args:
        assumed: The accelerators.
        results: Folder of the committed results, which say how large the networks are.
    """
    networks = {
        row["model"]: row
        for path in sorted(results.glob("scaling-*.csv"))
        for row in harness.read_csv(path)
        if row["policy"] == "float32"
    }
    rows = []
    for model, row in networks.items():
        # The bytes are those of float32, of which bfloat16 has half.
        activations = int(row["activation_bytes"]) / 2
        batch = assumed.batch_of(activations)
        operations = OPERATIONS_PER_MULTIPLY_ADD * int(row["multiply_adds"])
        for fraction in assumed.fractions:
            for devices, (bandwidth, latency) in assumed.links.items():
                found = estimate(
                    fraction * assumed.peak / operations,
                    devices,
                    batch=devices * batch,
                    bandwidth=bandwidth,
                    latency=latency,
                    **_network_of(row),
                )
                more = (batch * activations, BYTES_OF_IMAGE * found.images_per_second)
                rows.append(
                    [
                        f"`{model}`",
                        f"{100 * fraction:.0f}",
                        *cells(found),
                        *(number(value / 1e9) for value in more),
                    ]
                )
    notes = [
        f"- **Assumed, not measured**: {assumed.name}, {assumed.peak / 1e12:.0f} T operations/s. "
        f"On each at most {assumed.batch} images, whose activations in bfloat16 take at most three "
        f"quarters of {assumed.memory / 1e9:.0f} GB."
    ]
    notes += [
        f"- {devices} devices: {bandwidth / 1e9:.0f} GB/s, {1e6 * latency:.0f} µs a message."
        for devices, (bandwidth, latency) in assumed.links.items()
        if devices > 1
    ]
    notes.append(f"- An image is {BYTES_OF_IMAGE / 1000:.0f} kB on disk.")
    head = ("model", "of peak, %", *_HEAD, "activations, GB", "read, GB/s")
    return "\n".join([markdown(head, rows), "", *notes])


def print_estimates(options: argparse.Namespace) -> None:
    """Prints what `--estimate` asks for."""
    found = figures(build(options.estimate, 32, "float32"))
    network = {key: found[key] for key in ("parameters", "normalizations", "channels")}
    if options.local_statistics:
        network |= {"normalizations": 0, "channels": 0}
    pairs = (options.bandwidth, options.latency)
    links = [values * len(options.devices) if len(values) == 1 else values for values in pairs]
    if any(len(values) != len(options.devices) for values in links):
        raise SystemExit(
            "`--bandwidth` and `--latency` must be one number or one for each of --devices. "
            f"Received: {len(pairs[0])} and {len(pairs[1])} for {len(options.devices)}"
        )
    rows = []
    for devices, bandwidth, latency in zip(options.devices, *links, strict=True):
        try:
            row = estimate(
                options.images_per_second,
                devices,
                batch=options.global_batch or devices * options.batch,
                bandwidth=bandwidth,
                latency=latency,
                overlap=options.overlap,
                **network,
            )
        except ValueError as error:
            raise SystemExit(str(error)) from error
        rows.append(cells(row, options.images))
    print(markdown(_HEAD, rows))


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = harness.parser("A training step at ImageNet's size, and many devices.", 3, 1, batch=4)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--input-size", type=harness.positive, default=224, help="pixels a side")
    parser.add_argument(
        "--dtype-policy", default="float32", choices=["float32", "mixed_bfloat16", "mixed_float16"]
    )
    parser.add_argument(
        "--processes", type=int, default=2, help="that add up gradients; 0 to leave that out"
    )
    parser.add_argument("--worker", metavar="JOB", help=argparse.SUPPRESS)
    group = parser.add_argument_group("estimates, from --batch images on each device")
    group.add_argument("--estimate", metavar="MODEL", help="measure nothing, print a table")
    group.add_argument("--images-per-second", type=float, metavar="R", help="of one device")
    group.add_argument("--devices", type=harness.positive, nargs="+", default=list(DEVICES))
    group.add_argument("--global-batch", type=harness.positive, help="instead of --batch for each")
    group.add_argument(
        "--bandwidth", type=float, nargs="+", metavar="B", help="bytes/s, for all or each number"
    )
    group.add_argument(
        "--latency", type=float, nargs="+", default=[0.0], metavar="S", help="seconds, likewise"
    )
    group.add_argument(
        "--overlap", type=float, default=0.0, help="part of the backward pass that hides gradients"
    )
    group.add_argument(
        "--local-statistics", action="store_true", help="BatchNormalization by each device alone"
    )
    group.add_argument("--images", type=harness.positive, default=IMAGES, help="in an epoch")
    options = parser.parse_args(arguments)
    if options.worker is not None:
        worker(options.worker)
        return 0
    harness.quiet()
    if options.estimate is not None:
        if options.images_per_second is None or options.bandwidth is None:
            parser.error("--estimate needs --images-per-second and --bandwidth")
        print_estimates(options)
        return 0

    harness.limit_threads(options.threads)
    import keras

    keras.utils.set_random_seed(0)
    shared = harness.circumstances(options.batch, options.threads)
    output = options.output or harness.RESULTS / f"scaling-{shared['backend']}.csv"
    print(", ".join(f"{name} {value}" for name, value in shared.items()), flush=True)
    rows = []
    for model in options.models:
        harness.say(model)
        rows.append(
            measure(
                model,
                options.dtype_policy,
                options.input_size,
                options.batch,
                options.rounds,
                options.steps,
            )
        )
        harness.write_csv(output, rows, shared)
        print(
            f"{model}: {rows[-1].images_per_second:.3g} images/s, "
            f"{rows[-1].operations_per_second / 1e9:.3g} G operations/s",
            flush=True,
        )
    if rows:
        print(f"written to {output}")
    if options.processes > 1:
        harness.say(f"{options.processes} processes add up")
        sums = measure_all_reduce(options.processes)
        shared = harness.circumstances(0, options.threads, "torch")
        del shared["batch"], shared["backend"]
        path = output.with_name(f"all_reduce-{sums[0].library}.csv")
        harness.write_csv(path, sums, shared)
        for row in sums:
            print(f"{row.bytes:>12,} bytes  {1000 * row.seconds:.3g} ms")
        print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
