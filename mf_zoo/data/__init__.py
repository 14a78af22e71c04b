"""Datasets as records, images as arrays or streamed from files, batches, augmentation, a sample.

Everything is imported on first use: the records need neither Keras nor NumPy.
"""

from mf_zoo import lazy

__all__, __getattr__, __dir__ = lazy.attach(
    __name__,
    {
        "Augmentation": "augmentation",
        "Batches": "batching",
        "Dataset": "datasets",
        "DatasetCorruptError": "errors",
        "DatasetUnavailableError": "errors",
        "EpochDataset": "epochs",
        "ImageFileError": "files",
        "SmallImageWarning": "files",
        "batches": "batching",
        "check_range": "batching",
        "class_names": "datasets",
        "get": "datasets",
        "image_files": "files",
        "load": "loading",
        "names": "datasets",
        "read_image": "files",
        "register": "datasets",
        "sample": "shipped",
        "stream": "streaming",
        "superclasses": "datasets",
    },
)
