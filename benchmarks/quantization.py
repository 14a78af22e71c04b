"""`python -m benchmarks.quantization --data-dir D`: LiteRT in int8 against LiteRT in float32.

Each network is exported twice by `mf_zoo.deploy.export`, int8 with its default images for
calibration, which are not those of `D` but the embedded ones. Both files classify all test images
of `D`. Then both run batches of real images in turn.
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness
from mf_zoo import files, markdown

DATASETS = ("cifar10", "cifar100")
BATCHES = (1, 128)
OUTPUT = harness.RESULTS / "quantization.csv"


@dataclass(frozen=True)
class Quantized:
    """An int8 file against the float32 file of the same network.

    Attributes:
        model, dataset: Name of the network and its pretrained weights.
        digest: Of the weights, as `harness.digest` gives it.
        float32_bytes, int8_bytes: Sizes of the files.
        float32_error, int8_error: Test errors in percent.
        agreement: Percentage of test images for which both name the same class.
        float32_single, int8_single: Seconds of one image, at batch 1.
        single_ratio: `int8_single / float32_single`, the median over rounds.
        float32_batch, int8_batch, batch_ratio: The same at batch 128, still of one image.
    """

    model: str
    dataset: str
    digest: str
    float32_bytes: int
    int8_bytes: int
    float32_error: float
    int8_error: float
    agreement: float
    float32_single: float
    int8_single: float
    single_ratio: float
    float32_batch: float
    int8_batch: float
    batch_ratio: float


def runner(path: Path, threads: int | None) -> Callable[[Any], Any]:
    """A function from a batch of images to probabilities, by LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(str(path), num_threads=threads).get_signature_runner()
    (name,) = run.get_input_details()

    def outputs(batch: Any) -> Any:
        (found,) = run(**{name: batch}).values()
        return found

    return outputs


def predictions(run: Callable[[Any], Any], images: Any) -> Any:
    """The most probable class of each image."""
    import numpy as np

    parts = [images[i : i + 100].astype("float32") for i in range(0, len(images), 100)]
    return np.concatenate([run(part).argmax(1) for part in parts])


def measure(
    model: str, dataset: str, images: Any, labels: Any, options: Any, folder: Path
) -> Quantized:
    """Measures one network.

    Args:
        model, dataset: Names of the network and of its pretrained weights.
        images, labels: What the errors are measured on.
        options: `rounds`, `steps`, `threads` and `clock`.
        folder: Where the two files go.
    """
    from mf_zoo import applications, deploy

    network = applications.get(model)(weights=dataset)
    paths = {name: folder / f"{model}-{dataset}-{name}.tflite" for name in ("float32", "int8")}
    deploy.export(network, paths["float32"], "litert")
    deploy.export(network, paths["int8"], "litert", quantize="int8")
    runs = {name: runner(path, options.threads) for name, path in paths.items()}
    classes = {name: predictions(run, images) for name, run in runs.items()}
    times = {}
    for batch in BATCHES:
        part = harness.images_and_labels(batch)[0].astype("float32")
        sides = {name: lambda run=run, part=part: run(part) for name, run in runs.items()}
        harness.interleave(sides, 1, 1)
        steps = options.steps * (10 if batch == 1 else 1)
        times[batch] = harness.interleave(
            sides, options.rounds, steps, harness.CLOCKS[options.clock]
        )
    rows = [
        harness.compare(
            {name: [value / batch for value in values] for name, values in times[batch].items()},
            "int8",
            "float32",
            depth=0,
            measure="",
            policy="",
        )
        for batch in BATCHES
    ]
    return Quantized(
        model=model,
        dataset=dataset,
        digest=harness.digest(model, dataset),
        float32_bytes=paths["float32"].stat().st_size,
        int8_bytes=paths["int8"].stat().st_size,
        float32_error=100 * float((classes["float32"] != labels).mean()),
        int8_error=100 * float((classes["int8"] != labels).mean()),
        agreement=100 * float((classes["int8"] == classes["float32"]).mean()),
        float32_single=rows[0].baseline_seconds,
        int8_single=rows[0].side_seconds,
        single_ratio=rows[0].ratio,
        float32_batch=rows[1].baseline_seconds,
        int8_batch=rows[1].side_seconds,
        batch_ratio=rows[1].ratio,
    )


def readme_table(path: Path = OUTPUT) -> str:
    """The committed results as a Markdown table."""
    rows = files.read_rows(path)
    header = [
        "network",
        "weights",
        "kB, float32",
        "kB, int8",
        "test error %, float32",
        "test error %, int8",
        "same class %",
        "times as fast, batch 1",
        "times as fast, batch 128",
    ]
    lines = [
        [
            f"`{row['model']}`",
            f"`'{row['dataset']}'`",
            *(str(round(int(row[f"{kind}_bytes"]) / 1000)) for kind in ("float32", "int8")),
            *(f"{float(row[f'{kind}_error']):.2f}" for kind in ("float32", "int8")),
            f"{float(row['agreement']):.2f}",
            *(f"{1 / float(row[f'{kind}_ratio']):.1f}" for kind in ("single", "batch")),
        ]
        for row in rows
    ]
    note = "- {machine}; {date}; {versions}.".format(**rows[0])
    return "\n".join([markdown.table(header, lines), "", note])


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    harness.quiet()
    parser = harness.parser("LiteRT in int8 against LiteRT in float32.", 5, 3, batch=None)
    harness.add_clock(parser)
    parser.add_argument("--data-dir", required=True, help="holds cifar10.npz, cifar100.npz, ...")
    parser.add_argument("--model", default="MFResNet20")
    parser.add_argument("--datasets", nargs="+", default=DATASETS, choices=DATASETS)
    options = parser.parse_args(arguments)

    from mf_zoo import data

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for dataset in options.datasets:
            harness.say(f"{options.model}, {dataset}")
            images, labels = data.load(dataset, "test", options.data_dir)
            rows.append(measure(options.model, dataset, images, labels, options, Path(folder)))
            print(rows[-1], flush=True)
    shared = harness.circumstances(BATCHES, options.threads, "ai-edge-litert", "ai-edge-quantizer")
    output = options.output or OUTPUT
    harness.write_csv(output, rows, shared)
    print(f"written to {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
