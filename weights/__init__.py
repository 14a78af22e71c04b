"""The registry of pretrained weights: typed records, and files verified before they are read.

A registered file is three things side by side in this folder: the weights
(`mf_resnet20-cifar10.weights.h5`), the record that says what they are and where they come from
(`mf_resnet20-cifar10.json`, read as a `WeightRecord`), and the history of the run that made them
(`mf_resnet20-cifar10.history.csv`, for a mean-field model also `.times.csv`). Weight files of more
than 10 MB do not ride in the wheel: they lie in `large` in a checkout, else they are downloaded
into a cache (`mf_zoo.weights.path`).
"""

from mf_zoo.weights.files import WeightFileError, check_file, load, verify
from mf_zoo.weights.publishing import publish
from mf_zoo.weights.record import WeightRecord
from mf_zoo.weights.registry import get, path, records

__all__ = [
    "WeightFileError",
    "WeightRecord",
    "check_file",
    "get",
    "load",
    "path",
    "publish",
    "records",
    "verify",
]
