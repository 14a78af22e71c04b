"""`python -m benchmarks.deployment`: the folded network and its exports against plain Keras.

Sides, one network with the same weights (but for PyTorch's, which are random), in one process, each
compared with *plain Keras*, the network in Keras's own layers, not folded:

- *folded*: `mf_zoo.deploy.fold` of `MFResNet20`, ...;
- *onnxruntime* and *LiteRT*: the folded network exported by `mf_zoo.deploy.export`;
- *mean-field*: the network as trained;
- *torch eager*: the same architecture of the package `pytorchcv`, in `torch.inference_mode()`.

`predict` is `model.predict` over 128 images at batch 1, or 512 at batch 128, and for the other
runtimes a loop over the same batches; `on batch` is one batch (`predict_on_batch`). All outputs
arrive as NumPy arrays. Seconds are those of one image.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import harness
from mf_zoo import files, markdown

FOLDED, PLAIN = "folded", "plain Keras"
EXPORTED = (FOLDED, "onnxruntime", "LiteRT")
TARGET = 1 / 1.5  # of plain Keras's time by `predict`, for what is folded
BATCHES = (1, 128)
IMAGES = {1: 128, 128: 512}  # in a call of `predict`
DEPTHS = (20, 56, 110)


def networks(depth: int) -> dict[str, Any]:
    """The Keras models: folded, plain and mean-field, with the same weights."""
    from benchmarks.plain_resnet import plain_resnet
    from benchmarks.train_step import copy_weights
    from mf_zoo import applications, deploy

    ours = applications.get(f"MFResNet{depth}")(classifier_activation=None)
    plain = plain_resnet(depth)
    copy_weights(ours, plain)
    return {FOLDED: deploy.fold(ours), PLAIN: plain, "mean-field": ours}


def runtimes(ours: Any, depth: int, folder: Path, threads: int | None) -> dict[str, Callable]:
    """Functions from a batch of images to scores, in other runtimes."""
    import onnxruntime
    import torch
    from ai_edge_litert.interpreter import Interpreter
    from pytorchcv.models.resnet_cifar import get_resnet_cifar

    from mf_zoo import deploy

    deploy.export(ours, folder / "model.onnx", "onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    # Its idle threads would spin while the others are measured.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        folder / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name

    deploy.export(ours, folder / "model.tflite", "litert")
    interpreter = Interpreter(str(folder / "model.tflite"), num_threads=threads)
    index = interpreter.get_input_details()[0]["index"]
    scores = interpreter.get_output_details()[0]["index"]
    interpreter.allocate_tensors()

    def litert(batch: Any) -> Any:
        if tuple(interpreter.get_input_details()[0]["shape"]) != batch.shape:
            interpreter.resize_tensor_input(index, batch.shape)
            interpreter.allocate_tensors()
        interpreter.set_tensor(index, batch)
        interpreter.invoke()
        return interpreter.get_tensor(scores)

    module = get_resnet_cifar(num_classes=10, blocks=depth, bottleneck=False).eval()

    def eager(batch: Any) -> Any:
        with torch.inference_mode():
            # A view: PyTorch then computes with channels last, as the images come.
            return module(torch.from_numpy(batch).permute(0, 3, 1, 2)).numpy()

    return {
        "onnxruntime": lambda batch: session.run(None, {name: batch})[0],
        "LiteRT": litert,
        "torch eager": eager,
    }


def check_equal(outputs: dict[str, Any]) -> None:
    """Raises AssertionError unless all sides with the same weights give the same scores."""
    import numpy as np

    expected = outputs[PLAIN]
    for name, received in outputs.items():
        if name != "torch eager":
            np.testing.assert_allclose(
                received, expected, rtol=0, atol=1e-4 * np.abs(expected).max(), err_msg=name
            )


def measure(
    depth: int, rounds: int, steps: int, threads: int | None, batches: tuple[int, ...] = BATCHES
) -> list[harness.Comparison]:
    """Measures one depth: all sides against plain Keras."""
    models = networks(depth)
    with tempfile.TemporaryDirectory() as folder:
        others = runtimes(models["mean-field"], depth, Path(folder), threads)
        return [
            row
            for batch in batches
            for row in _measure_batch(depth, batch, rounds, steps, models, others)
        ]


def _measure_batch(
    depth: int,
    batch: int,
    rounds: int,
    steps: int,
    models: dict[str, Any],
    others: dict[str, Callable],
) -> list[harness.Comparison]:
    images = harness.images_and_labels(IMAGES[batch])[0].astype("float32")
    parts = [images[i : i + batch] for i in range(0, len(images), batch)]
    runs = {name: model.predict_on_batch for name, model in models.items()} | others
    check_equal({name: run(parts[0]) for name, run in runs.items()})
    predict = {
        name: lambda model=model: model.predict(images, batch_size=batch, verbose=0)
        for name, model in models.items()
    } | {name: lambda run=run: [run(part) for part in parts] for name, run in others.items()}
    one = {name: lambda run=run: run(parts[0]) for name, run in runs.items()}
    rows = []
    for kind, sides, count, calls in (
        ("predict", predict, len(images), steps),
        ("on batch", one, batch, steps * (10 if batch == 1 else 1)),
    ):
        harness.say(f"ResNet-{depth}, batch {batch}: {kind}")
        harness.interleave(sides, 1, 1)
        taken = harness.interleave(sides, rounds, calls)
        seconds = {name: [value / count for value in values] for name, values in taken.items()}
        rows += [
            harness.compare(
                seconds,
                name,
                PLAIN,
                depth=depth,
                measure=f"{kind}, batch {batch}",
                policy="float32",
                target=TARGET if kind == "predict" and name in EXPORTED else None,
            )
            for name in seconds
            if name != PLAIN
        ]
    return rows


def readme_table(results: Path = harness.RESULTS) -> str:
    """The committed results as a Markdown table: how many times as fast as plain Keras.

    Args:
        results: Folder of the `deployment-*.csv`.
    """
    header: list[str] = []
    lines = []
    notes = []
    for path in sorted(results.glob("deployment-*.csv")):
        rows = files.read_rows(path)
        sides = list(dict.fromkeys(row["side"] for row in rows))
        header = header or ["backend", "depth", "measure", *sides]
        for depth, kind in dict.fromkeys((row["depth"], row["measure"]) for row in rows):
            found = {
                row["side"]: row for row in rows if (row["depth"], row["measure"]) == (depth, kind)
            }
            cells = [_cell(found[side]) for side in sides]
            lines.append([rows[0]["backend"], depth, kind, *cells])
        notes.append("- {backend}: float32, {machine}; {date}; {versions}.".format(**rows[0]))
    notes.append(
        f"- Target: {1 / TARGET:.1f} times plain Keras by `predict` for {', '.join(EXPORTED)}; "
        "what misses it is in bold."
    )
    return "\n".join([markdown.table(header, lines), "", *notes])


def _cell(row: dict[str, str]) -> str:
    text = f"{1 / float(row['ratio']):.2f}"
    return f"**{text}**" if row["met"] == "no" else text


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    harness.quiet()
    parser = harness.parser(
        "The folded network and its exports against plain Keras.", 5, 3, batch=None
    )
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 56], choices=DEPTHS)
    options = parser.parse_args(arguments)

    harness.limit_threads(options.threads)
    import keras
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    keras.utils.set_random_seed(0)
    others = ("torch", "onnxruntime", "ai-edge-litert", "pytorchcv")
    shared = harness.circumstances(BATCHES, options.threads, *others)
    output = options.output or harness.RESULTS / f"deployment-{shared['backend']}.csv"
    rows = [
        row
        for depth in options.depths
        for row in measure(depth, options.rounds, options.steps, options.threads)
    ]
    harness.report(rows, shared, output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
