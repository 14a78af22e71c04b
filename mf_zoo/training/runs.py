"""The run folder: the names of what it holds."""

from pathlib import Path

from mf_zoo.errors import UserError
from mf_zoo.files import write_atomically

CONFIG = "config.json"
STATE = "state.json"
RESULT = "result.json"
HISTORY = "history.csv"
TIMES = "times.csv"
WEIGHTS = "final.weights.h5"
TENSORBOARD = "tensorboard"

RunError = UserError  # what it was called in version 0.1


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
