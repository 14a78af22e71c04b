"""What is known of a dataset, as a record, and the registry of the records."""

import dataclasses
import functools
import importlib
import pkgutil
import re
from collections.abc import Mapping

SPLITS = ("train", "test")

_KINDS = ("tfds", "folder")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """The record of an image classification dataset.

    A record says what the dataset is and where its images lie. `load`, `stream`, `class_names`,
    `superclasses` and `sample` ask it, and so do networks and training.

    Images are uint8 in 0..255. They are read from `<name>.npz` where there is one (see `load`), and
    otherwise as `kind` says:

    - `"tfds"`: from what tensorflow-datasets has prepared, whatever the names of its splits and
      features.
    - `"folder"`: from image files in `<name>/<split>/<class>/`.

    Images of another size than `image_shape` are cropped and scaled as `read_image` does it.

    Args:
        name: Name of the dataset: lower-case letters, digits and underscores.
        title: What people call it.
        class_names: Name of each class, in the order of the labels.
        image_shape: `(height, width, channels)` of its images.
        images: Number of images of the splits `"train"` and `"test"`.
        mean: Mean of the training images by channel, in 0..255. `python -m
            mf_zoo.data.statistics NAME --data-dir D` computes it: register the dataset with zeros
            here and ones in `std` first.
        std: Their standard deviation by channel.
        source: The publication that the dataset comes from.
        superclasses: The superclass of each class, in the order of the labels, if it has some.
        sample_sha256: Digest of the sample that comes with the package, `None` if none does.
        kind: `"tfds"` or `"folder"`.
        tfds_name: Its name (and configuration) in tensorflow-datasets, such as
            `"imagenette/160px-v2"`; `None` is `name`.
        splits: What its splits are called where it lies, if not `"train"` and `"test"`:
            `{"test": "validation"}`.
        image_feature: The feature of tensorflow-datasets with the image.
        label_feature: The feature with the label.
        order_feature: A feature by which `load` sorts the images, such as `"id"`; `None` leaves
            them in the order of the prepared files.
        class_folders: Names of the folders of the classes; `None` is `class_names`.
        server: Address of the server that tensorflow-datasets downloads from. `load` asks it before
            a download, since tensorflow-datasets tries for minutes before it gives up.
        corrupted: The name that its corrupted test images have in tensorflow-datasets, see
            `load_corrupted`; `None` if they are not there.

    Raises:
        ValueError: If a field is not as described.

    Example:

    >>> record = mf_zoo.data.get("cifar10")
    >>> record.title, record.classes, record.image_shape, record.images["train"]
    ('CIFAR-10', 10, (32, 32, 3), 50000)
    """

    name: str
    title: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    images: Mapping[str, int] = dataclasses.field(hash=False)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    superclasses: tuple[str, ...] | None = None
    sample_sha256: str | None = None
    kind: str = "tfds"
    tfds_name: str | None = None
    splits: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    image_feature: str = "image"
    label_feature: str = "label"
    order_feature: str | None = None
    class_folders: tuple[str, ...] | None = None
    server: str | None = None
    corrupted: str | None = None

    def __post_init__(self):
        def check(fits: bool, field: str, what: str) -> None:
            if not fits:
                raise ValueError(
                    f"`{field}` of a dataset must be {what}. Received: {getattr(self, field)!r}"
                )

        sequences = ("class_names", "image_shape", "mean", "std", "superclasses", "class_folders")
        for field in sequences:
            value = getattr(self, field)
            check(not isinstance(value, str), field, "a tuple")
            if value is not None:
                object.__setattr__(self, field, tuple(value))
        check(
            isinstance(self.name, str) and re.fullmatch("[a-z0-9_]+", self.name) is not None,
            "name",
            "of lower-case letters, digits and underscores",
        )
        names = self.class_names
        check(len(set(names)) == len(names) > 0, "class_names", "different names, one at least")
        check(
            len(self.image_shape) == 3
            and all(isinstance(side, int) and side > 0 for side in self.image_shape),
            "image_shape",
            "(height, width, channels), positive integers",
        )
        check(
            set(self.images) == set(SPLITS)
            and all(isinstance(count, int) and count > 0 for count in self.images.values()),
            "images",
            "a positive number for each of the splits " + " and ".join(SPLITS),
        )
        channels = self.image_shape[2]
        for field in ("mean", "std"):
            check(len(getattr(self, field)) == channels, field, f"{channels} numbers, by channel")
        check(min(self.std) > 0, "std", "positive")
        for field in ("superclasses", "class_folders"):
            value = getattr(self, field)
            check(value is None or len(value) == self.classes, field, f"{self.classes} names")
        check(self.kind in _KINDS, "kind", f"one of {', '.join(_KINDS)}")
        check(set(self.splits) <= set(SPLITS), "splits", f"a dictionary of {', '.join(SPLITS)}")

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


