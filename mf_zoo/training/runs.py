"""The run folder: the names of what it holds."""

from collections.abc import Mapping
from typing import Any

from mf_zoo.errors import UserError

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
