"""Weight files: checked before they are read, and read whole or not at all."""

import contextlib
import errno
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mf_zoo import files
from mf_zoo.errors import UserError, one_line

if TYPE_CHECKING:
    import h5py
    import keras

SUFFIX = ".weights.h5"
INDEX_SUFFIX = ".weights.json"  # of an index of shards
_SHOWN = 4  # differences named in an error message
# Bounds of a weight file; those of networks stay far below.
_MOST_OBJECTS = 100_000
_DEEPEST = 50
_LARGEST_ATTRIBUTE = 4_096  # bytes
_COMPRESSION = 1_032  # the most that gzip can do
_LONGEST = 500  # characters of another library's message
# What a `.keras` file holds, and classes that Keras's safe mode refuses, or should.
_MEMBERS = ("metadata.json", "config.json", "model.weights.h5")
_UNSAFE = ("Lambda", "TorchModuleWrapper", "FlaxLayer", "JaxLayer", "TFSMLayer", "StringLookup")
_UNSAFE += ("IntegerLookup", "IndexLookup", "TextVectorization", "__lambda__")


class WeightFileError(UserError, ValueError):
    """A weight file is missing, damaged, or not the file it should be."""


def verify(path: str | Path, sha256: str, size: int | None = None) -> Path:
    """Checks that a file is, byte for byte, the one a digest was taken of.

    Args:
        path: The file.
        sha256: Expected SHA-256 digest, 64 hexadecimal digits.
        size: Expected size in bytes; `None` to leave it to the digest.

    Returns:
        The path.

    Raises:
        WeightFileError: The file is missing or unreadable, or its size or digest is another.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise WeightFileError(
            f"The weight file {path.name} is missing: install mf_zoo again, or fetch the file "
            f"anew. Received: {path}"
        )
    received = path.stat().st_size
    if size is not None and received != size:
        raise WeightFileError(
            f"The weight file {path} must have {size} bytes: it is truncated, damaged or another "
            f"file, and was not read. Install mf_zoo again, or fetch the file anew. "
            f"Received: {received} bytes"
        )
    try:
        digest = files.sha256(path)
    except OSError as error:
        raise WeightFileError(
            f"The weight file {path} must be readable. Received: {error}"
        ) from error
    if digest != sha256:
        raise WeightFileError(
            f"The weight file {path} must have the SHA-256 digest {sha256}: it is damaged or "
            f"another file, and was not read. Install mf_zoo again, or fetch the file anew. "
            f"Received: {digest}"
        )
    return path


def check_file(path: str | Path) -> Path:
    """Checks that a path names a readable weight file in Keras's `.weights.h5` format.

    Args:
        path: The file, as saved by `model.save_weights`; or an index, `.weights.json`, with its
            shards beside it, as saved with `max_shard_size`.

    Returns:
        The path.

    Raises:
        WeightFileError: The name ends otherwise, a file is missing, or it is no (whole) HDF5
            file; or the index does not say what the shards hold.
    """
    path = Path(path)
    if not path.name.endswith((SUFFIX, INDEX_SUFFIX)):
        raise WeightFileError(
            f"A weight file must be named '*{SUFFIX}', or '*{INDEX_SUFFIX}' if it is an index of "
            f"shards, as `model.save_weights` writes it. Received: {path}"
        )
    structure(path)
    return path


def parts(path: str | Path) -> list[Path]:
    """The files that make up a weight file: itself alone, or its shards and then the index.

    Args:
        path: A `.weights.h5` file, or the `.weights.json` index of shards.

    Returns:
        The paths. The shards lie beside the index and need not exist.

    Raises:
        WeightFileError: The index is missing, no index, or names other files than
            `NAME_00000.weights.h5` and so on.

    Example:

    >>> [part.name for part in mf_zoo.weights.parts("mine.weights.h5")]
    ['mine.weights.h5']
    """
    path = Path(path)
    if not path.name.endswith(INDEX_SUFFIX):
        return [path]
    shards = set().union(*_index(path).values())
    return [*(path.with_name(shard) for shard in sorted(shards)), path]


def shard_name(stem: str, index: int) -> str:
    """The name that Keras gives a shard, and looks for, whatever the index says of the first."""
    return f"{stem}_{index:05}{SUFFIX}"


def load(model: "keras.Model", path: str | Path) -> None:
    """Loads the weights of a model from a file, all of them or none.

    Keras loads a file layer by layer: a file of another architecture leaves it with a mix of old
    and new weights, and a file of a *deeper* network of the same widths loads without a word.
    Here the file must hold exactly the model's variables, in the same places and shapes, and if
    anything fails the model is left as it was. An optimizer's state, in the file or in the model,
    is left alone.

    Args:
        model: A built model.
        path: A `.weights.h5` file, or the `.weights.json` index of shards, as saved by
            `model.save_weights`.

    Raises:
        WeightFileError: The file cannot be read or is of another architecture. The model's
            weights are unchanged.

    Example:

    >>> model = mf_zoo.applications.MFResNet20()
    >>> model.save_weights("mine.weights.h5")
    >>> mf_zoo.weights.load(model, "mine.weights.h5")
    """
    import numpy as np

    path = check_file(path)
    skipped = [model.optimizer] if getattr(model, "optimizer", None) is not None else None
    with tempfile.TemporaryDirectory() as folder:
        # The one public way to learn where Keras expects each variable is to let it save them.
        reference = Path(folder) / f"expected{SUFFIX}"
        model.save_weights(reference)
        expected = structure(reference)
    received = structure(path)
    if expected != received:
        raise WeightFileError(
            f"The weight file {path} must hold the {len(expected)} variables of the model "
            f"{model.name!r} in their shapes; it is of another architecture, and was not loaded. "
            f"Received: a file with {len(received)} variables: {_differences(expected, received)}"
        )
    before = [np.array(variable.numpy(), copy=True) for variable in model.variables]
    try:
        model.load_weights(path, objects_to_skip=skipped)
    except Exception as error:
        for variable, value in zip(model.variables, before, strict=True):
            variable.assign(value)
        raise WeightFileError(
            f"The weight file {path} must load into the model {model.name!r}, whose weights are "
            f"unchanged. Received: {error}"
        ) from error


def _index(path: Path) -> dict[str, set[str]]:
    """The names of the shards by the group of variables that they hold, as an index has them."""
    _check_exists(path)
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        groups = {
            group: {shards} if isinstance(shards, str) else set(shards)
            for group, shards in weight_map.items()
        }
        named = sorted(set().union(*groups.values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WeightFileError(
            f"An index of shards must be JSON with a `weight_map`, as `model.save_weights` writes "
            f"it: {path} is truncated, damaged or something else. Received: {error!r}"
        ) from error
    stem = path.stem.replace(".weights", "")  # as Keras derives it
    if not named or named != [shard_name(stem, index) for index in range(len(named))]:
        raise WeightFileError(
            f"The index {path} must name the shards '{shard_name(stem, 0)}' and so on, which lie "
            f"beside it. Received: {named[:_SHOWN]}"
        )
    return groups


def structure(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every dataset of a weight file by its place, the optimizer's state aside."""
    shapes: dict[str, tuple[int, ...]] = {}
    groups: dict[str, set[str]] = {}
    for part in parts(path):
        if part.name.endswith(INDEX_SUFFIX):
            continue
        for place, shape in datasets(part).items():
            if place in shapes:
                raise WeightFileError(
                    f"Shards of weights must hold each variable once. Received: {place} in "
                    f"{part.name} of {path} and in another one"
                )
            shapes[place] = shape
            groups.setdefault(f"/{place.rpartition('/')[0]}", set()).add(part.name)
    if path.name.endswith(INDEX_SUFFIX):
        named = {
            group: shards
            for group, shards in _index(path).items()
            if group.split("/")[1:2] != ["optimizer"]
        }
        differing = [
            group
            for group in sorted(groups.keys() | named.keys())
            if groups.get(group) != named.get(group)
        ]
        if differing:
            raise WeightFileError(
                f"The index {path} must say which shards hold which variables. Received: another "
                f"answer than theirs for {', '.join(differing[:_SHOWN])}"
            )
    return shapes