def register(dataset: Dataset, overwrite: bool = False) -> Dataset:
    """Adds a dataset of your own to the registry, so that everything here knows it by its name.

    `mf-zoo --import MODULE` imports the module that does so before a command runs.

    Args:
        dataset: Its record.
        overwrite: Whether it may take the place of another record of that name.

    Returns:
        The record.

    Raises:
        ValueError: If `dataset` is no record, or its name is that of another record.

    Example:

    >>> record = mf_zoo.data.Dataset(
    ...     name="garden",
    ...     title="Flowers of our garden",
    ...     class_names=("daisy", "poppy"),
    ...     image_shape=(64, 64, 3),
    ...     images={"train": 900, "test": 100},
    ...     mean=(120.5, 110.2, 80.0),
    ...     std=(60.1, 58.3, 61.7),
    ...     source="taken by ourselves, 2026",
    ...     kind="folder",
    ... )
    >>> mf_zoo.data.register(record).classes
    2
    >>> mf_zoo.data.class_names("garden")
    ['daisy', 'poppy']
    """
    if not isinstance(dataset, Dataset):
        raise ValueError(f"`dataset` must be an mf_zoo.data.Dataset. Received: {dataset!r}")
    if not overwrite and _registry().get(dataset.name, dataset) != dataset:
        raise ValueError(
            "`name` of a new dataset must be one that no other has, or `overwrite` be True. "
            f"Received: name={dataset.name!r}"
        )
    _registry()[dataset.name] = dataset
    return dataset


def get(name: str) -> Dataset:
    """The record of a dataset.

    Args:
        name: Its name, one of `names()`.

    Raises:
        ValueError: If no dataset of that name is registered.

    Example:

    >>> mf_zoo.data.get("cifar10").mean
    (125.307, 122.95, 113.865)
    """
    if name not in _registry():
        raise ValueError(
            f"`name` must be a dataset, one of {', '.join(names())}. Received: name={name!r}"
        )
    return _registry()[name]


def names() -> list[str]:
    """The names of all datasets: first those of the package, then those registered since.

    Example:

    >>> mf_zoo.data.names()[:2]
    ['cifar10', 'cifar100']
    """
    return list(_registry())


def class_names(name: str) -> list[str]:
    """The names of a dataset's classes, in the order of its labels.

    Args:
        name: Name of the dataset, such as `"cifar10"`, or `"cifar100"` (the 100 fine classes).

    Returns:
        A list of strings.

    Raises:
        ValueError: If no dataset of that name is registered.

    Example:

    >>> mf_zoo.data.class_names("cifar10")[:3]
    ['airplane', 'automobile', 'bird']
    """
    return list(get(name).class_names)


def superclasses(name: str) -> list[str] | None:
    """The superclass of each class of a dataset, in the order of its labels.

    CIFAR-100's classes come in 20 superclasses of five, the "coarse labels".

    Args:
        name: Name of the dataset, such as `"cifar100"`.

    Returns:
        A list of strings, 100 for CIFAR-100; `None` for a dataset without superclasses.

    Raises:
        ValueError: If no dataset of that name is registered.

    Example:

    >>> mf_zoo.data.superclasses("cifar100")[:2]  # of apple, aquarium_fish
    ['fruit_and_vegetables', 'fish']
    """
    groups = get(name).superclasses
    return None if groups is None else list(groups)


@functools.cache
def _registry() -> dict[str, Dataset]:
    """The records by name, at first those of the package: each module of `records` has one."""
    from mf_zoo.data import records

    modules = (
        importlib.import_module(f"{records.__name__}.{module.name}")
        for module in pkgutil.iter_modules(records.__path__)
    )
    return {module.DATASET.name: module.DATASET for module in modules}
