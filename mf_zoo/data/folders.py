"""Datasets that are folders of image files."""

import hashlib
from pathlib import Path

from mf_zoo.data.datasets import Dataset
from mf_zoo.data.errors import DatasetCorruptError, DatasetUnavailableError
from mf_zoo.data.files import ImageFileError, image_files


def labelled_files(dataset: Dataset, split: str, data_dir: Path | None) -> list[tuple[Path, int]]:
    """The image files of `data_dir/<name>/<split>/<class>/` with their labels.

    They come in an order that follows from their names alone and mixes the classes, so that the
    first or last images of a split are a sample of it.

    Args:
        dataset: The record.
        split: `"train"` or `"test"`.
        data_dir: The folder in which the dataset's own folder lies.

    Raises:
        DatasetUnavailableError: If there is no such folder.
        DatasetCorruptError: If the folders in it are not those of the classes, or hold no image.
    """
    if data_dir is None:
        raise DatasetUnavailableError(
            f"`data_dir` must be the folder that holds {dataset.name}/, a folder of images. "
            "Received: data_dir=None"
        )
    folder = data_dir / dataset.name / dataset.splits.get(split, split)
    if not folder.is_dir():
        raise DatasetUnavailableError(
            f"{dataset.name} must lie in {folder}, with a folder of image files for each class, or "
            f"in {data_dir / dataset.name}.npz (arrays train_image, train_label, test_image, "
            f"test_label). Received: name={dataset.name!r}, data_dir={str(data_dir)!r}"
        )
    wanted = dataset.class_folders or dataset.class_names
    present = {
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    }
    if present != set(wanted):
        missing, unknown = sorted(set(wanted) - present), sorted(present - set(wanted))
        raise DatasetCorruptError(
            f"{folder} must hold a folder for each of the {dataset.classes} classes and no other. "
            f"Received: missing {missing[:5]}, unknown {unknown[:5]}"
        )
    found = []
    for label, name in enumerate(wanted):
        try:
            files = image_files([folder / name])
        except ImageFileError:  # a class without images in this split
            continue
        found += [(file, label) for file in files]
    if not found:
        raise DatasetCorruptError(f"{folder} must hold image files. Received: none")
    return sorted(found, key=lambda item: _digest(item[0].relative_to(folder)))


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.as_posix().encode(errors="surrogateescape")).digest()
