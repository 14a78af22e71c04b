"""`python -m benchmarks.batch_normalization`: `mf_zoo`'s BatchNormalization against Keras's.

The training step of the same ResNet-20 in plain Keras layers, once with
`keras.layers.BatchNormalization` and once with `mf_zoo.layers.BatchNormalization`, in float32 and
in mixed_bfloat16: four networks in one process, measured in turn. The two differ on TensorFlow and
PyTorch; on JAX the ratio is 1 but for noise.
"""

import sys
from collections.abc import Callable
from typing import Any

from benchmarks import harness

OURS, KERAS = "mf_zoo", "Keras"
POLICIES = ("float32", "mixed_bfloat16")
DEPTH = 20


def networks() -> dict[tuple[str, str], Any]:
    """A compiled ResNet-20 for each `(dtype policy, layer)`."""
    import keras

    from benchmarks.plain_resnet import plain_resnet
    from mf_zoo.layers import BatchNormalization

    found = {}
    before = keras.config.dtype_policy()
    try:
        for policy in POLICIES:
            keras.config.set_dtype_policy(policy)
            for name, layer in ((OURS, BatchNormalization), (KERAS, None)):
                model = plain_resnet(DEPTH, layer or keras.layers.BatchNormalization)
                optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
                found[policy, name] = harness.compile_model(model, optimizer)
    finally:
        keras.config.set_dtype_policy(before)
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    harness.quiet()
    parser = harness.parser("BatchNormalization in ResNet-20: mf_zoo's against Keras's.", 7, 3)
    harness.add_clock(parser)
    options = parser.parse_args(arguments)

    harness.limit_threads(options.threads)
    import keras

    keras.utils.set_random_seed(0)
    shared = harness.circumstances(options.batch, options.threads) | {"clock": options.clock}
    output = options.output or harness.RESULTS / f"batch_normalization-{shared['backend']}.csv"
    images, labels = harness.images_and_labels(options.batch)

    def step(model: Any) -> Callable[[], Any]:
        return lambda: model.train_on_batch(images, labels)

    steps = {key: step(model) for key, model in networks().items()}
    harness.interleave(steps, rounds=1, steps=2)  # compiles
    seconds = harness.interleave(
        steps, options.rounds, options.steps, harness.CLOCKS[options.clock]
    )
    rows = [
        harness.compare(
            {name: seconds[policy, name] for name in (OURS, KERAS)},
            OURS,
            KERAS,
            depth=DEPTH,
            measure="train",
            policy=policy,
        )
        for policy in POLICIES
    ]
    harness.report(rows, shared, output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
