"""`python -m benchmarks.remat`: memory and time of a training step with `remat` and without.

Memory is the most that lives at a time within a step, of a whole batch: on JAX what XLA sets aside
for the compiled step (`temp_size_in_bytes`), on PyTorch what `benchmarks.live_memory` counts.
`kept` is, on PyTorch, what autograd keeps after the forward pass (`saved_tensors_hooks`), the
weights with it. All settings of a network take their steps in turns. `--scan` runs the blocks by
`keras.ops.scan` (`MeanFieldStage(unroll=False)`), without which JAX's CPU saves nothing.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import harness, live_memory, memory


@dataclass(frozen=True)
class Rematerialisation:
    """One network with one setting: a row of the CSV file.

    Attributes:
        model: Name of the network.
        policy: Dtype policy.
        scan: Whether the blocks are run by a scan.
        remat: What the builder was given.
        kept: Bytes that autograd keeps after the forward pass; 0 where that is not told (JAX).
        peak: The most bytes at a time in a step.
        peak_ratio: That over the one without `remat`.
        seconds: Median seconds of a step.
        seconds_ratio, seconds_ratio_min, seconds_ratio_max: Over those without `remat`, by round.
        clock: `"wall"`, or `"cpu"`: seconds of the process alone.
    """

    model: str
    policy: str
    scan: bool
    remat: str
    kept: int
    peak: int
    peak_ratio: float
    seconds: float
    seconds_ratio: float
    seconds_ratio_min: float
    seconds_ratio_max: float
    clock: str


def _memory_and_step(network: Any, images: Any, labels: Any) -> tuple[int, int, Callable[[], None]]:
    """Bytes kept, bytes at most, and a function that takes a step and waits for its end."""
    import keras

    if keras.config.backend() == "jax":
        import jax

        compiled, state = memory.compiled_step(network, images, labels)
        states = [jax.tree.map(jax.numpy.array, state)]  # A step consumes its state.

        def step() -> None:
            logs, states[0] = compiled(states[0], (images, labels))
            jax.block_until_ready((logs, states[0]))

        return 0, compiled.memory_analysis().temp_size_in_bytes, step

    from mf_zoo.optimizers import MeanFieldSGD

    kept = memory.saved_bytes(network, images, labels)
    harness.compile_model(network, MeanFieldSGD(0.1, momentum=0.9))

    def train() -> None:
        network.train_on_batch(images, labels)

    train()  # makes the optimizer's variables and the metrics
    return kept, live_memory.peak_bytes(train), train


def measure(
    model: str,
    policy: str,
    settings: Sequence[bool | int | str],
    scan: bool,
    batch: int,
    rounds: int,
    steps: int,
    clock: str = "wall",
) -> list[Rematerialisation]:
    """Measures one network.

    Args:
        model: Name of the network.
        policy: Dtype policy.
        settings: What `remat` is to be; the first is what the others are compared with.
        scan: Whether the blocks are run by a scan.
        batch: Images in a batch.
        rounds, steps: Rounds, and steps of each setting in a round.
        clock: One of `harness.CLOCKS`.

    Raises:
        SystemExit: On TensorFlow, which does not tell its memory on the CPU.
    """
    import keras

    from mf_zoo import applications
    from mf_zoo.layers import stages
    from mf_zoo.training.assembly import dtype_policy

    if keras.config.backend() not in ("jax", "torch"):
        raise SystemExit(f"Only JAX and PyTorch tell. Received: {keras.config.backend()}")
    images, labels = harness.images_and_labels(batch)
    found, sides = {}, {}
    for remat in settings:
        harness.say(f"  remat={remat}")
        with dtype_policy(policy):
            network = applications.get(model)(classifier_activation=None, remat=remat)
        for stage in stages(network):
            stage.unroll = not scan
        *found[str(remat)], sides[str(remat)] = _memory_and_step(network, images, labels)
    for step in sides.values():
        step()
    seconds = harness.interleave(sides, rounds, steps, harness.CLOCKS[clock])
    first = str(settings[0])
    rows = []
    for name, (kept, peak) in found.items():
        ratio = harness.ratio(seconds[name], seconds[first])
        rows.append(
            Rematerialisation(
                model,
                policy,
                scan,
                name,
                kept,
                peak,
                peak / found[first][1],
                statistics.median(seconds[name]),
                ratio.median,
                ratio.smallest,
                ratio.largest,
                clock,
            )
        )
    return rows


def _setting(text: str) -> bool | int | str:
    """A setting as the command takes it: `True`, an integer or `sqrt`."""
    return {"True": True, "sqrt": "sqrt"}.get(text) or harness.positive(text)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    harness.quiet()
    parser: argparse.ArgumentParser = harness.parser(
        "Memory and time of a training step with remat and without.", rounds=3, steps=2
    )
    parser.add_argument("--models", nargs="+", default=["MFResNet110"])
    parser.add_argument("--dtype-policies", nargs="+", default=["float32"])
    parser.add_argument(
        "--remat", nargs="+", type=_setting, default=[True, 2, "sqrt", 9], help="settings"
    )
    parser.add_argument("--scan", action="store_true", help="run the blocks by a scan")
    harness.add_clock(parser)
    options = parser.parse_args(arguments)

    harness.limit_threads(options.threads)
    shared = harness.circumstances(options.batch, options.threads)
    output = options.output or harness.RESULTS / f"remat-{shared['backend']}.csv"
    settings = [False, *options.remat]
    others = (options.scan, options.batch, options.rounds, options.steps, options.clock)
    rows: list[Rematerialisation] = []
    for policy in options.dtype_policies:
        for model in options.models:
            harness.say(f"{model}, {policy}")
            rows += measure(model, policy, settings, *others)
            harness.write_csv(output, rows, shared)
    print(*rows, f"written to {output}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
