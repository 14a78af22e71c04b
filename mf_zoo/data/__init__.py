"""Datasets as records, images as arrays or streamed from files, batches, augmentation, a sample.

Names are imported on first use: the records need neither Keras nor NumPy.
"""

import importlib
import sys

from mf_zoo import lazy

__all__, __getattr__, __dir__ = lazy.attach(
    __name__,
    {
        "Augmentation": "augmentation",
        "Batches": "batching",
        "CORRUPTIONS": "corruptions",
        "Dataset": "datasets",
        "DatasetCorruptError": "errors",
        "DatasetUnavailableError": "errors",
        "EXTRA_CORRUPTIONS": "corruptions",
        "EpochDataset": "epochs",
        "ImageFileError": "files",
        "SmallImageWarning": "files",
        "batches": "batching",
        "check_range": "batching",
        "class_names": "datasets",
        "get": "datasets",
        "image_files": "files",
        "load": "loading",
        "load_corrupted": "corruptions",
        "names": "datasets",
        "read_image": "files",
        "register": "datasets",
        "sample": "shipped",
        "stream": "streaming",
        "superclasses": "datasets",
    },
)

if sys.modules.get("keras"):
    # Keras finds the layer of a saved model by its registered name, which its module gives it.
    importlib.import_module(f"{__name__}.augmentation")
