"""`python -m benchmarks.remat`: memory and time of a training step with `remat=True` and without.

Memory as `benchmarks.memory` measures it, here of a whole batch with weights and all: on JAX what
XLA sets aside for the compiled step, the block that is computed again included; on PyTorch what
autograd keeps after the forward pass. The two networks take their steps in turns.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks import harness, memory


@dataclass(frozen=True)
class Rematerialisation:
    """One network with and without: a row of the CSV file.

    Attributes:
        model: Name of the network.
        policy: Dtype policy.
        bytes, remat_bytes: Memory of a step without and with rematerialisation.
        bytes_ratio: With over without.
        seconds, remat_seconds: Median seconds of a step.
        seconds_ratio, seconds_ratio_min, seconds_ratio_max: With over without by round.
        clock: `"wall"`, or `"cpu"`: seconds of the process alone.
    """

    model: str
    policy: str
    bytes: int
    remat_bytes: int
    bytes_ratio: float
    seconds: float
    remat_seconds: float
    seconds_ratio: float
    seconds_ratio_min: float
    seconds_ratio_max: float
    clock: str


def _memory_and_step(network: Any, images: Any, labels: Any) -> tuple[int, Callable[[], None]]:
    """Bytes of a training step, and a function that takes one and waits for its end."""
    import keras

    if keras.config.backend() == "jax":
        import jax

        compiled, state = memory.compiled_step(network, images, labels)
        states = [jax.tree.map(jax.numpy.array, state)]  # A step consumes its state.

        def step() -> None:
            logs, states[0] = compiled(states[0], (images, labels))
            jax.block_until_ready((logs, states[0]))

        return compiled.memory_analysis().temp_size_in_bytes, step

    from mf_zoo.optimizers import MeanFieldSGD

    found = memory.saved_bytes(network, images, labels)
    harness.compile_model(network, MeanFieldSGD(0.1, momentum=0.9))
    return found, lambda: network.train_on_batch(images, labels)


def measure(
    model: str, policy: str, batch: int, rounds: int, steps: int, clock: str = "wall"
) -> Rematerialisation:
    """Measures one network.

    Raises:
        SystemExit: On TensorFlow, which does not tell its memory on the CPU.
    """
    import keras

    from mf_zoo import applications
    from mf_zoo.training.assembly import dtype_policy

    if keras.config.backend() not in ("jax", "torch"):
        raise SystemExit(f"Only JAX and PyTorch tell. Received: {keras.config.backend()}")
    images, labels = harness.images_and_labels(batch)
    found, sides = {}, {}
    for remat in (False, True):
        harness.say(f"  remat={remat}")
        with dtype_policy(policy):
            network = applications.get(model)(classifier_activation=None, remat=remat)
        found[remat], sides[str(remat)] = _memory_and_step(network, images, labels)
    for step in sides.values():
        step()
    seconds = harness.interleave(sides, rounds, steps, harness.CLOCKS[clock])
    ratio = harness.ratio(seconds["True"], seconds["False"])
    return Rematerialisation(
        model,
        policy,
        found[False],
        found[True],
        found[True] / found[False],
        statistics.median(seconds["False"]),
        statistics.median(seconds["True"]),
        ratio.median,
        ratio.smallest,
        ratio.largest,
        clock,
    )


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    harness.quiet()
    parser: argparse.ArgumentParser = harness.parser(
        "Memory and time of a training step with remat=True and without.", rounds=3, steps=2
    )
    parser.add_argument("--models", nargs="+", default=["MFResNet110"])
    parser.add_argument("--dtype-policies", nargs="+", default=["float32"])
    harness.add_clock(parser)
    options = parser.parse_args(arguments)

    harness.limit_threads(options.threads)
    shared = harness.circumstances(options.batch, options.threads)
    output = options.output or harness.RESULTS / f"remat-{shared['backend']}.csv"
    settings = (options.batch, options.rounds, options.steps, options.clock)
    harness.measure_each(
        options.models,
        options.dtype_policies,
        lambda model, policy: measure(model, policy, *settings),
        output,
        shared,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
