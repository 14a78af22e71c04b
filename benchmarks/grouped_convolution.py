"""`python -m benchmarks.grouped_convolution`: `mf_zoo.layers.GroupedConv2D` against the native one.

Two measures, on the active backend:

- `layer`: forward and backward of the 3x3 grouped convolutions of ResNeXt-29, one of each stage,
  compiled, with `GroupedConv2D` and with `keras.layers.Conv2D(groups=...)`;
- `train`: a training step of the whole network, `MFResNeXt29_32x4d` against the same network of the
  package `pytorchcv` in eager PyTorch, with SGD and momentum.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import harness
from mf_zoo import files, markdown

OURS, NATIVE, TORCH = "GroupedConv2D", "native", "torch eager"
# Groups, channels of a group, pixels a side: stages 1 and 3 of 32x4d and stage 1 of 8x64d.
SHAPES = ((32, 4, 32), (32, 16, 8), (8, 64, 32))
TARGET = 3.0  # of PyTorch's time for a training step


def gradient_step(layer: Any, images: Any) -> Callable[[], Any]:
    """A function that computes the gradients of a built layer's kernel and input, compiled."""
    import keras
    from keras import ops

    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        inputs = tf.constant(images)

        @tf.function(autograph=False)
        def step() -> Any:
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                loss = tf.reduce_sum(tf.square(layer(inputs)))
            return tape.gradient(loss, [layer.kernel.value, inputs])

        return lambda: [gradient.numpy() for gradient in step()]
    if backend == "jax":
        import jax

        def loss(kernel: Any, inputs: Any) -> Any:
            outputs, _ = layer.stateless_call([kernel], [], inputs)
            return ops.sum(ops.square(outputs))

        gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))
        arguments = layer.kernel.value, jax.numpy.asarray(images)
        return lambda: jax.block_until_ready(gradients(*arguments))
    raise SystemExit(f"Only TensorFlow and JAX need another way. Received: KERAS_BACKEND={backend}")


def layers(shape: tuple[int, int, int]) -> dict[str, Any]:
    """Both layers, with the same kernel."""
    import keras

    from mf_zoo.layers import GroupedConv2D

    groups, width, _ = shape
    channels = groups * width
    arguments = {"padding": "same", "use_bias": False, "groups": groups}
    found = {
        OURS: GroupedConv2D(channels, 3, **arguments),
        NATIVE: keras.layers.Conv2D(channels, 3, **arguments),
    }
    for layer in found.values():
        layer.build((None, None, None, channels))
    found[NATIVE].set_weights(found[OURS].get_weights())
    return found


def measure_layers(batch: int, rounds: int, policy: str) -> list[harness.Comparison]:
    """Measures the layers alone."""
    import numpy as np

    rows = []
    for shape in SHAPES:
        groups, width, side = shape
        images = np.random.default_rng(0).normal(size=(batch, side, side, groups * width))
        steps = {
            name: gradient_step(layer, images.astype("float32"))
            for name, layer in layers(shape).items()
        }
        harness.say(f"{groups} groups of {width} channels, {side} x {side} pixels")
        harness.interleave(steps, 1, 1)
        rows.append(
            harness.compare(
                harness.interleave(steps, rounds, 1),
                OURS,
                NATIVE,
                depth=29,
                measure=f"layer, {groups} x {width}, {side} x {side}",
                policy=policy,
            )
        )
    return rows


def measure_training(batch: int, rounds: int, policy: str) -> list[harness.Comparison]:
    """Measures a training step of ResNeXt-29, 32x4d."""
    import torch
    from pytorchcv.models.resnext_cifar import resnext29_32x4d_cifar10

    from mf_zoo import applications
    from mf_zoo.optimizers import MeanFieldSGD

    images, labels = harness.images_and_labels(batch)
    ours = applications.MFResNeXt29_32x4d(classifier_activation=None)
    harness.compile_model(ours, MeanFieldSGD(0.01, momentum=0.9))

    module = resnext29_32x4d_cifar10().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(module.parameters(), 0.01, momentum=0.9)
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    targets = torch.from_numpy(labels)

    def torch_step() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(inputs), targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    steps = {"mean-field": lambda: ours.train_on_batch(images, labels), TORCH: torch_step}
    harness.say("training steps of ResNeXt-29, 32x4d")
    harness.interleave(steps, 1, 1)
    return [
        harness.compare(
            harness.interleave(steps, rounds, 1),
            "mean-field",
            TORCH,
            depth=29,
            measure="train",
            policy=policy,
            target=TARGET,
        )
    ]


def readme_table(results: Path = harness.RESULTS) -> str:
    """The committed results as a Markdown table: how many times as fast.

    Args:
        results: Folder of the `grouped_convolution-*.csv`.
    """
    lines = []
    notes = []
    for path in sorted(results.glob("grouped_convolution-*.csv")):
        rows = files.read_rows(path)
        for row in rows:
            faster = f"{1 / float(row['ratio']):.2g}"
            faster = f"**{faster}**" if row["met"] == "no" else faster
            lines.append([row["backend"], row["measure"], row["baseline"], faster])
        notes.append(
            "- {backend}: {policy}, batch {batch}, {machine}; {date}; {versions}.".format(**rows[0])
        )
    notes.append(
        f"- Target: a training step in at most {TARGET:.0f} times PyTorch's time; else in bold."
    )
    header = ("backend", "measure", "against", "times as fast")
    return "\n".join([markdown.table(header, lines), "", *notes])


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    harness.quiet()
    parser = harness.parser("Grouped convolutions on the CPU.", 3, 1, batch=32)
    options = parser.parse_args(arguments)

    harness.limit_threads(options.threads)
    import keras
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    keras.utils.set_random_seed(0)
    shared = harness.circumstances(options.batch, options.threads, "torch", "pytorchcv")
    output = options.output or harness.RESULTS / f"grouped_convolution-{shared['backend']}.csv"
    rows = [
        row
        for measure in (measure_layers, measure_training)
        for row in measure(options.batch, options.rounds, keras.config.dtype_policy().name)
    ]
    harness.report(rows, shared, output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
