"""Looking up registered weights."""

from pathlib import Path

from mf_zoo.weights.files import INDEX_SUFFIX, SUFFIX, verify
from mf_zoo.weights.record import WeightRecord

FOLDER = Path(__file__).resolve().parent

# Larger files stay out of the wheel, which takes those of FOLDER itself: in a checkout they lie
# in a folder below.
LARGE = "large"
LARGEST_IN_WHEEL = 10_000_000  # bytes


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
    files = sorted(_folder(directory).glob("*.json"))
    # Beside records may lie indices of shards.
    found = (WeightRecord.read(file) for file in files if not file.name.endswith(INDEX_SUFFIX))
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
        ValueError: The model has no weights of this name; the message says which weights it has,
            which models have weights of this name, and, if it has none, how to train some.
    """
    known = records(directory=directory)
    own = {record.name: record for record in known if record.model == model}
    if name in own:
        return own[name]
    others = [record for record in known if record.name == name]
    named = " and ".join(sorted(record.model for record in others))
    elsewhere = f" Weights of that name are registered for {named}." if others else ""
    if own:
        raise ValueError(
            f"The name of pretrained weights for {model} must be one of {sorted(own)}.{elsewhere} "
            f"Received: {name!r}"
        )
    dataset = others[0].dataset if others else "DATASET"
    folder = f"runs/{model.lower()}"
    raise ValueError(
        f"Pretrained weights for {model} must be a file or None, for none are registered for "
        f"it.{elsewhere} Train some with `mf-zoo train {model} --dataset {dataset} --output "
        f"{folder}` and pass weights='{folder}/final{SUFFIX}'. Received: {name!r}"
    )


def path(
    record: WeightRecord,
    *,
    directory: str | Path | None = None,
    base_url: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool | None = None,
) -> Path:
    """Finds a registered weight file and verifies it; downloads it if it is not there.

    A file is looked for in the registry, in the cache, and at the base URL, from where it is
    downloaded into the cache: https, file, or http on this machine, redirected to https at most.
    The record says what the file must be, so the URL need not be trusted. Of weights in several
    files all are brought to one folder and verified.

    Args:
        record: The record of the file.
        directory: Folder of the registry; the one inside the package if `None`.
        base_url: The folder of weight files to download from; `None` for that of the environment
            variable `MF_ZOO_WEIGHTS_URL`, without which nothing is downloaded.
        cache_dir: The cache; `None` for the environment variable `MF_ZOO_CACHE`, else `mf_zoo`
            in the home of Keras (`KERAS_HOME`, else `~/.keras`).
        offline: Whether the network must not be used (a `file://` URL still is); `None` for the
            environment variable `MF_ZOO_OFFLINE`, 0 or 1.

    Returns:
        Path of the file, whose size and SHA-256 digest are those of the record. For weights in
        shards, that of the index, with the shards beside it.

    Raises:
        WeightFileError: The file, or a shard, is missing, truncated, damaged, or another file,
            and no whole one can be downloaded.

    Example:

    >>> record = mf_zoo.weights.get("MFResNet20", "cifar10")
    >>> mf_zoo.weights.path(record).name
    'mf_resnet20-cifar10.weights.h5'
    """
    folders = (_folder(directory), _folder(directory) / LARGE)
    for folder in folders:
        if (folder / record.file).is_file():
            for part in record.files:
                verify(folder / part.file, part.sha256, part.size)
            return folder / record.file
    from mf_zoo.weights.remote import fetch  # here, for it needs the modules of the network

    return fetch(record, base_url=base_url, cache_dir=cache_dir, offline=offline, searched=folders)


def _folder(directory: str | Path | None) -> Path:
    return FOLDER if directory is None else Path(directory)
