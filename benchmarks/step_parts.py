"""`python -m benchmarks.step_parts`: where JAX's training step goes on the CPU.

The layers that `MFResNet20` is made of, each compiled alone: forward in training and the gradients,
with what PyTorch takes for the same layer with channels last (JAX computes of a BatchNormalization
the forward pass again for the gradient); then the whole step, `MFResNet20` against
hand-written PyTorch (`benchmarks.torch_step`). Seconds of a part are those of all such layers.
Start it with `KERAS_BACKEND=jax` under `taskset -c 0` for one thread.
"""

import sys
from collections.abc import Callable
from typing import Any

from benchmarks import harness, torch_step

TORCH = "torch eager"
DEPTH = 20
# How many, channels, filters, pixels a side (padded where strided), strides; 3x3.
CONVOLUTIONS = (
    (1, 3, 16, 32, 1),
    (6, 16, 16, 32, 1),
    (1, 16, 32, 34, 2),
    (5, 32, 32, 16, 1),
    (1, 32, 64, 18, 2),
    (5, 64, 64, 8, 1),
)
# How many, channels, pixels a side.
NORMALIZATIONS = ((7, 16, 32), (7, 32, 16), (7, 64, 8))


def jax_steps(layer: Any, inputs: Any) -> dict[str, Callable[[], Any]]:
    """Forward and gradients of a layer in training, compiled: by name of the part."""
    import jax
    import keras

    layer = keras.Sequential([keras.Input(inputs.shape[1:]), layer])
    frozen = [variable.value for variable in layer.non_trainable_variables]

    def call(trained: Any, inputs: Any) -> Any:
        return layer.stateless_call(trained, frozen, inputs, training=True)[0]

    def gradient(argument: int) -> Any:
        def pull(direction: Any, *arguments: Any) -> Any:
            def of_one(value: Any) -> Any:
                return call(*arguments[:argument], value, *arguments[argument + 1 :])

            return jax.vjp(of_one, arguments[argument])[1](direction)

        return jax.jit(pull)

    arguments = [v.value for v in layer.trainable_variables], jax.numpy.asarray(inputs)
    forward, of_weights, of_input = jax.jit(call), gradient(0), gradient(1)
    direction = forward(*arguments)
    return {
        "forward": lambda: jax.block_until_ready(forward(*arguments)),
        "input's gradient": lambda: jax.block_until_ready(of_input(direction, *arguments)),
        "weights' gradient": lambda: jax.block_until_ready(of_weights(direction, *arguments)),
    }


def pytorch_steps(layer: Any, inputs: Any) -> dict[str, Callable[[], Any]]:
    """The same of a `torch.nn` layer, with channels last."""
    import torch

    layer = layer.to(memory_format=torch.channels_last)
    x = torch.from_numpy(inputs).permute(0, 3, 1, 2).requires_grad_()
    outputs = layer(x)
    direction, weights = outputs.detach(), list(layer.parameters())

    def forward() -> Any:
        with torch.no_grad():
            return layer(x)

    def gradient(of: list[Any]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(outputs, of, direction, retain_graph=True)

    return {
        "forward": forward,
        "input's gradient": gradient([x]),
        "weights' gradient": gradient(weights),
    }


def parts(batch: int) -> dict[str, tuple[int, Callable[[], Any], Callable[[], Any]]]:
    """How often a layer occurs, and a step of it on JAX and on PyTorch, by name."""
    import numpy as np
    from torch import nn

    from mf_zoo.layers import BatchNormalization, Conv2D

    rng = np.random.default_rng(0)

    found = {}
    for count, channels, filters, side, strides in CONVOLUTIONS:
        x = rng.normal(size=(batch, side, side, channels)).astype("float32")
        padding = "same" if strides == 1 else "valid"
        ours = Conv2D(filters, 3, strides=strides, padding=padding, use_bias=False)
        theirs = nn.Conv2d(channels, filters, 3, strides, int(strides == 1), bias=False)
        name = f"{count} x convolution {channels} to {filters}, {side} x {side}"
        sides = jax_steps(ours, x), pytorch_steps(theirs, x)
        for part in sides[0]:
            found[f"{name}, {part}"] = count, sides[0][part], sides[1][part]
    for count, channels, side in NORMALIZATIONS:
        x = rng.normal(size=(batch, side, side, channels)).astype("float32")
        name = f"{count} x BatchNormalization {channels}, {side} x {side}"
        sides = jax_steps(BatchNormalization(), x), pytorch_steps(nn.BatchNorm2d(channels), x)
        for part in ("forward", "input's gradient"):
            found[f"{name}, {part}"] = count, sides[0][part], sides[1][part]
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
    output = options.output or harness.RESULTS / f"step_parts-{backend}.csv"
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
        harness.write_csv(output, rows, shared)  # what is done, if it is cut off

    for name, part in parts(options.batch).items():
        measure(name, *part)
    networks = torch_step.networks(DEPTH, "float32")
    images, labels = harness.images_and_labels(options.batch)
    steps = [
        lambda model=networks[side]: model.train_on_batch(images, labels)
        for side in (torch_step.MEAN_FIELD, torch_step.WRITTEN)
    ]
    measure("train", 1, *steps)
    harness.report(rows, shared, output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
