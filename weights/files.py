"""Weight files: checked before they are read, and read whole or not at all."""

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import h5py
    import keras

_SUFFIX = ".weights.h5"
_SHOWN = 4  # differences named in an error message


class WeightFileError(ValueError):
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
    if not path.is_file():
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
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
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
        path: The file, as saved by `model.save_weights`.

    Returns:
        The path.

    Raises:
        WeightFileError: The name does not end in `.weights.h5`, the file is missing, or it is
            no (whole) HDF5 file.
    """
    path = Path(path)
    if not path.name.endswith(_SUFFIX):
        raise WeightFileError(
            f"A weight file must be named '*{_SUFFIX}', as `model.save_weights` writes it. "
            f"Received: {path}"
        )
    if not path.is_file():
        raise WeightFileError(f"A weight file must exist before it is loaded. Received: {path}")
    _structure(path)
    return path


def load(model: "keras.Model", path: str | Path) -> None:
    """Loads the weights of a model from a file, all of them or none.

    Keras loads a file layer by layer: a file of another architecture leaves it with a mix of old
    and new weights, and a file of a *deeper* network of the same widths loads without a word.
    Here the file must hold exactly the model's variables, in the same places and shapes, and if
    anything fails the model is left as it was. An optimizer's state, in the file or in the model,
    is left alone.

    Args:
        model: A built model.
        path: A `.weights.h5` file, as saved by `model.save_weights`.

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
        reference = Path(folder) / f"expected{_SUFFIX}"
        model.save_weights(reference)
        expected = _structure(reference)
    received = _structure(path)
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


def _structure(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every dataset of a weight file by its place, the optimizer's state aside."""
    import h5py

    shapes: dict[str, tuple[int, ...]] = {}

    def visit(place: str, item: "h5py.Group | h5py.Dataset") -> None:
        if isinstance(item, h5py.Dataset) and place.split("/")[0] != "optimizer":
            shapes[place] = tuple(item.shape)

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise WeightFileError(
            f"A weight file must be a whole HDF5 file, as `model.save_weights` writes it: {path} "
            f"is truncated, damaged or something else. Received: {error}"
        ) from error
    return shapes


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
