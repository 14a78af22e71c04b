"""Looking up registered weights."""

from pathlib import Path

from mf_zoo.weights.files import verify
from mf_zoo.weights.record import WeightRecord

FOLDER = Path(__file__).resolve().parent


def records(
    model: str | None = None, dataset: str | None = None, *, directory: str | Path | None = None
) -> list[WeightRecord]:
    """Lists the registered weights.

    Args:
        model: Only those of this model, e.g. `"MFResNet20"`.
        dataset: Only those trained on this dataset, e.g. `"cifar10"`.
        directory: Folder of the registry; the one inside the package if `None`.

    Returns:
        The records, ordered by the names of their files.

    Raises:
        ValueError: A record file in the folder is damaged.
    """
    found = (WeightRecord.read(file) for file in sorted(_folder(directory).glob("*.json")))
    return [
        record
        for record in found
        if model in (None, record.model) and dataset in (None, record.dataset)
    ]


def get(model: str, name: str, *, directory: str | Path | None = None) -> WeightRecord:
    """Finds registered weights by name.

    Args:
        model: Name of the model's builder, e.g. `"MFResNet20"`.
        name: Name of the weights, as passed to the builder's `weights=`, e.g. `"cifar10"`.
        directory: Folder of the registry; the one inside the package if `None`.

    Returns:
        The record.

    Raises:
        ValueError: The model has no weights of this name; those it has are listed.
    """
    found = {record.name: record for record in records(model, directory=directory)}
    if name not in found:
        names = f"one of {sorted(found)}" if found else "absent: none are registered for it"
        raise ValueError(
            f"The name of pretrained weights for {model} must be {names}. Received: {name!r}"
        )
    return found[name]


def path(record: WeightRecord, *, directory: str | Path | None = None) -> Path:
    """Finds a registered weight file and verifies it.

    Args:
        record: The record of the file.
        directory: Folder of the registry; the one inside the package if `None`.

    Returns:
        Path of the file, whose size and SHA-256 digest are those of the record.

    Raises:
        WeightFileError: The file is missing, truncated, damaged, or another file.

    Example:

    >>> record = mf_zoo.weights.get("MFResNet20", "cifar10")
    >>> mf_zoo.weights.path(record).name
    'mf_resnet20-cifar10.weights.h5'
    """
    return verify(_folder(directory) / record.file, record.sha256, record.size)


def _folder(directory: str | Path | None) -> Path:
    return FOLDER if directory is None else Path(directory)
