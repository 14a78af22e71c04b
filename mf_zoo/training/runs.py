"""The run folder: the names of what it holds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mf_zoo.errors import UserError
from mf_zoo.files import write_atomically

CONFIG = "config.json"
STATE = "state.json"
RESULT = "result.json"
HISTORY = "history.csv"
TIMES = "times.csv"
WEIGHTS = "final.weights.h5"
RUNGS = "rungs"  # folder of the runs that a run with a ladder grows from
TENSORBOARD = "tensorboard"

RunError = UserError  # what it was called in version 0.1


def normalization(config: Mapping[str, Any]) -> Any:
    """Mean and standard deviation of a run's images; `None` for a network that has no use for them.

    Args:
        config: The content of the run's `config.json`.
    """
    if "normalization" in config:
        return config["normalization"]
    # Version 0.1 normalised all images as those of CIFAR-10 and did not say so.
    from mf_zoo import data

    record = data.get("cifar10")
    return record.mean, record.std


def drop_rows_after(path: Path, epoch: int):
    """Drops from a CSV file the rows of later epochs, and a row cut short by a kill."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = lines[:1] + [
        line for line in lines[1:] if line.endswith("\n") and int(line.split(",", 1)[0]) <= epoch
    ]
    text = "".join(kept)
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))
