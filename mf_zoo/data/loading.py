"""A dataset as NumPy arrays, from an .npz file, tensorflow-datasets or folders of image files."""

import io
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mf_zoo.data import datasets
from mf_zoo.data.arrays import Header, load_npz
from mf_zoo.data.datasets import Dataset
from mf_zoo.data.errors import DatasetCorruptError, DatasetUnavailableError
from mf_zoo.data.files import fitted, open_image
from mf_zoo.data.folders import labelled_files
from mf_zoo.data.prepared import image_and_label, import_tfds

_SPLIT_PATTERN = re.compile(r"(?P<split>\w+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")
_IMAGES = 1000  # images of a chunk, but of one from an .npz file, which holds all


class Chunk(NamedTuple):
    """Some images of a dataset, their labels and, where the record names one, their order."""

    origin: str
    images: np.ndarray
    labels: np.ndarray
    order: np.ndarray | None = None


def load(
    name: str | Dataset,
    split: str,
    data_dir: str | os.PathLike | None = None,
    download: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Load a split of a dataset into memory.

    The images of CIFAR-10 and CIFAR-100 come in the official order (that of the authors' batch
    files), whatever they are read from, so the same split is the same array everywhere. Those of
    other datasets come in the order of the `.npz` file or of what tensorflow-datasets has prepared;
    image files in folders in one that mixes the classes and follows from their names.

    Args:
        name: Name of the dataset, one of `mf_zoo.data.names()`, or a record of one that is not
            registered.
        split: `"train"` or `"test"`, or a slice of one: a start and a stop, each a number of images
            or a percentage, either left out or negative as in Python. Of CIFAR, with 50,000
            training images, `"train[:45000]"` and `"train[45000:]"` are the usual training and
            validation sets; `"test[:10%]"`.
        data_dir: A folder that holds `<name>.npz` (arrays `train_image`, `train_label`,
            `test_image`, `test_label`; read with NumPy alone), or a folder of
            tensorflow-datasets, or the folder in which the folder of a dataset of image files lies.
            `None` is the default folder of tensorflow-datasets, `~/tensorflow_datasets`.
        download: Whether tensorflow-datasets may download what is not prepared in `data_dir`.

    Returns:
        `(images, labels)`: uint8 `(N, height, width, channels)` of the dataset's image shape, RGB
        if in colour, and int64 `(N,)`.

    Raises:
        ValueError: If `name` or `split` names nothing there is, or the slice is empty or
            reaches beyond the split.
        DatasetUnavailableError: If the data is not there and cannot be downloaded.
        DatasetCorruptError: If the data is there but damaged, or not what the record says.

    Example:

    ```python
    images, labels = mf_zoo.data.load("cifar10", "train[:45000]")
    ```
    """
    dataset = name if isinstance(name, Dataset) else datasets.get(name)
    base, start, stop = parse_split(split)
    chunks = list(read_chunks(dataset, base, data_dir, download))
    images, labels = _joined(chunk.images for chunk in chunks), _joined(c.labels for c in chunks)
    if chunks[0].order is not None:
        order = np.argsort(_joined(chunk.order for chunk in chunks), kind="stable")
        images, labels = images[order], labels[order]
    window = resolve_slice(split, start, stop, len(images))
    return images[window], labels[window]


def read_chunks(
    dataset: Dataset, split: str, data_dir: str | os.PathLike | None, download: bool
) -> Iterator[Chunk]:
    """Reads a split in chunks, in the order of its files.

    Args:
        dataset: The record.
        split: `"train"` or `"test"`.
        data_dir, download: See `load`.

    Yields:
        Chunks, one at least, with images of the shape that the record says.
    """
    folder = None if data_dir is None else Path(data_dir).expanduser()
    if folder is not None and (folder / f"{dataset.name}.npz").is_file():
        chunks = _read_npz(dataset, split, folder / f"{dataset.name}.npz")
    elif dataset.kind == "folder":
        chunks = _read_folder(dataset, split, folder)
    else:
        chunks = _read_tfds(dataset, split, folder, download)
    for chunk in chunks:
        check_chunk(dataset, chunk)
        yield chunk._replace(labels=chunk.labels.astype("int64"))


def _joined(arrays: Iterator[np.ndarray]) -> np.ndarray:
    first, *others = arrays
    return np.concatenate([first, *others]) if others else first


def parse_split(split: str) -> tuple[str, str | None, str | None]:
    """`"train[:10%]"` -> `("train", None, "10%")`."""
    match = _SPLIT_PATTERN.fullmatch(split) if isinstance(split, str) else None
    if match is None or match["split"] not in datasets.SPLITS:
        raise ValueError(
            f"`split` must be one of {', '.join(datasets.SPLITS)}, or a slice of one such as "
            f"'train[:45000]', 'train[45000:]' or 'train[-10%:]'. Received: split={split!r}"
        )
    return match["split"], match["start"], match["stop"]


def resolve_slice(split: str, start: str | None, stop: str | None, count: int) -> slice:
    """The slice of `count` images meant by two bounds (`None`, `"450"`, `"-10%"` ...)."""

    def resolve(bound: str | None, default: int) -> int:
        if bound is None:
            return default
        value = int(bound.rstrip("%"))
        if bound.endswith("%"):
            value = round(value * count / 100)
        return value + count if bound.startswith("-") else value

    first, last = resolve(start, 0), resolve(stop, count)
    if not 0 <= first < last <= count:
        raise ValueError(
            f"`split` must select at least one image and only images that are there: "
            f"{split!r} is images {first} to {last} of {count}. Received: split={split!r}"
        )
    return slice(first, last)


def _read_npz(dataset: Dataset, split: str, path: Path) -> Iterator[Chunk]:
    images, labels = load_npz(
        path,
        (f"{split}_image", f"{split}_label"),
        lambda headers: check_layout(dataset, str(path), *headers),
    )
    yield Chunk(str(path), images, labels)


def check_layout(
    dataset: Dataset, origin: str, images: Header | np.ndarray, labels: Header | np.ndarray
) -> None:
    """Raises DatasetCorruptError unless types and shapes are as the record says."""
    if (
        images.dtype != np.uint8
        or images.shape[1:] != dataset.image_shape
        or labels.shape != images.shape[:1]
        or labels.dtype.kind not in "iu"
    ):
        shape = ", ".join(map(str, dataset.image_shape))
        raise DatasetCorruptError(
            f"{origin} must hold uint8 images (N, {shape}) and integer labels (N,). Received: "
            f"images {images.dtype} {images.shape}, labels {labels.dtype} {labels.shape}"
        )


def check_chunk(dataset: Dataset, chunk: Chunk) -> None:
    """Raises DatasetCorruptError unless images and labels are as the record says."""
    origin, images, labels, _ = chunk
    check_layout(dataset, origin, images, labels)
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < dataset.classes:
        raise DatasetCorruptError(
            f"{origin} must hold labels from 0 to {dataset.classes - 1}. "
            f"Received: labels from {labels.min()} to {labels.max()}"
        )


def _read_folder(dataset: Dataset, split: str, folder: Path | None) -> Iterator[Chunk]:
    files = labelled_files(dataset, split, folder)
    for start in range(0, len(files), _IMAGES):
        paths, labels = zip(*files[start : start + _IMAGES], strict=True)
        images = np.stack([_decoded(dataset, path) for path in paths])
        yield Chunk(str(folder), images, np.array(labels))


def _read_tfds(
    dataset: Dataset, split: str, folder: Path | None, download: bool
) -> Iterator[Chunk]:
    tfds, builder = _builder(dataset, folder, download)
    image_and_label(builder, dataset.image_feature, dataset.label_feature)
    names = [dataset.image_feature, dataset.label_feature]
    if dataset.order_feature is not None:
        names.append(dataset.order_feature)
    read = _read_arrays if builder.info.file_format.value == "array_record" else _read_tensors
    empty = True
    try:
        for columns in read(tfds, builder, dataset, dataset.splits.get(split, split), names):
            empty = False
            yield Chunk(str(builder.data_path), *columns)
    except Exception as error:
        raise DatasetCorruptError(
            f"the prepared folder {builder.data_path} must be readable by tensorflow-datasets; "
            f"delete it and prepare it again. Received: {type(error).__name__}: {error}"
        ) from error
    if empty:
        raise DatasetCorruptError(
            f"the prepared folder {builder.data_path} must hold images of {split}. Received: none"
        )


def _read_tensors(
    tfds: Any, builder: Any, dataset: Dataset, split: str, names: list[str]
) -> Iterator[list[np.ndarray]]:
    """Chunks of TFRecord files: the features `names`, of which the image is the first."""
    fits = builder.info.features[names[0]].shape == dataset.image_shape
    decoders = None if fits else {names[0]: tfds.decode.SkipDecoding()}
    source = builder.as_dataset(
        split=split,
        batch_size=_IMAGES,
        shuffle_files=False,
        decoders=tfds.decode.PartialDecoding(dict.fromkeys(names, True), decoders=decoders),
        read_config=tfds.ReadConfig(interleave_cycle_length=1),
    )
    for chunk in tfds.as_numpy(source):
        images, *others = (chunk[name] for name in names)
        if not fits:
            images = np.stack([_decoded(dataset, io.BytesIO(content)) for content in images])
        yield [images, *others]


def _read_arrays(
    tfds: Any, builder: Any, dataset: Dataset, split: str, names: list[str]
) -> Iterator[list[np.ndarray]]:
    """The same of ArrayRecord files."""
    source = builder.as_data_source(split=split, decoders={names[0]: tfds.decode.SkipDecoding()})
    for start in range(0, len(source), _IMAGES):
        chunk = [source[k] for k in range(start, min(start + _IMAGES, len(source)))]
        images = [_decoded(dataset, io.BytesIO(record[names[0]])) for record in chunk]
        yield [np.stack(images), *(np.array([r[name] for r in chunk]) for name in names[1:])]


def _decoded(dataset: Dataset, file: Any) -> np.ndarray:
    rows, columns, channels = dataset.image_shape
    with open_image(file, channels, (rows, columns)) as image:
        return fitted(image, (rows, columns)).reshape(dataset.image_shape)


def _builder(dataset: Dataset, folder: Path | None, download: bool) -> tuple[Any, Any]:
    """tensorflow-datasets and its builder of the dataset, which is prepared."""
    try:
        tfds = import_tfds()
    except ImportError as error:
        raise DatasetUnavailableError(
            _how_to_get(dataset, folder, "tensorflow-datasets is not installed")
        ) from error
    try:
        builder = tfds.builder(dataset.tfds_name or dataset.name, data_dir=folder)
        if not builder.is_prepared():
            reason = "it is not prepared, and "
            if not download:
                raise DatasetUnavailableError(
                    _how_to_get(dataset, folder, reason + "download=False")
                )
            if dataset.server is not None and not _answers(dataset.server):
                reason += f"{dataset.server} does not answer"
                raise DatasetUnavailableError(_how_to_get(dataset, folder, reason))
            builder.download_and_prepare()
    except DatasetUnavailableError:
        raise
    except Exception as error:  # of the network, the server, the disk: tfds raises many kinds
        reason = f"preparing it failed with {type(error).__name__}: {error}"
        raise DatasetUnavailableError(_how_to_get(dataset, folder, reason)) from error
    return tfds, builder


def _answers(server: str) -> bool:
    """Whether the server of the archives can be reached (through the proxy there may be).

    tensorflow-datasets would try for more than three minutes before it gave up.
    """
    request = urllib.request.Request(server, method="HEAD")
    try:
        urllib.request.build_opener().open(request, timeout=10).close()
    except urllib.error.HTTPError:  # an answer
        return True
    except urllib.error.URLError as error:
        # A certificate unknown to the standard library may be known to tensorflow-datasets.
        return isinstance(error.reason, ssl.SSLError)
    except TimeoutError:
        return False
    return True


def _how_to_get(dataset: Dataset, folder: Path | None, reason: str) -> str:
    name = dataset.name
    where = "the default tensorflow-datasets folder" if folder is None else str(folder)
    return (
        f"{name} is not available in {where}: {reason}. Two ways out: (1) with a network and "
        "tensorflow-datasets installed, leave download=True and it is downloaded once; "
        f"(2) without, pass data_dir, a folder that holds either {name}.npz (arrays train_image, "
        "train_label, test_image, test_label) or a folder prepared by tensorflow-datasets. "
        f"Received: name={name!r}, data_dir={None if folder is None else str(folder)!r}"
    )
