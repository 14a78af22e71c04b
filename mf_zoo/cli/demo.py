"""What `mf-zoo demo` shows: pretrained weights at work on the embedded real images."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mf_zoo.errors import UserError

if TYPE_CHECKING:
    import numpy as np

_ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")
_SHOWN = 40  # images in the picture


def add_parser(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser("demo", help="pretrained weights at work on real images")
    parser.add_argument(
        "--model", default="MFResNet20", help="one with cifar10 weights (default: MFResNet20)"
    )
    parser.add_argument("--picture", type=Path, default=Path("demo.png"), metavar="FILE")
    parser.add_argument("--page", type=Path, default=Path("demo.html"), metavar="FILE")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Classifies the embedded CIFAR-10 images, fine-tunes for a few steps, writes picture and page.

    Args:
        options: `model`, `picture` and `page`, as `add_parser` declares them.

    Raises:
        mf_zoo.errors.UserError: For a model without weights, or where no picture can be made.
    """
    import keras

    from mf_zoo import applications, data
    from mf_zoo.errors import user_errors
    from mf_zoo.layers import stages

    keras.utils.set_random_seed(0)
    images, labels = data.sample("cifar10")
    names = data.class_names("cifar10")
    with user_errors():
        model = applications.get(options.model)(weights="cifar10")
    print(f'{options.model}(weights="cifar10") on {len(images)} real test images')
    probabilities = model.predict(images, verbose=0)
    predictions = probabilities.argmax(1)
    right = int((predictions == labels).sum())
    print(f"  right: {right} of {len(images)}, accuracy {100 * right / len(images):.1f} %")
    print("depth order (particle @ time, step size):")
    for stage in stages(model):
        order = keras.ops.convert_to_numpy(stage.depth_order())
        times = keras.ops.convert_to_numpy(stage.times)
        steps = keras.ops.convert_to_numpy(stage.step_sizes())
        row = ", ".join(
            f"{i} @ {times[i]:.3f} ({step:.3f})" for i, step in zip(order, steps, strict=True)
        )
        print(f"  {stage.name}, T = {stage.horizon:g}: {row}")
    _draw(options.picture, images, labels, predictions, names, stages(model))
    print(f"picture: {options.picture}")
    _fine_tune(options, images, labels, names)
    _write_page(options, probabilities, images, labels, names)


def _write_page(
    options: argparse.Namespace,
    probabilities: "np.ndarray",
    images: "np.ndarray",
    labels: "np.ndarray",
    names: Sequence[str],
) -> None:
    """The report of the training that made the weights, and of their answers to the images."""
    from mf_zoo import weights
    from mf_zoo.reporting import plots, run_page
    from mf_zoo.reporting.predictions import Predictions
    from mf_zoo.reporting.run import Run
    from mf_zoo.training.evaluation import measure

    try:
        plots.graph_objects()
    except UserError as error:
        print(f"no page: {error}")
        return
    answers = Predictions(
        measure(probabilities, labels),
        images,
        labels,
        names,
        "test images that come with the package",
    )
    run = Run.of_record(weights.get(options.model, "cifar10"))
    run_page.write_page([run], [answers], options.page)
    print(f"page, for any browser: {options.page}")


def _draw(
    path: Path,
    images: "np.ndarray",
    labels: "np.ndarray",
    predictions: "np.ndarray",
    names: Sequence[str],
    stages: Sequence[Any],
) -> None:
    """Images with predictions (wrong ones in red) above the particles' times."""
    import keras
    import numpy as np

    from mf_zoo import files
    from mf_zoo.layers import quadrature

    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "The picture needs matplotlib: pip install 'mf_zoo[plot]'. Received: no matplotlib"
        ) from error
    # The wrong ones first: they say more.
    shown = np.argsort(predictions == labels, kind="stable")[:_SHOWN]
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(3, 1.3))
    for axes, i in zip(above.subplots(4, _SHOWN // 4).flat, shown, strict=True):
        wrong = predictions[i] != labels[i]
        axes.imshow(images[i])
        title = names[predictions[i]] + (f"\n({names[labels[i]]})" if wrong else "\n")
        axes.set_title(title, fontsize=8, color="crimson" if wrong else "darkgreen")
        axes.axis("off")
    for axes, stage in zip(below.subplots(1, len(stages)), stages, strict=True):
        times = keras.ops.convert_to_numpy(stage.times)
        grid = quadrature.grid(stage.quadrature, stage.num_particles, stage.horizon)
        axes.vlines(grid, 0.8, 1.2, color="lightgrey", label="grid: where they started")
        axes.plot(times, np.ones_like(times), "o", label="particles")
        for i, time in enumerate(times):
            axes.annotate(str(i), (time, 1.0), (0, 8), textcoords="offset points", ha="center")
        axes.set(
            xlim=(0, stage.horizon * 1.03), ylim=(0.7, 1.5), yticks=[], xlabel=f"time, {stage.name}"
        )
    axes.legend(loc="upper left", fontsize=8)
    form = path.suffix.lstrip(".") or "png"
    try:
        files.write_atomically(path, lambda part: figure.savefig(part, format=form, dpi=100))
    except ValueError as error:  # a format that matplotlib does not know
        raise UserError(f"The picture {path} cannot be written. Received: {error}") from error


def _fine_tune(
    options: argparse.Namespace, images: "np.ndarray", labels: "np.ndarray", names: Sequence[str]
) -> None:
    """A new two-class head on the pretrained body: animal or vehicle."""
    import warnings

    import keras
    import numpy as np

    from mf_zoo import applications
    from mf_zoo.optimizers import MeanFieldSGD

    animal = np.isin(np.array(names)[labels], _ANIMALS).astype("int64")
    # The sample is sorted by class: four images of five to train on, the fifth to look at.
    held_out = np.arange(len(images)) % 5 == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the fresh head is what we want
        model = applications.get(options.model)(weights="cifar10", classes=2)
    model.compile(
        MeanFieldSGD(0.005, momentum=0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )

    def error() -> float:
        scores = model.predict(images[held_out], verbose=0).argmax(1)
        return 100 * float((scores != animal[held_out]).mean())

    print("fine-tuning to tell animals from vehicles, model.compile and model.fit:")
    print(f"  fresh head: error {error():.1f} % on {held_out.sum()} held-out images")
    history = model.fit(
        images[~held_out], animal[~held_out], batch_size=32, epochs=4, shuffle=True, verbose=0
    )
    steps = int(keras.ops.convert_to_numpy(model.optimizer.iterations))
    print(f"  after {steps} steps: error {error():.1f} %, loss {history.history['loss'][-1]:.3f}")
