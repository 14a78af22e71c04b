"""Writing a weight file anew: kernels in half precision, and in shards of a bounded size."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mf_zoo.weights.files import (
    INDEX_SUFFIX,
    SUFFIX,
    WeightFileError,
    datasets,
    reading,
    shard_name,
    unlike,
)

# What HDF5 writes for one more array besides its values: headers, groups, a heap for their names.
# Measured: 12,656 for the first array of a file, less for others.
_OVERHEAD = 16_384  # bytes


def rewrite(source: Path, folder: Path, stem: str, *, dtype: str, max_shard_size: int) -> Path:
    """Writes the weights of a file anew, in one file or in the shards of Keras's own format.

    `model.load_weights` reads the result. `model.save_weights(max_shard_size=)` is not what
    writes it, for it stores each variable in the dtype it has in the model, and bounds the values
    in a shard, not the file: HDF5's own bytes come on top.

    In half precision are the *kernels*: arrays of three or more dimensions, those of convolutions
    and, stacked by particle, of any block. They are all but the whole network. Vectors (biases,
    scale, shift and statistics of BatchNormalization; stacked by particle they have two
    dimensions), times and the classifier stay as they are, for they cost next to nothing and
    their errors would reach all channels, or the scores, at once.

    Args:
        source: A whole `.weights.h5` file.
        folder: Folder to write to.
        stem: What the names of the files begin with.
        dtype: `"float16"` to round the kernels to, `"float32"` to leave all as it is.
        max_shard_size: Size in bytes that no file exceeds.

    Returns:
        Path of the file `<stem>.weights.h5` if one is enough; else of the index
        `<stem>.weights.json`, beside its shards.

    Raises:
        WeightFileError: A weight is not finite, or a kernel out of half precision's range.
        ValueError: An array is larger than a shard may be.
        OSError: What is read back of a file is not what was written.
    """
    import h5py

    shards: list[Path] = []
    weight_map: dict[str, list[str]] = {}
    written: dict[str, tuple[Path, bytes]] = {}
    total = 0
    target = None
    try:
        for place, values in _arrays(source, dtype):
            size = values.nbytes + _OVERHEAD
            if target is None or target.id.get_filesize() + size > max_shard_size:
                if target is not None:
                    target.close()
                shards.append(folder / shard_name(stem, len(shards)))
                target = h5py.File(shards[-1], "w")
            dataset = target.create_dataset(place, data=values)
            if values.dtype.kind == "V":  # as Keras marks what HDF5 has no type for
                dataset.attrs["dtype"] = "bfloat16"
            written[place] = shards[-1], hashlib.sha256(values.tobytes()).digest()
            names = weight_map.setdefault(dataset.parent.name, [])
            if shards[-1].name not in names:
                names.append(shards[-1].name)
            total += values.nbytes
    finally:
        if target is not None:
            target.close()
    for place, (shard, digest) in written.items():
        with h5py.File(shard, "r") as file:
            if hashlib.sha256(file[place][()].tobytes()).digest() != digest:
                raise unlike(shard)
    if (largest := max(shard.stat().st_size for shard in shards)) > max_shard_size:
        raise ValueError(
            f"`max_shard_size` must be at least {largest} bytes, which one array of {source.name} "
            f"takes. Received: max_shard_size={max_shard_size}"
        )
    if len(shards) == 1:
        return shards[0].rename(folder / f"{stem}{SUFFIX}")
    index = folder / f"{stem}{INDEX_SUFFIX}"
    content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    index.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
    return index


def _arrays(source: Path, dtype: str) -> Iterator[tuple[str, Any]]:
    """Every array of a weight file: its place and its values to store.

    The optimizer's state is left out, and so are attributes: Keras does not read them, and HDF5
    may read damaged ones for ever.
    """
    import h5py

    places = datasets(source)
    with h5py.File(source, "r") as file:
        for place in places:
            with reading(source):
                values = file[place][()]
            if dtype == "float16":
                values = _rounded(values, f"{place} of {source.name}")
            yield place, values


def _rounded(values: Any, name: str) -> Any:
    """An array as it is stored in half precision."""
    import numpy as np

    if values.dtype.kind != "f":
        return values
    if not np.isfinite(values).all():
        raise WeightFileError(
            f"Weights to be stored in half precision must be finite. Received: {name} with "
            f"{np.count_nonzero(~np.isfinite(values))} that are not"
        )
    if values.ndim < 3:
        return values
    with np.errstate(over="ignore"):
        rounded = values.astype("float16")
    if not np.isfinite(rounded).all():
        raise WeightFileError(
            f"Kernels to be stored in half precision must be at most {np.finfo('float16').max:.0f} "
            f"in size. Received: {name} with {np.abs(values).max():g}"
        )
    return rounded
