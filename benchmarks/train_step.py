"""`python -m benchmarks.train_step`: mean-field networks against plain Keras layers.

Three sides are built with the same weights, compiled alike and measured in turn, in one process:

- *mean-field*: `MFResNet20`, ... trained by `MeanFieldSGD`;
- *plain Keras*: the same network in Keras's own layers, trained by Keras's SGD;
- *plain, fused BN*: the same, with `mf_zoo.layers.BatchNormalization` in place of Keras's. Against
  it only the price of stacking, sorting and learned times is left. It is not measured on JAX,
  where that layer is Keras's.

Measures, in seconds: `train`, a steady `train_on_batch`; `predict`, a steady `predict_on_batch`;
`compile`, the first `train_on_batch` less a steady one; `build`, making and compiling the model
object. Networks for `build` and `compile` are freshly made each time.
"""

import gc
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import harness
from mf_zoo import files, markdown

MEAN_FIELD, PLAIN, PLAIN_FUSED = "mean-field", "plain Keras", "plain, fused BN"
TARGETS = {"train": 1.05, "predict": 1.05}
TENSORFLOW_TARGETS = {**TARGETS, "compile": 1.0}
DEPTHS = (20, 32, 44, 56, 110)
_LEARNING_RATE, _MOMENTUM = 0.01, 0.9


def mean_field(depth: int) -> Any:
    """A mean-field ResNet with logits, compiled with `MeanFieldSGD`."""
    from mf_zoo import applications
    from mf_zoo.optimizers import MeanFieldSGD

    model = applications.get(f"MFResNet{depth}")(classifier_activation=None)
    return harness.compile_model(model, MeanFieldSGD(_LEARNING_RATE, momentum=_MOMENTUM))


def plain(depth: int, fused: bool = False) -> Any:
    """The same in plain Keras layers, compiled with Keras's SGD."""
    import keras

    from benchmarks.plain_resnet import plain_resnet
    from mf_zoo.layers import BatchNormalization

    model = plain_resnet(depth, BatchNormalization if fused else keras.layers.BatchNormalization)
    return harness.compile_model(model, keras.optimizers.SGD(_LEARNING_RATE, momentum=_MOMENTUM))


def builders() -> dict[str, Callable[[int], Any]]:
    """What builds each side on the active backend, by name."""
    import keras

    sides = {MEAN_FIELD: mean_field, PLAIN: plain}
    if keras.config.backend() != "jax":
        sides[PLAIN_FUSED] = lambda depth: plain(depth, fused=True)
    return sides


def weights_by_plain_name(model: Any) -> dict[str, Any]:
    """A mean-field network's weights but the times, as the plain network names them.

    Args:
        model: `MFResNet20`, ...

    Returns:
        `{"stage1_block0_conv1/kernel": array, ...}`; block 0 of a stage is the first in depth.
    """
    from keras import ops

    from mf_zoo.layers import BasicBlock, MeanFieldStage

    found = {}
    for layer in model.layers:
        if isinstance(layer, MeanFieldStage):
            order = ops.convert_to_numpy(layer.depth_order())
            for weight in layer.weights:
                if weight is layer.times:
                    continue
                part, _, kind = weight.name.partition("_")
                for index, value in enumerate(ops.convert_to_numpy(weight.value)[order]):
                    found[f"{layer.name}_block{index}_{part}/{kind}"] = value
        elif isinstance(layer, BasicBlock):
            for weight in layer.weights:
                part, kind = weight.path.split("/")[-2:]
                found[f"{layer.name.removesuffix('_block')}_{part}/{kind}"] = weight.numpy()
        else:
            for weight in layer.weights:
                found["/".join(weight.path.split("/")[-2:])] = weight.numpy()
    return found


def copy_weights(source: Any, target: Any) -> None:
    """Gives a plain network the weights of a mean-field network.

    Raises:
        ValueError: If a step size is not 1, as all are in a new network: then no plain network
            equals this one. If the two do not have the same weights but for the times.
    """
    import numpy as np
    from keras import ops

    from mf_zoo.layers import stages

    for stage in stages(source):
        steps = ops.convert_to_numpy(stage.step_sizes())
        if not np.allclose(steps, 1.0):
            raise ValueError(f"Every step size must be 1. Received: {steps} in {stage.name!r}")
    values = weights_by_plain_name(source)
    if set(values) != {weight.path for weight in target.weights}:
        different = sorted(set(values) ^ {weight.path for weight in target.weights})
        raise ValueError(f"Both networks must have the same weights. Received: {different}")
    for weight in target.weights:
        weight.assign(values[weight.path])


def check_equal(models: dict[str, Any], images: Any, tolerance: float) -> None:
    """Gives all sides the same weights and checks that they are the same network.

    Raises:
        AssertionError: If they differ in the number of parameters or in their outputs.
    """
    import numpy as np

    from mf_zoo.layers import stages

    ours = models[MEAN_FIELD]
    particles = sum(stage.num_particles for stage in stages(ours))
    expected = ours.predict_on_batch(images)
    for name, model in models.items():
        if model is ours:
            continue
        copy_weights(ours, model)
        if model.count_params() != ours.count_params() - particles:
            raise AssertionError(
                f"{name} must have as many parameters as {MEAN_FIELD} less its {particles} times. "
                f"Received: {model.count_params()} and {ours.count_params()}"
            )
        np.testing.assert_allclose(
            model.predict_on_batch(images),
            expected,
            rtol=tolerance,
            atol=tolerance * np.abs(expected).max(),
            err_msg=f"{name} and {MEAN_FIELD} give different outputs",
        )


