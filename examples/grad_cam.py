"""Grad-CAM: on what parts of an image a network's answer rests, seen from any block.

    python examples/grad_cam.py --output grad_cam.png

A state `A` of a network, the derivative of the score of a class with respect to it, and what is
drawn over the image:

    `relu(sum_k a_k A_k)`,    `a_k = mean over places of dscore / dA_k`,    `k` a channel.

The derivatives are the costates of the mean-field view, which `mf_zoo.theory.adjoints` has for
every block. Source: Selvaraju, Cogswell, Das, Vedantam, Parikh, Batra, *Grad-CAM*, ICCV 2017, arXiv
1610.02391.
"""

import argparse
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

import mf_zoo
from mf_zoo.visualize import pictures


def class_scores(classes: Any, scores: Any) -> Any:
    """The score of each image's class."""
    return ops.sum(ops.one_hot(classes, scores.shape[-1]) * scores, axis=-1)


def grad_cam(
    model: keras.Model, images: np.ndarray, classes: np.ndarray, layers: list[str]
) -> dict[str, np.ndarray]:
    """Heat maps of states inside stages, channels last.

    Args:
        model: A network of the zoo that ends in logits.
        images: `(batch, rows, cols, channels)`, 0..255.
        classes: Integer `(batch,)`: whose score is explained, for each image.
        layers: Names of states as of `mf_zoo.features`: `"stage3"`, `"stage3/0"`, `"stage3/entry"`.

    Returns:
        For each name an array `(batch, rows, cols)` of numbers that are not negative, at the
        state's size.
    """
    images = images.astype("float32")
    found = mf_zoo.theory.adjoints(model, images, classes, loss=class_scores)
    adjoints = dict(zip((stage.name for stage in mf_zoo.layers.stages(model)), found, strict=True))
    maps = {}
    for name in layers:
        stage, _, block = name.partition("/")
        position = {"": -1, "entry": 0}.get(block)
        if position is None:
            position = int(block) + 1
        states = adjoints[stage].states[position]
        # `adjoints` derives the mean over the batch, where each image has a score of its own.
        gradients = len(images) * adjoints[stage].costates[position]
        weights = gradients.mean(axis=(1, 2))
        maps[name] = np.maximum(np.einsum("bk,bijk->bij", weights, states), 0)
    return maps


def draw(images: np.ndarray, titles: list[str], maps: dict[str, np.ndarray]) -> Any:
    """A figure: a row for each image, the heat maps over it beside it."""
    rows, cols = len(images), 1 + len(maps)
    figure = pictures.new_figure(figsize=(1.5 * cols, 1.6 * rows))
    axes = figure.subplots(rows, cols, squeeze=False)
    side = images.shape[1]
    for row, (image, title) in enumerate(zip(images, titles, strict=True)):
        for ax, name in zip(axes[row], ["", *maps], strict=True):
            ax.imshow(image, extent=(0, side, side, 0))
            ax.axis("off")
            if name:
                heat = maps[name][row]
                extent, scale = (0, side, side, 0), max(heat.max(), 1e-12)
                ax.imshow(
                    heat / scale, cmap="inferno", alpha=0.6, extent=extent, interpolation="bilinear"
                )
            if not name or row == 0:
                ax.set_title(name if name else title, fontsize=8)
    return figure


def main(arguments: list[str] | None = None) -> dict[str, np.ndarray]:
    """Writes the picture; returns the heat maps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="MFResNet20", help="one with cifar10 weights")
    parser.add_argument(
        "--layers", nargs="+", default=["stage1", "stage2", "stage3/entry", "stage3/0", "stage3"]
    )
    parser.add_argument("--images", type=int, default=6, help="of the sample, one of each class")
    parser.add_argument("--output", type=Path, default=Path("grad_cam.png"))
    options = parser.parse_args(arguments)

    model = mf_zoo.applications.get(options.model)(weights="cifar10", classifier_activation=None)
    images, labels = mf_zoo.data.sample("cifar10")
    first = [int(np.argmax(labels == label)) for label in range(options.images)]
    images, labels = images[first], labels[first]
    answers = model.predict(images.astype("float32"), verbose=0).argmax(axis=1)
    maps = grad_cam(model, images, answers, options.layers)
    names = mf_zoo.data.class_names("cifar10")
    titles = [
        names[label] if answer == label else f"{names[label]}, taken for {names[answer]}"
        for label, answer in zip(labels, answers, strict=True)
    ]
    pictures.save(draw(images, titles, maps), options.output)
    print(f"{options.output}: {', '.join(options.layers)} of {options.model}")
    return maps


if __name__ == "__main__":
    main()
