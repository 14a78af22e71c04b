"""CIFAR-10 and CIFAR-100 as NumPy arrays, in the official order of the images."""

import os
import pathlib
import re
import ssl
import urllib.error
import urllib.request
import zipfile
import zlib

import numpy as np

from mf_zoo.errors import UserError

_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus "
    "butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch "
    "crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo "
    "keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse "
    "mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy "
    "porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television "
    "tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
_CLASS_NAMES = {"cifar10": tuple(_CIFAR10.split()), "cifar100": tuple(_CIFAR100.split())}
# Krizhevsky 2009, section 3.1; names and numbers are those of the official files.
_CIFAR100_SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
_SOURCE = "https://www.cs.toronto.edu/~kriz/"  # from where tensorflow-datasets downloads both
_SPLITS = ("train", "test")
_IMAGE_SHAPE = (32, 32, 3)
_SPLIT_PATTERN = re.compile(r"(?P<split>\w+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


class DatasetUnavailableError(UserError, FileNotFoundError):
    """The dataset is neither prepared on this machine nor can it be downloaded."""


class DatasetCorruptError(UserError, ValueError):
    """The dataset's file is there, but it does not hold what it should."""


def class_names(name: str) -> list[str]:
    """The official class names of a dataset, in the order of its labels.

    Args:
        name: `"cifar10"` or `"cifar100"` (the 100 fine classes).

    Returns:
        A list of 10 or 100 strings.

    Raises:
        ValueError: If `name` is not one of those.

    Example:

    >>> mf_zoo.data.class_names("cifar10")[:3]
    ['airplane', 'automobile', 'bird']
    """
    return list(_CLASS_NAMES[_check_name(name)])


def superclasses(name: str) -> list[str] | None:
    """The superclass of each class of a dataset, in the order of its labels.

    CIFAR-100's classes come in 20 superclasses of five, the "coarse labels".

    Args:
        name: `"cifar10"` or `"cifar100"`.

    Returns:
        A list of 100 strings for CIFAR-100; `None` for CIFAR-10, which has no superclasses.

    Raises:
        ValueError: If `name` is not one of those.

    Example:

    >>> mf_zoo.data.superclasses("cifar100")[:2]  # of apple, aquarium_fish
    ['fruit_and_vegetables', 'fish']

    Source: A. Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009.
    """
    if _check_name(name) != "cifar100":
        return None
    found = {c: group for group, text in _CIFAR100_SUPERCLASSES.items() for c in text.split()}
    return [found[c] for c in _CLASS_NAMES[name]]


def load(
    name: str,
    split: str,
    data_dir: str | os.PathLike | None = None,
    download: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Load a split of CIFAR-10 or CIFAR-100 into memory.

    The images come in the official order (that of the authors' batch files), whatever they
    are read from, so the same split is the same array everywhere.

    Args:
        name: `"cifar10"` or `"cifar100"`.
        split: `"train"` (50,000 images) or `"test"` (10,000), or a slice of one: a start and a
            stop, each a number of images or a percentage, either left out or negative as in
            Python. `"train[:45000]"` and `"train[45000:]"` are the usual training and
            validation sets; `"test[:10%]"`.
        data_dir: A folder that holds `<name>.npz` (arrays `train_image`, `train_label`,
            `test_image`, `test_label`; read with NumPy alone), or a folder of
            tensorflow-datasets. `None` is the default folder of tensorflow-datasets,
            `~/tensorflow_datasets`.
        download: Whether tensorflow-datasets may download what is not prepared in `data_dir`.

    Returns:
        `(images, labels)`: uint8 `(N, 32, 32, 3)`, RGB, and int64 `(N,)`.

    Raises:
        ValueError: If `name` or `split` names nothing there is, or the slice is empty or
            reaches beyond the split.
        DatasetUnavailableError: If the data is not there and cannot be downloaded.
        DatasetCorruptError: If the data is there but damaged.

    Example:

    ```python
    images, labels = mf_zoo.data.load("cifar10", "train[:45000]")
    ```

    Source: A. Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009.
    """
    _check_name(name)
    base, start, stop = _parse_split(split)
    folder = None if data_dir is None else pathlib.Path(data_dir).expanduser()
    if folder is not None and (folder / f"{name}.npz").is_file():
        images, labels = _load_npz(folder / f"{name}.npz", base, len(_CLASS_NAMES[name]))
    else:
        images, labels = _load_tfds(name, base, folder, download)
    window = _resolve_slice(split, start, stop, len(images))
    return images[window], labels[window]


def _check_name(name: str) -> str:
    if name not in _CLASS_NAMES:
        raise ValueError(
            f"`name` must be a dataset, one of {', '.join(_CLASS_NAMES)}. Received: name={name!r}"
        )
    return name


def _parse_split(split: str) -> tuple[str, str | None, str | None]:
    """`"train[:10%]"` -> `("train", None, "10%")`."""
    match = _SPLIT_PATTERN.fullmatch(split) if isinstance(split, str) else None
    if match is None or match["split"] not in _SPLITS:
        raise ValueError(
            f"`split` must be one of {', '.join(_SPLITS)}, or a slice of one such as "
            f"'train[:45000]', 'train[45000:]' or 'train[-10%:]'. Received: split={split!r}"
        )
    return match["split"], match["start"], match["stop"]


def _resolve_slice(split: str, start: str | None, stop: str | None, count: int) -> slice:
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


def _load_npz(path: pathlib.Path, split: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays[f"{split}_image"], arrays[f"{split}_label"]
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise DatasetCorruptError(
            f"{path} must be an uncorrupted .npz file with the arrays {split}_image and "
            f"{split}_label; make it again. Received: {type(error).__name__}: {error}"
        ) from error
    _check_arrays(str(path), images, labels, classes)
    return images, labels.astype("int64")


def _check_arrays(origin: str, images: np.ndarray, labels: np.ndarray, classes: int) -> None:
    if (
        images.dtype != np.uint8
        or images.shape[1:] != _IMAGE_SHAPE
        or labels.shape != images.shape[:1]
        or labels.dtype.kind not in "iu"
    ):
        raise DatasetCorruptError(
            f"{origin} must hold uint8 images (N, 32, 32, 3) and integer labels (N,). Received: "
            f"images {images.dtype} {images.shape}, labels {labels.dtype} {labels.shape}"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DatasetCorruptError(
            f"{origin} must hold labels from 0 to {classes - 1}. "
            f"Received: labels from {labels.min()} to {labels.max()}"
        )


def _load_tfds(
    name: str, split: str, folder: pathlib.Path | None, download: bool
) -> tuple[np.ndarray, np.ndarray]:
    try:
        tfds = _import_tfds()
    except ImportError as error:
        raise DatasetUnavailableError(
            _how_to_get(name, folder, "tensorflow-datasets is not installed")
        ) from error
    try:
        builder = tfds.builder(name, data_dir=folder)
        if not builder.is_prepared():
            if not download:
                raise DatasetUnavailableError(
                    _how_to_get(name, folder, "it is not prepared, and download=False")
                )
            if not _source_answers():
                raise DatasetUnavailableError(
                    _how_to_get(name, folder, f"it is not prepared, and {_SOURCE} does not answer")
                )
            builder.download_and_prepare()
    except DatasetUnavailableError:
        raise
    except Exception as error:  # of the network, the server, the disk: tfds raises many kinds
        reason = f"preparing it failed with {type(error).__name__}: {error}"
        raise DatasetUnavailableError(_how_to_get(name, folder, reason)) from error
    try:
        columns = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1, shuffle_files=False))
    except Exception as error:
        raise DatasetCorruptError(
            f"the prepared folder {builder.data_path} must be readable by tensorflow-datasets; "
            f"delete it and prepare it again. Received: {type(error).__name__}: {error}"
        ) from error
    # Prepared files are shuffled; the ids (train_00000 ...) number the official order.
    order = np.argsort(columns["id"], kind="stable")
    images, labels = columns["image"][order], columns["label"][order]
    _check_arrays(str(builder.data_path), images, labels, len(_CLASS_NAMES[name]))
    return images, labels.astype("int64")


def _import_tfds():
    import contextlib

    import keras
    import tensorflow as tf
    import tensorflow_datasets as tfds

    if keras.backend.backend() != "tensorflow":
        # Here TensorFlow only decodes files; left alone it would reserve the whole memory of
        # every GPU. RuntimeError: it is in use already, and keeps what it has.
        with contextlib.suppress(RuntimeError):
            tf.config.set_visible_devices([], "GPU")
    return tfds


def _source_answers() -> bool:
    """Whether the server of the archives can be reached (through the proxy there may be).

    tensorflow-datasets would try for more than three minutes before it gave up.
    """
    request = urllib.request.Request(_SOURCE, method="HEAD")
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


def _how_to_get(name: str, folder: pathlib.Path | None, reason: str) -> str:
    where = "the default tensorflow-datasets folder" if folder is None else str(folder)
    return (
        f"{name} is not available in {where}: {reason}. Two ways out: (1) with a network and "
        "tensorflow-datasets installed, leave download=True and it is downloaded once; "
        f"(2) without, pass data_dir, a folder that holds either {name}.npz (arrays train_image, "
        "train_label, test_image, test_label) or a folder prepared by tensorflow-datasets. "
        f"Received: name={name!r}, data_dir={None if folder is None else str(folder)!r}"
    )
