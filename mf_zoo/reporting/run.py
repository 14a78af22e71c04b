"""What a report says of one training: read from a run folder, or from a record of weights."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mf_zoo import applications, files, visualize, weights
from mf_zoo.errors import UserError, user_errors
from mf_zoo.training import runs

if TYPE_CHECKING:
    from mf_zoo.visualize import StageHistory
    from mf_zoo.weights import WeightRecord


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A training, finished or not.

    Attributes:
        name: What the report calls it.
        place: The run folder, or the file of the record.
        facts: What `result.json`, else the record, says; what `config.json` says of a run that is
            not finished.
        config: The content of `config.json`; `None` for a record.
        history: The rows of `history.csv`.
        stages: The history of the particles by stage; empty for a plain network.
    """

    name: str
    place: Path
    facts: Mapping[str, Any]
    config: Mapping[str, Any] | None
    history: Sequence[Mapping[str, str]]
    stages: Mapping[str, "StageHistory"]

    @classmethod
    def of_folder(cls, folder: Path, name: str | None = None) -> "Run":
        """Reads a run folder.

        Args:
            folder: The folder.
            name: What the report is to call the run; `None` for the folder's name.

        Raises:
            UserError: If it holds no run, or a file of it is not what it must be.
        """
        config = files.read_json(folder / runs.CONFIG, "config")
        if config is None:
            raise UserError(f"A run folder must hold a {runs.CONFIG}. Received: {folder}")
        result = files.read_json(folder / runs.RESULT, "result")
        facts = {**config, "recipe": config["recipe"]["name"]} if result is None else result
        with user_errors():
            recorded = files.read_rows(folder / runs.TIMES, "times", growing=True)
            learned = applications.network(config["model"]).mean_field
            stages = visualize.read(folder) if recorded and learned else {}
        return cls(
            name or folder.resolve().name,
            folder,
            facts,
            config,
            files.read_rows(folder / runs.HISTORY, "history", growing=True),
            stages,
        )

    @classmethod
    def of_record(cls, record: "WeightRecord") -> "Run":
        """Reads what lies beside registered weights of the package.

        Args:
            record: Their record.

        Raises:
            UserError: If a file of it is not what it must be.
        """
        place = record_file(record)
        times = place.with_name(f"{record.stem}.{runs.TIMES}")
        with user_errors():
            learned = applications.network(record.model).mean_field
            stages = visualize.read(times) if learned else {}
        return cls(
            f"{record.model}, {record.name}",
            place,
            dataclasses.asdict(record),
            None,
            files.read_rows(place.with_name(f"{record.stem}.{runs.HISTORY}"), "history"),
            stages,
        )

    @property
    def finished(self) -> bool:
        """Whether there are final weights."""
        return "test_error" in self.facts

    @property
    def epochs(self) -> int:
        """Number of epochs done."""
        return int(self.history[-1]["epoch"]) if self.history else 0

    @property
    def planned_epochs(self) -> int:
        """Number of epochs when it is finished."""
        if self.config is None or self.finished:
            return self.facts["epochs"]
        return self.config["until"] or self.config["recipe"]["epochs"]

    @property
    def swaps(self) -> int:
        """Swaps in the depth order over the whole training."""
        return sum(int(row["order_swaps"]) for row in self.history)

    @property
    def seconds(self) -> float:
        """What the training steps took."""
        return sum(float(row["seconds"]) for row in self.history)

    def last(self, column: str) -> float | None:
        """The last value in a column of the history that is not empty; `None` if there is none."""
        found = [float(row[column]) for row in self.history if row[column]]
        return found[-1] if found else None

    @property
    def error(self) -> float | None:
        """Final error in percent; of a run that is not finished the last one measured."""
        return self.facts["test_error"] if self.finished else self.last("test_error")

    @property
    def loss(self) -> float | None:
        """The same of the loss, in nats."""
        found = self.facts.get("test_loss")
        return self.last("test_loss") if found is None else found

    def record(self) -> "WeightRecord | None":
        """The record of registered weights that are this training's, if there is one."""
        digest = self.facts.get("sha256")
        with user_errors():
            return next((r for r in weights.records() if r.sha256 == digest), None)


def record_file(record: "WeightRecord") -> Path:
    """The JSON file of a record of the package."""
    from mf_zoo.weights import registry

    return registry.FOLDER / f"{record.stem}.json"
