"""`python -m benchmarks.robustness --data-dir D`: corrupted images and calibration.

Test images are corrupted anew in the ways of CIFAR-10-C that NumPy, SciPy and Pillow can do, 8 of
its 15, with the strengths of its authors' `make_cifar_c.py` (the others need OpenCV, ImageMagick or
photographs of frost). They are written as `mf_zoo.data.load_corrupted` reads the authors' own files
and the shipped networks are measured on them. The random numbers are not those of the authors, so
errors are close to those on CIFAR-10-C, not equal.

Then a temperature is fitted to each network on the first half of the test images, and calibration
is measured on the second.
"""

import argparse
import io
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness
from mf_zoo import files, markdown

NETWORKS = ("MFResNet20", "ResNet20")
DATASETS = ("cifar10", "cifar100")
SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Corrupted:
    """The errors of one network on one corruption, in %: a row of the CSV file."""

    dataset: str
    network: str
    digest: str
    corruption: str
    severity_1: float
    severity_2: float
    severity_3: float
    severity_4: float
    severity_5: float
    mean: float


@dataclass(frozen=True)
class Calibrated:
    """One network with and without its temperature: a row of the other CSV file.

    Attributes:
        dataset, network: What was measured.
        digest: Of the weights, as `harness.digest` gives it.
        error: In %, on the second half of the images.
        temperature: Fitted on the first half.
        nll, calibrated_nll: Negative log-likelihood without and with it.
        ece, calibrated_ece: Expected calibration error in %, likewise.
    """

    dataset: str
    network: str
    digest: str
    error: float
    temperature: float
    nll: float
    calibrated_nll: float
    ece: float
    calibrated_ece: float


# What follows maps float64 images (N, 32, 32, 3) in 0..1 and a strength to the same, not clipped.


