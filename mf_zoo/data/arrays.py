"""Arrays of NumPy's files: what a header says is checked before anything is allocated."""

import contextlib
import io
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mf_zoo.data.errors import DatasetCorruptError

_LONGEST_HEADER = 10_000  # bytes, as in NumPy
# Images and labels do not compress by more; what does, beyond so many bytes, is no data.
_COMPRESSION, _FREE = 100, 2**26


class Header(NamedTuple):
    """What the header of a `.npy` file says of its array."""

    dtype: np.dtype
    shape: tuple[int, ...]


def load_npz(
    path: Path, names: Sequence[str], check: Callable[[Sequence[Header]], None]
) -> list[np.ndarray]:
    """Reads arrays of an `.npz` file.

    Args:
        path: The file.
        names: Names of the arrays.
        check: Called with their headers before any array is read; raises for what is not wanted.

    Returns:
        The arrays.

    Raises:
        DatasetCorruptError: If the file is damaged, holds no such arrays or objects, or fewer or
            many more bytes than its headers say.
    """
    wanted = f"an uncorrupted .npz file with the arrays {' and '.join(names)}"
    with _corrupt(path, wanted), zipfile.ZipFile(path) as archive:
        headers = []
        for name in names:
            info = archive.getinfo(f"{name}.npy")
            if info.file_size > max(_FREE, _COMPRESSION * info.compress_size):
                raise ValueError(
                    f"{info.compress_size} bytes of {name} that become {info.file_size}"
                )
            with archive.open(info) as file:
                headers.append(read_header(file, info.file_size))
        check(headers)
        found = []
        for name in names:
            with archive.open(f"{name}.npy") as file:
                found.append(np.lib.format.read_array(file, allow_pickle=False))
        return found


def load_npy(
    folder: Path, names: Sequence[str], check: Callable[[Sequence[Header]], None]
) -> list[np.ndarray]:
    """Maps the arrays of `.npy` files, as `load_npz` reads those of an archive.

    Raises:
        FileNotFoundError: If a file is missing.
        DatasetCorruptError: As `load_npz`.
    """
    paths = [folder / f"{name}.npy" for name in names]
    wanted = "arrays of NumPy without objects"
    with _corrupt(Path(f"{paths[0]} and {paths[-1].name} beside it"), wanted):
        headers = []
        for path in paths:
            if path.exists() and not path.is_file():
                raise ValueError(f"{path.name}, which is no file")
            with open(path, "rb") as file:
                headers.append(read_header(file, os.fstat(file.fileno()).st_size))
        check(headers)
        return [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]


def read_header(file: BinaryIO | Any, size: int) -> Header:
    """Reads the header of a `.npy` file.

    Args:
        file: The file, at its start.
        size: Its size in bytes.

    Returns:
        The header, whose array takes the rest of the file and no more.

    Raises:
        ValueError: If it is none, or the array is another size or of objects.
    """
    start = file.read(12)
    if start[:6] != np.lib.format.MAGIC_PREFIX or len(start) < 12:
        raise ValueError("no header of NumPy's")
    readers = {
        (1, 0): ("<H", np.lib.format.read_array_header_1_0),
        (2, 0): ("<I", np.lib.format.read_array_header_2_0),
    }
    version = (start[6], start[7])
    if version not in readers:
        raise ValueError(f"version {version} of NumPy's format")
    width, read = readers[version]
    (length,) = struct.unpack_from(width, start, 8)
    if length > _LONGEST_HEADER:
        raise ValueError(f"a header of {length} bytes")
    end = 8 + struct.calcsize(width) + length
    content = start + file.read(max(end - len(start), 0))
    try:
        shape, _, dtype = read(io.BytesIO(content[8:]))
    except Exception as error:  # it is read as Python's source, which may fail in many ways
        raise ValueError(f"a header that cannot be read: {type(error).__name__}") from error
    if dtype.hasobject:
        raise ValueError("objects")
    if any(side < 0 for side in shape) or math.prod(shape) * dtype.itemsize != size - end:
        raise ValueError(
            f"an array {dtype} {shape} in {max(size - end, 0)} bytes".replace("\n", " ")[:200]
        )
    return Header(dtype, shape)


@contextlib.contextmanager
def _corrupt(path: Path, wanted: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, DatasetCorruptError):
        raise
    # zipfile raises many kinds, of its own and of the libraries that decompress.
    except Exception as error:
        raise DatasetCorruptError(
            f"{path} must be {wanted}; make it again. Received: {type(error).__name__}: {error}"
        ) from error
