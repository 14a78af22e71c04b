"""`python -m benchmarks.step_parts`: where JAX's training step goes on the CPU.

The layers that `MFResNet20` is made of, each compiled alone, forward and backward in training, with
what PyTorch takes for the same layer with channels last; then the whole step, `MFResNet20` against
hand-written PyTorch (`benchmarks.torch_step`). Seconds of a part are those of all such layers.
Start it with `KERAS_BACKEND=jax` under `taskset -c 0` for one thread.
"""

import sys
from collections.abc import Callable
from typing import Any

from benchmarks import harness, torch_step

TORCH = "torch eager"
DEPTH = 20
# Channels, pixels a side, 3x3 convolutions without stride, BatchNormalizations.
SHAPES = ((16, 32, 6, 7), (32, 16, 5, 7), (64, 8, 5, 7))


def jax_step(layer: Any, inputs: Any) -> Callable[[], Any]:
    """The gradients of a layer's weights and input in training, compiled."""
    import jax
    import keras
    from keras import ops

    layer = keras.Sequential([keras.Input(inputs.shape[1:]), layer])
    frozen = [variable.value for variable in layer.non_trainable_variables]

    def loss(trained: Any, inputs: Any) -> Any:
        outputs, _ = layer.stateless_call(trained, frozen, inputs, training=True)
        return ops.sum(ops.square(outputs))

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))
    arguments = [v.value for v in layer.trainable_variables], jax.numpy.asarray(inputs)
    return lambda: jax.block_until_ready(gradients(*arguments))


def pytorch_step(layer: Any, inputs: Any) -> Callable[[], Any]:
    """The same of a `torch.nn` layer, with channels last."""
    import torch

    layer = layer.to(memory_format=torch.channels_last)
    x = torch.from_numpy(inputs).permute(0, 3, 1, 2).requires_grad_()
    return lambda: torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])


def parts(batch: int) -> dict[str, tuple[int, Callable[[], Any], Callable[[], Any]]]:
    """How often a layer occurs, and a step of it on JAX and on PyTorch, by name."""
    import numpy as np
    from torch import nn

    from mf_zoo.layers import BatchNormalization, Conv2D

    found = {}
    for channels, side, convolutions, normalizations in SHAPES:
        x = np.random.default_rng(0).normal(size=(batch, side, side, channels)).astype("float32")
        for count, kind, ours, theirs in (
            (
                convolutions,
                "convolution",
                Conv2D(channels, 3, padding="same", use_bias=False),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            ),
            (normalizations, "BatchNormalization", BatchNormalization(), nn.BatchNorm2d(channels)),
        ):
            name = f"{count} x {kind}, {channels} channels, {side} x {side}"
            found[name] = count, jax_step(ours, x), pytorch_step(theirs, x)
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    harness.quiet()
    parser = harness.parser("Where JAX's training step goes on the CPU.", rounds=5, steps=2)
    harness.add_clock(parser)
    options = parser.parse_args(arguments)

    import keras
    import torch

    backend = keras.config.backend()
    if backend != "jax":
        raise SystemExit(f"Set KERAS_BACKEND=jax. Received: KERAS_BACKEND={backend}")
    harness.limit_threads(options.threads)
    torch.set_num_threads(1)
    keras.utils.set_random_seed(0)
    clock = harness.CLOCKS[options.clock]
    shared = harness.circumstances(options.batch, None, "torch") | {"clock": options.clock}
    rows = []

    def measure(name: str, count: int, ours: Callable[[], Any], theirs: Callable[[], Any]) -> None:
        harness.say(name)
        sides = {backend: ours, TORCH: theirs}
        harness.interleave(sides, 1, 1)
        seconds = harness.interleave(sides, options.rounds, options.steps, clock)
        seconds = {side: [count * one for one in taken] for side, taken in seconds.items()}
        rows.append(
            harness.compare(seconds, backend, TORCH, depth=DEPTH, measure=name, policy="float32")
        )

    for name, part in parts(options.batch).items():
        measure(name, *part)
    networks = torch_step.networks(DEPTH, "float32")
    images, labels = harness.images_and_labels(options.batch)
    steps = [
        lambda model=networks[side]: model.train_on_batch(images, labels)
        for side in (torch_step.MEAN_FIELD, torch_step.WRITTEN)
    ]
    measure("train", 1, *steps)
    harness.report(rows, shared, options.output or harness.RESULTS / f"step_parts-{backend}.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
