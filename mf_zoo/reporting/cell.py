"""The finished runs of a campaign, put together where only the seed differs."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from mf_zoo import applications, files
from mf_zoo.errors import UserError, user_errors
from mf_zoo.training.campaign import RUNS
from mf_zoo.training.recipes import fields

# Values of a recipe that a network without learned times has no use for.
_MEAN_FIELD = fields("stage", "times")


@dataclasses.dataclass
class Cell:
    """Finished runs that differ in the seed only.

    Attributes:
        model: Name of the network.
        dataset: Name of the dataset.
        train_images: Number of images it was trained on.
        evaluated_on: `"test"`, or which images were held out instead.
        setting: Recipe, epochs, and what is changed in the recipe.
        plain_setting: The same without what a network without learned times has no use for.
        rows: The lines of `runs.csv`, by seed.
    """

    model: str
    dataset: str
    train_images: int
    evaluated_on: str
    setting: str
    plain_setting: str
    rows: dict[int, Mapping[str, str]] = dataclasses.field(default_factory=dict)

    @property
    def mean_field(self) -> bool:
        """Whether the network has learned times."""
        return network(self.model).mean_field

    @property
    def plain_model(self) -> str:
        """Name of the plain network of the same architecture."""
        return network(self.model).architecture.name

    @property
    def data(self) -> tuple[str, int, str]:
        """Dataset, number of training images and images evaluated on."""
        return self.dataset, self.train_images, self.evaluated_on

    @property
    def errors(self) -> dict[int, float]:
        """The last epoch's error by seed, in percent."""
        return {seed: float(row["test_error"]) for seed, row in sorted(self.rows.items())}

    def values(self, column: str) -> list[float]:
        """The numbers in a column of `runs.csv`, by seed; earlier versions may have left it out."""
        return [float(row[column]) for _, row in sorted(self.rows.items()) if row[column]]

    def twin(self, others: Iterable["Cell"]) -> "Cell | None":
        """The plain network of a mean-field one: otherwise trained and evaluated alike."""
        wanted = (self.plain_model, *self.data, self.plain_setting)
        for other in others:
            if self.mean_field and (other.model, *other.data, other.setting) == wanted:
                return other
        return None

    def differences(self, twin: "Cell") -> dict[int, float]:
        """Error of this cell minus that of another, by seeds that both have."""
        theirs = twin.errors
        return {seed: error - theirs[seed] for seed, error in self.errors.items() if seed in theirs}


def read_results(folder: Path) -> list[dict[str, str]]:
    """Reads the `runs.csv` of a campaign.

    Args:
        folder: The folder of its results.

    Returns:
        A mapping for each run, finished or not.

    Raises:
        UserError: If there is no such file, or it is not of this version.
    """
    path = folder / RUNS
    if not path.is_file():
        raise UserError(f"The results of a campaign must hold a {RUNS}. Received: {folder}")
    return files.read_rows(path, "runs")


def network(model: str) -> applications.Network:
    """What the registry knows of a network in the results.

    Raises:
        UserError: For one that the registry does not know.
    """
    with user_errors():
        return applications.network(model)


def cells(rows: Iterable[Mapping[str, str]]) -> list[Cell]:
    """Puts the finished runs together that differ in the seed only, in the order of the file.

    Runs that ended before their schedule, for others to grow from, are in none.

    Args:
        rows: What `read_results` returned.

    Returns:
        The cells.
    """
    found: dict[tuple, Cell] = {}
    for row in rows:
        if row["state"] != "finished":
            continue
        epochs = "1 epoch" if row["epochs"] == "1" else f"{row['epochs']} epochs"
        changes = [text for text in row["overrides"].split() if not text.startswith("epochs=")]
        if any(text.startswith("until=") for text in changes):
            continue
        plain = [text for text in changes if text.partition("=")[0] not in _MEAN_FIELD]
        if not network(row["model"]).mean_field:
            changes = plain
        cell = Cell(
            row["model"],
            row["dataset"],
            int(row["train_images"]),
            row["evaluated_on"],
            ", ".join([row["recipe"], epochs, *changes]),
            ", ".join([row["recipe"], epochs, *plain]),
        )
        key = (cell.model, *cell.data, cell.setting)
        found.setdefault(key, cell).rows[int(row["seed"])] = row
    return list(found.values())