def _gaussian_noise(x: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    return x + rng.normal(scale=deviation, size=x.shape)


def _shot_noise(x: np.ndarray, photons: float, rng: np.random.Generator) -> np.ndarray:
    return rng.poisson(x * photons) / photons


def _impulse_noise(x: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Salt and pepper: some values become 0 or 1."""
    return np.where(rng.random(x.shape) < share, rng.integers(0, 2, x.shape), x)


def _zoom_blur(x: np.ndarray, most: float, rng: np.random.Generator) -> np.ndarray:
    """The mean of the image and of itself at zooms 1, 1.01, ... below `most`."""
    from scipy import ndimage

    side, zooms = x.shape[1], np.arange(1, most, 0.01)
    total = x.copy()
    for zoom in zooms:
        kept = int(np.ceil(side / zoom))
        start = (side - kept) // 2
        window = x[:, start : start + kept, start : start + kept]
        zoomed = ndimage.zoom(window, (1, zoom, zoom, 1), order=1)
        trim = (zoomed.shape[1] - side) // 2
        total += zoomed[:, trim : trim + side, trim : trim + side]
    return total / (len(zooms) + 1)


def _brightness(x: np.ndarray, added: float, rng: np.random.Generator) -> np.ndarray:
    """Adds to the value of hue, saturation, value: scales the three channels alike."""
    value = x.max(axis=-1, keepdims=True)
    brighter = np.clip(value + added, 0, 1)
    return np.where(value > 0, x * brighter / np.where(value > 0, value, 1), brighter)


def _contrast(x: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    means = x.mean(axis=(1, 2), keepdims=True)
    return (x - means) * factor + means


def _pixelate(x: np.ndarray, scale: float, rng: np.random.Generator) -> np.ndarray:
    from PIL import Image

    def one(image: Any) -> Any:
        small = (int(image.width * scale), int(image.height * scale))
        box = Image.Resampling.BOX
        return image.resize(small, box).resize(image.size, box)

    return _by_pillow(x, one)


def _jpeg(x: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    from PIL import Image

    def one(image: Any) -> Any:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(quality))
        return Image.open(file)

    return _by_pillow(x, one)


def _by_pillow(x: np.ndarray, function: Callable[[Any], Any]) -> np.ndarray:
    from PIL import Image

    images = np.uint8(np.round(x * 255))
    return np.stack([np.asarray(function(Image.fromarray(image))) for image in images]) / 255


# By name in CIFAR-10-C: the function, and its strength at the severities 1 to 5, which are those of
# make_cifar_c.py in hendrycks/robustness.
WAYS: dict[str, tuple[Callable[..., np.ndarray], tuple[float, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (_shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "zoom_blur": (_zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (_jpeg, (80, 65, 58, 50, 40)),
}


def corrupt(images: np.ndarray, corruption: str, severity: int, seed: int = 0) -> np.ndarray:
    """Corrupts images as CIFAR-10-C does.

    Args:
        images: uint8 `(N, 32, 32, 3)`.
        corruption: One of `WAYS`.
        severity: 1 to 5.
        seed: Of what is random.

    Returns:
        The same, rounded down like the authors'.
    """
    function, strengths = WAYS[corruption]
    rng = np.random.default_rng([seed, severity])
    corrupted = function(images / 255, strengths[severity - 1], rng)
    # A hair more, so that values that were whole stay so.
    return np.uint8(np.clip(corrupted, 0, 1) * 255 + 1e-9)


def write(folder: Path, title: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Writes corrupted images as the authors' files are: the severities one after the other.

    Args:
        folder: A data_dir.
        title: Title of the dataset, such as `"CIFAR-10"`.
        images: The test images, uint8 `(N, 32, 32, 3)`.
        labels: Their classes.
    """
    parent = folder / f"{title}-C"
    parent.mkdir(parents=True)
    np.save(parent / "labels.npy", np.tile(labels, len(SEVERITIES)))
    for corruption in WAYS:
        made = [corrupt(images, corruption, severity) for severity in SEVERITIES]
        np.save(parent / f"{corruption}.npy", np.concatenate(made))


def calibrated(dataset: str, network: str, logs: np.ndarray, labels: np.ndarray) -> Calibrated:
    """Fits a temperature on the first half of the images and measures the second.

    Args:
        dataset, network: Their names.
        logs: Logarithms of the predicted probabilities, `(N, classes)`.
        labels: The right classes.
    """
    from mf_zoo.training.calibration import calibrate

    temperature, plain, divided = calibrate(logs, labels, len(labels) // 2)
    return Calibrated(
        *(dataset, network, harness.digest(network, dataset), plain.error, temperature),
        *(plain.nll, divided.nll, plain.ece, divided.ece),
    )


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The errors by corruption: for each network the mean over severities."""
    by_cell = {
        (row["corruption"], row["dataset"], row["network"]): float(row["mean"]) for row in rows
    }
    corruptions = list(dict.fromkeys(key[0] for key in by_cell))
    sides = list(dict.fromkeys(key[1:] for key in by_cell))
    lines = [[name, *(f"{by_cell[name, *side]:.2f}" for side in sides)] for name in corruptions]
    means = [np.mean([by_cell[name, *side] for name in corruptions]) for side in sides]
    lines.append(["**mean**", *(f"**{mean:.2f}**" for mean in means)])
    header = [f"`{network}`, {dataset}" for dataset, network in sides]
    return markdown.table(["corruption", *header], lines)


def calibration_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Calibration with and without the temperature."""
    header = ["network", "dataset", "temperature", "NLL", "with it", "ECE, %", "with it"]
    keys = ("temperature", "nll", "calibrated_nll", "ece", "calibrated_ece")
    lines = [
        [f"`{row['network']}`", row["dataset"], *(f"{float(row[key]):.3f}" for key in keys)]
        for row in rows
    ]
    return markdown.table(header, lines)


def readme_table() -> str:
    """The committed errors as a table with its circumstances."""
    rows = files.read_rows(harness.RESULTS / "robustness.csv")
    return (
        f"{table(rows)}\n\nErrors in %, means over five severities, of the first "
        f"{int(rows[0]['images']):,} test images; {rows[0]['date']}, {rows[0]['versions']}."
    )


def readme_calibration() -> str:
    """The committed calibration as a table."""
    rows = files.read_rows(harness.RESULTS / "calibration.csv")
    count = int(rows[0]["images"])
    return (
        f"{calibration_table(rows)}\n\nFitted on the first {count // 2:,} test images, measured on "
        f"the other {count - count // 2:,}; {rows[0]['date']}, {rows[0]['versions']}."
    )


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    harness.quiet()
    parser = argparse.ArgumentParser(description="Corrupted images and calibration.")
    parser.add_argument("--data-dir", type=Path, metavar="D", required=True)
    parser.add_argument("--limit", type=harness.positive, metavar="N", help="first N test images")
    parser.add_argument("--batch", type=harness.positive, default=500, help="images in a batch")
    parser.add_argument("--threads", type=harness.positive, metavar="N")
    parser.add_argument("--output", type=Path, metavar="DIR", default=harness.RESULTS)
    options = parser.parse_args(arguments)
    harness.limit_threads(options.threads)
    from mf_zoo import applications, data
    from mf_zoo.training import evaluate, evaluate_corruptions

    shared = harness.circumstances(options.batch, options.threads)
    errors: list[Corrupted] = []
    calibrations: list[Calibrated] = []
    for dataset in DATASETS:
        all_images, all_labels = data.load(dataset, "test", data_dir=options.data_dir)
        images, labels = all_images[: options.limit], all_labels[: options.limit]
        with tempfile.TemporaryDirectory() as folder:
            harness.say(f"corrupting {len(images)} images of {dataset}")
            write(Path(folder), data.get(dataset).title, images, labels)
            for name in NETWORKS:
                harness.say(f"{name} on {dataset}")
                network = applications.get(name)(weights=dataset, classifier_activation=None)
                found = evaluate_corruptions(
                    network, dataset, folder, list(WAYS), batch_size=options.batch
                )
                digest = harness.digest(name, dataset)
                errors += [
                    Corrupted(
                        *(dataset, name, digest, corruption),
                        *(*row.values(), found.means[corruption]),
                    )
                    for corruption, row in found.errors.items()
                ]
                clean = evaluate(network, all_images, all_labels, options.batch, from_logits=True)
                calibrations.append(calibrated(dataset, name, clean.log_probabilities, all_labels))
        counted = {**shared, "images": str(len(images))}
        harness.write_csv(options.output / "robustness.csv", errors, counted)
        counted["images"] = str(len(all_images))
        harness.write_csv(options.output / "calibration.csv", calibrations, counted)
    print(table(vars(row) for row in errors))
    print(calibration_table(vars(row) for row in calibrations))
    print(f"written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
