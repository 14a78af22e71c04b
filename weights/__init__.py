"""The registry of pretrained weights: typed records, and files verified before they are read.

A registered file is three things side by side in this folder: the weights
(`mf_resnet20-cifar10.weights.h5`), the record that says what they are and where they come from
(`mf_resnet20-cifar10.json`, read as a `WeightRecord`), and the history of the run that made them
(`mf_resnet20-cifar10.history.csv`, for a mean-field model also `.times.csv`). Weight files of more
than 10 MB do not ride in the wheel: they lie in `large` in a checkout, else they are downloaded
into a cache (`mf_zoo.weights.path`). Large networks are stored in half precision, where that does
not change their test error, and in shards: `*_00000.weights.h5` and so on with the index
`*.weights.json`, which any function here takes in the place of a file (`mf_zoo.weights.publish`).

Everything is imported on first use, so that the records are read at once, without NumPy and h5py.
"""

from mf_zoo import lazy

__all__, __getattr__, __dir__ = lazy.attach(
    __name__,
    {
        "MAX_SHARD_SIZE": "publishing",
        "Rung": "record",
        "Shard": "record",
        "WeightFileError": "files",
        "WeightRecord": "record",
        "check_file": "files",
        "get": "registry",
        "load": "files",
        "parts": "files",
        "path": "registry",
        "publish": "publishing",
        "records": "registry",
        "verify": "files",
    },
)
