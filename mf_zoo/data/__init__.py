"""Images as arrays or streamed from files, batches for `model.fit`, augmentation, a real sample."""

from mf_zoo.data.augmentation import Augmentation
from mf_zoo.data.batches import Batches, batches
from mf_zoo.data.cifar import (
    DatasetCorruptError,
    DatasetUnavailableError,
    class_names,
    load,
    superclasses,
)
from mf_zoo.data.epochs import EpochDataset
from mf_zoo.data.files import ImageFileError, image_files, read_image
from mf_zoo.data.sample import sample
from mf_zoo.data.streaming import stream

__all__ = [
    "Augmentation",
    "Batches",
    "DatasetCorruptError",
    "DatasetUnavailableError",
    "EpochDataset",
    "ImageFileError",
    "batches",
    "class_names",
    "image_files",
    "load",
    "read_image",
    "sample",
    "stream",
    "superclasses",
]