def datasets(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every dataset of an HDF5 file by its place, the optimizer's state aside.

    Every reader of weight files comes by here first. What Keras never writes is refused before any
    value is read: links, and data that lie in other files; chunks larger than their dataset, and
    datasets that declare more than the file can hold, which would take memory without end; filters
    that HDF5 would load from a shared library; groups without end.

    Args:
        path: The file.

    Returns:
        The shapes.

    Raises:
        WeightFileError: If there is no such file, or it is no such file.
    """
    _check_exists(path)
    with reading(path):
        return _datasets(path)


def save(model: "keras.Model", path: str | Path) -> None:
    """Saves the weights of a model and reads them back.

    HDF5 says nothing of some writes that fail: of a disk that was full, or failed, for a moment,
    there remain zeros in the file.

    Args:
        model: A built model.
        path: The `.weights.h5` file.

    Raises:
        OSError: If what is read is not what was written.
    """
    import numpy as np

    model.save_weights(path)
    weights = [np.array(weight.numpy(), copy=True) for weight in model.weights]
    try:
        model.load_weights(path)
        same = all(
            np.array(weight.numpy()).tobytes() == value.tobytes()
            for weight, value in zip(model.weights, weights, strict=True)
        )
    except (OSError, KeyError, ValueError, RuntimeError):
        same = False
    finally:
        for weight, value in zip(model.weights, weights, strict=True):
            weight.assign(value)
    if not same:
        raise unlike(path)


def unlike(path: str | Path) -> OSError:
    """The error of a file that does not hold what was written."""
    return OSError(errno.EIO, "what is read back is not what was written", str(path))


def load_model(path: str | Path) -> "keras.Model":
    """Loads a model, compiled if it was, from a `.keras` file that need not be trusted.

    Its weights are checked as those of a weight file are, and Keras's safe mode is on: no code of
    the file's is run.

    Args:
        path: The file.

    Returns:
        The model.

    Raises:
        WeightFileError: If the file is missing or damaged, or is not what `model.save` writes.
    """
    import keras

    path = Path(path)
    check_model(path)
    try:
        return keras.saving.load_model(path, safe_mode=True)
    except Exception as error:  # of a damaged configuration Keras raises many kinds
        raise WeightFileError(
            f"A saved model must be one that Keras loads in its safe mode. "
            f"Received: {path}: {type(error).__name__}: {one_line(error)[:_LONGEST]}"
        ) from error


def check_model(path: Path) -> None:
    """Checks a `.keras` file as far as can be done without loading it, see `load_model`."""
    _check_exists(path)
    try:
        with zipfile.ZipFile(path) as archive:
            size = path.stat().st_size
            names = sorted(member.filename for member in archive.infolist())
            if names != sorted(_MEMBERS):
                raise ValueError(f"{names[:_SHOWN]} in place of {', '.join(_MEMBERS)}")
            for member in archive.infolist():
                # Keras compresses nothing.
                if member.compress_type != zipfile.ZIP_STORED or member.file_size > size:
                    raise ValueError(f"{member.filename} of {member.file_size} bytes, compressed")
            for name in _MEMBERS[:2]:
                _check_config(json.loads(archive.read(name)))
            with tempfile.TemporaryDirectory() as folder:
                _datasets(Path(archive.extract(_MEMBERS[2], folder)))
    except Exception as error:  # of damaged archives and HDF5 files there are many kinds
        raise WeightFileError(
            f"A saved model must be a whole `.keras` file, as `model.save` writes it: {path} is "
            f"truncated, damaged or something else. Received: {type(error).__name__}: "
            f"{one_line(error)[:_LONGEST]}"
        ) from error


def _check_config(config: Any) -> None:
    """Refuses what a configuration may ask Keras for besides the layers of a network."""
    if isinstance(config, list):
        for item in config:
            _check_config(item)
    elif isinstance(config, dict):
        name = config.get("class_name")
        if name in _UNSAFE:
            raise ValueError(f"a {name}, which holds code or reads files")
        for value in config.values():
            _check_config(value)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what h5py says of a damaged file into a `WeightFileError`."""
    try:
        yield
    except Exception as error:  # of damaged files h5py raises many kinds
        raise WeightFileError(
            f"A weight file must be a whole HDF5 file, as `model.save_weights` writes it: {path} "
            f"is truncated, damaged or something else. Received: {one_line(error)[:_LONGEST]}"
        ) from error


def _datasets(path: Path) -> dict[str, tuple[int, ...]]:
    import h5py

    size = path.stat().st_size
    shapes: dict[str, tuple[int, ...]] = {}
    stored = objects = 0

    def visit(group: "h5py.Group", place: str, depth: int) -> None:
        nonlocal stored, objects
        for name in group:
            objects += 1
            if objects > _MOST_OBJECTS or depth > _DEEPEST:
                raise ValueError(
                    f"more than {_MOST_OBJECTS} objects, or {_DEEPEST} groups in a row"
                )
            inner = f"{place}/{name}" if place else name
            if type(group.get(name, getlink=True)) is not h5py.HardLink:
                raise ValueError(f"{inner} is a link to elsewhere")
            item = group[name]
            if wrong := _strange(item):
                raise ValueError(f"{inner} is {wrong}")
            if isinstance(item, h5py.Group):
                visit(item, inner, depth + 1)
                continue
            stored += item.id.get_storage_size()
            if stored > size:
                raise ValueError(f"{inner} reaches beyond the end of the file")
            if inner.split("/")[0] != "optimizer":
                shapes[inner] = tuple(item.shape)

    with h5py.File(path, "r") as file:
        if wrong := _strange(file):
            raise ValueError(f"the file is {wrong}")
        visit(file, "", 1)
    return shapes


def _strange(item: Any) -> str | None:
    """What an object of an HDF5 file is that Keras never writes, if it is such a one."""
    import h5py

    for k in range(h5py.h5a.get_num_attrs(item.id)):
        if h5py.h5a.open(item.id, index=k).get_storage_size() > _LARGEST_ATTRIBUTE:
            return f"one with attributes of more than {_LARGEST_ATTRIBUTE} bytes"
    if isinstance(item, h5py.Group):
        return None
    if not isinstance(item, h5py.Dataset):
        return "neither a group nor an array"
    if item.external or item.is_virtual:
        return "stored in other files"
    # bfloat16, which HDF5 does not know, are two bytes of no type.
    numbers = item.dtype.kind in "biuf" or item.dtype == "V2"
    if item.shape is None or not numbers:
        return "no array of numbers"
    if item.chunks is not None and math.prod(item.chunks) > max(item.size, 1):
        return f"of shape {item.shape} in chunks of {item.chunks}"
    if item.dtype != "V2" and h5py.h5a.get_num_attrs(item.id):
        return "an array with attributes, which Keras gives those in bfloat16 only"
    properties = item.id.get_create_plist()
    filters = {properties.get_filter(k)[0] for k in range(properties.get_nfilters())}
    if not filters <= {
        h5py.h5z.FILTER_DEFLATE,
        h5py.h5z.FILTER_SHUFFLE,
        h5py.h5z.FILTER_FLETCHER32,
    }:
        return f"stored by other filters than HDF5's own: {sorted(filters)}"
    held = item.id.get_storage_size() * (_COMPRESSION if filters else 1)
    if item.size * item.dtype.itemsize > held:
        return f"of shape {item.shape}, for which the file holds too little"
    return None


def _check_exists(path: Path) -> None:
    if not os.path.isfile(path):  # False for a name that is too long, which `Path` raises for
        raise WeightFileError(f"A weight file must exist before it is loaded. Received: {path}")


def _differences(expected: dict[str, tuple[int, ...]], received: dict[str, tuple[int, ...]]) -> str:
    found = [
        f"{place} is {received.get(place, 'missing')} instead of {shape}"
        for place, shape in expected.items()
        if received.get(place) != shape
    ]
    found += [
        f"{place} {shape} has no place in the model"
        for place, shape in received.items()
        if place not in expected
    ]
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more
