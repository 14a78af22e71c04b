"""The files of a stream: what tensorflow-datasets has prepared, or image files in folders."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

from mf_zoo.data.datasets import Dataset
from mf_zoo.data.errors import DatasetCorruptError, DatasetUnavailableError
from mf_zoo.data.folders import labelled_files
from mf_zoo.data.loading import parse_split, resolve_slice
from mf_zoo.data.prepared import image_and_label, import_tfds

FORMATS = {"tf": "tfrecord", "grain": "array_record"}  # the files that an engine reads


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A split that tensorflow-datasets has prepared, or a slice of one.

    Attributes:
        builder: The builder of tensorflow-datasets.
        backend: The engine that reads its files, `"tf"` or `"grain"`.
        split: The split as tensorflow-datasets writes it.
        total: Number of images of the split.
        image, label: Names of the features.
    """

    builder: Any
    backend: str
    split: str
    total: int
    image: str
    label: str

    @property
    def folder(self) -> str:
        """Where the files lie."""
        return str(self.builder.data_path)

    @property
    def image_shape(self) -> tuple[int | None, int | None, int]:
        """Height, width and channels; `None` where images differ."""
        return self.builder.info.features[self.image].shape

    @property
    def classes(self) -> int | None:
        """Number of classes, if the dataset knows it."""
        return self.builder.info.features[self.label].num_classes

    def pictures(self) -> Any:
        """The images and labels by number, for grain."""
        from mf_zoo.data.streaming.grain_reader import Records

        return Records(self.builder, self.split, self.image, self.label)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder:
    """A split of a dataset of image files, or a slice of one; attributes as those of `Prepared`."""

    files: list[tuple[Path, int]]
    folder: str
    channels: int
    classes: int
    backend: str = "grain"

    @property
    def total(self) -> int:
        return len(self.files)

    @property
    def image_shape(self) -> tuple[None, None, int]:
        return None, None, self.channels

    def pictures(self) -> Any:
        """The images and labels by number, for grain."""
        from mf_zoo.data.streaming.grain_reader import ImageFiles

        return ImageFiles(self.files, self.channels)


def open_folder(
    record: Dataset, split: str, data_dir: str | os.PathLike | None, backend: str
) -> Folder:
    """Finds the image files of a dataset of the kind `"folder"`; arguments as those of `stream`."""
    if backend == "tf":
        raise ValueError(
            f"`backend` must be 'auto' or 'grain' for {record.name}, which consists of image "
            "files. Received: backend='tf'"
        )
    _import_engine("grain")
    base, *bounds = parse_split(split)
    folder = None if data_dir is None else Path(data_dir).expanduser()
    files = labelled_files(record, base, folder)
    return Folder(
        files=files[resolve_slice(split, *bounds, len(files))],
        folder=str(folder),
        channels=record.image_shape[2],
        classes=record.classes,
    )


def open_prepared(
    name: str,
    record: Dataset | None,
    split: str,
    data_dir: str | os.PathLike | None,
    backend: str,
) -> Prepared:
    """Finds the prepared files of a dataset; arguments as those of `stream`.

    Args:
        record: That of the dataset, if it is registered.
    """
    features = ("image", "label")
    if record is not None:
        name = record.tfds_name or name
        features = record.image_feature, record.label_feature
        if record.splits:
            split = re.sub(r"\w+", lambda word: record.splits.get(word[0], word[0]), split)
    builder, backend = _builder(name, data_dir, backend)
    image, label = image_and_label(builder, *features)
    if record is not None:
        expected, found = (
            (record.image_shape[2], record.classes),
            (image.shape[2], label.num_classes),
        )
        if expected != found:
            raise DatasetCorruptError(
                f"{builder.data_path} must hold images of {expected[0]} channels and "
                f"{expected[1]} classes. Received: {found[0]} channels, {found[1]} classes"
            )
    return Prepared(
        builder=builder,
        backend=backend,
        split=split,
        total=_count(builder, split),
        image=features[0],
        label=features[1],
    )


def _builder(name: str, data_dir: str | os.PathLike | None, backend: str) -> tuple[Any, str]:
    """The prepared dataset, read from its files alone, and the engine that reads them."""
    try:
        from tensorflow_datasets.core import read_only_builder
    except ImportError as error:
        raise ImportError(
            f"Streams need tensorflow-datasets: pip install tensorflow-datasets. Received: {error}"
        ) from error
    folder = None if data_dir is None else os.path.expanduser(data_dir)
    how = (
        f"tfds.builder({name!r}, data_dir=...).download_and_prepare(file_format=...), "
        "'tfrecord' for backend='tf' or 'array_record' for 'grain', in a folder of its own"
    )
    try:
        builder = read_only_builder.builder_from_files(name, data_dir=folder)
        found = {kind.value for kind in builder.info.available_file_formats()}
    except Exception as error:  # of a name or a folder tfds raises many kinds
        raise DatasetUnavailableError(
            f"{name} must have been prepared by {how}. "
            f"Received: name={name!r}, data_dir={data_dir!r}: {error}"
        ) from error
    engines = [engine for engine, kind in FORMATS.items() if kind in found]
    if backend == "auto":
        backend = engines[-1] if engines else "tf"
    if backend not in engines:
        raise DatasetUnavailableError(
            f"backend={backend!r} reads files of the format {FORMATS[backend]}; prepare them by "
            f"{how}. Received: {', '.join(sorted(found))} in {builder.data_path}"
        )
    if builder.info.file_format.value != FORMATS[backend]:
        builder.info.set_file_format(FORMATS[backend], override=True, override_if_initialized=True)
    _import_engine(backend)
    return builder, backend


def _import_engine(backend: str) -> None:
    try:
        if backend == "tf":
            import_tfds()  # TensorFlow, off the accelerator where it only reads
        else:
            import grain  # noqa: F401
    except ImportError as error:
        package = {"tf": "tensorflow", "grain": "'mf_zoo[stream]'"}[backend]
        raise ImportError(
            f"backend={backend!r} needs more: pip install {package}. Received: {error}"
        ) from error


def _count(builder: Any, split: str) -> int:
    """The number of images of a split, all of whose files must be there."""
    try:
        total = builder.info.splits[split].num_examples
    except (ValueError, KeyError, AssertionError, TypeError) as error:
        raise ValueError(
            f"`split` must be one of {', '.join(builder.info.splits)}, or a slice of one such as "
            f"'train[:90%]'. Received: split={split!r}"
        ) from error
    files = {file.basename() for file in builder.info.splits[split].file_instructions}
    missing = sorted(files - {path.name for path in builder.data_path.iterdir()})
    if missing:
        raise DatasetCorruptError(
            f"{builder.data_path} must hold all {len(files)} files of {split}; prepare the "
            f"dataset again. Received: {len(missing)} missing, the first {missing[0]}"
        )
    return total