def measure(
    depth: int, batch: int, rounds: int, steps: int, compile_repeats: int, policy: str
) -> list[harness.Comparison]:
    """Measures one depth: all comparisons of mean-field with the other sides."""
    import keras

    images, labels = harness.images_and_labels(batch)
    sides = builders()
    names = list(sides)
    seconds: dict[str, dict[str, list[float]]] = {
        "build": {name: [] for name in names},
        "first": {name: [] for name in names},
    }
    models: dict[str, Any] = {}
    for repeat in range(compile_repeats):
        models.clear()
        keras.backend.clear_session()
        gc.collect()
        turn = repeat % len(names)
        order = names[turn:] + names[:turn]
        for name in order:
            harness.say(f"ResNet-{depth}, {repeat + 1}/{compile_repeats}: building {name}")
            taken, models[name] = harness.timed_once(lambda build=sides[name]: build(depth))
            seconds["build"][name].append(taken)
        if repeat == 0:
            check_equal(models, images, 1e-3 if policy == "float32" else 5e-2)
        for name in order:
            harness.say(f"ResNet-{depth}, {repeat + 1}/{compile_repeats}: first step of {name}")
            taken, _ = harness.timed_once(
                lambda model=models[name]: model.train_on_batch(images, labels)
            )
            seconds["first"][name].append(taken)

    def calls(method: str, *arguments: Any) -> dict[str, Callable[[], Any]]:
        return {
            name: lambda model=model: getattr(model, method)(*arguments)
            for name, model in models.items()
        }

    # Both return NumPy values, so they end when the device is done.
    training, predicting = (
        calls("train_on_batch", images, labels),
        calls("predict_on_batch", images),
    )
    harness.say(f"ResNet-{depth}: training steps")
    harness.interleave(training, 1, 1)
    seconds["train"] = harness.interleave(training, rounds, steps)
    harness.say(f"ResNet-{depth}: predictions")
    harness.interleave(predicting, 1, 1)
    seconds["predict"] = harness.interleave(predicting, rounds, steps)
    seconds["compile"] = compile_seconds(seconds.pop("first"), seconds["train"])

    backend = keras.config.backend()
    measures = ["train", "predict", "compile", "build"]
    if backend == "torch" and not models[MEAN_FIELD].jit_compile:
        measures.remove("compile")  # eager: there is nothing to compile
    targets = TENSORFLOW_TARGETS if backend == "tensorflow" else TARGETS
    return [
        harness.compare(
            seconds[kind],
            MEAN_FIELD,
            baseline,
            depth=depth,
            measure=kind,
            policy=policy,
            target=targets.get(kind),
        )
        for baseline in names[1:]
        for kind in measures
    ]


def compile_seconds(
    first: dict[str, list[float]], steady: dict[str, list[float]]
) -> dict[str, list[float]]:
    """First steps less the median of a side's steady ones, never less than a microsecond."""
    return {
        name: [max(value - statistics.median(steady[name]), 1e-6) for value in values]
        for name, values in first.items()
    }


def warm_up(batch: int) -> None:
    """Does what only the first network of a process pays for: imports, kernels of each shape."""
    images, labels = harness.images_and_labels(batch)
    for name, build in builders().items():
        harness.say(f"warming up with {name}")
        model = build(20)
        model.train_on_batch(images, labels)
        model.predict_on_batch(images)


def readme_table(results: Path = harness.RESULTS) -> str:
    """The committed results, of all backends, as a Markdown table of ratios.

    Args:
        results: Folder of the `train_step-*.csv`.
    """
    measures = {"train": "training step", "predict": "predict", "compile": "compile"}
    lines = []
    notes = []
    for path in sorted(results.glob("train_step-*.csv")):
        rows = files.read_rows(path)
        cells = {(row["baseline"], int(row["depth"]), row["measure"]): row for row in rows}
        for baseline in dict.fromkeys(row["baseline"] for row in rows):
            for depth in sorted({int(row["depth"]) for row in rows}):
                ratios = [_cell(cells.get((baseline, depth, kind))) for kind in measures]
                lines.append([rows[0]["backend"], baseline, str(depth), *ratios])
        notes.append(
            "- {backend}: {policy}, batch {batch}, {machine}; {date}; {versions}.".format(**rows[0])
        )
    targets = ", ".join(f"{measures[kind]} {most:.2f}" for kind, most in TARGETS.items())
    notes.append(
        f"- Targets: {targets}, compile {TENSORFLOW_TARGETS['compile']:.2f} on TensorFlow; "
        "a ratio above its target is in bold."
    )
    header = ("backend", "mean-field against", "depth", *measures.values())
    return "\n".join([markdown.table(header, lines), "", *notes])


def _cell(row: dict[str, str] | None) -> str:
    if row is None:
        return ""
    text = f"{float(row['ratio']):.2f}"
    return f"**{text}**" if row["met"] == "no" else text


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    harness.quiet()
    parser = harness.parser("Mean-field ResNets against plain Keras layers.", rounds=5, steps=2)
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 56, 110], choices=DEPTHS)
    parser.add_argument(
        "--compile-repeats", type=harness.positive, default=2, help="networks built per side"
    )
    parser.add_argument(
        "--dtype-policy", default="float32", choices=["float32", "mixed_bfloat16", "mixed_float16"]
    )
    options = parser.parse_args(arguments)

    harness.limit_threads(options.threads)
    import keras

    keras.config.set_dtype_policy(options.dtype_policy)
    keras.utils.set_random_seed(0)
    shared = harness.circumstances(options.batch, options.threads)
    output = options.output or harness.RESULTS / f"train_step-{shared['backend']}.csv"
    warm_up(options.batch)
    rows = [
        row
        for depth in options.depths
        for row in measure(
            depth,
            options.batch,
            options.rounds,
            options.steps,
            options.compile_repeats,
            options.dtype_policy,
        )
    ]
    harness.report(rows, shared, output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
