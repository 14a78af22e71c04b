"""The settings of a search as one record. No Keras."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mf_zoo.training.recipes import RECIPES, Recipe
from mf_zoo.training.settings import LARGEST_SEED, Record, RunSettings, setting
from mf_zoo.tuning.space import check_recipe, check_space, format_search, parse_search

SEARCH = "search.json"  # the settings of a search, in its folder
TUNERS = ("random", "bayesian", "hyperband", "grid")


def _as_in_run(name: str) -> Any:
    """The field of that name of `RunSettings`, with its default, bounds and help."""
    field = RunSettings.__dataclass_fields__[name]
    return dataclasses.field(default=field.default, metadata=field.metadata)


@dataclasses.dataclass(frozen=True)
class SearchSettings(Record):
    """All settings of a search that change its outcome, but for the backend.

    The folder's `search.json`, the check of a resumed search and the flags of `mf-zoo tune` are
    made from these fields.

    Args:
        models: Name of a model, or several to choose from.
        dataset: Name of a dataset, see `mf_zoo.data.names()`.
        tuner: `"random"`, `"bayesian"` (needs scikit-learn), `"hyperband"` or `"grid"`.
        max_trials: Number of trials. `None` is 20 for random and Bayesian search, one run of
            Hyperband, or the whole grid.
        holdout: Number of training images to choose by, the last ones, which are not trained on.
        limit: Use only the first `limit` training images (holdout included).
        seed: Of the search, of the initial weights and of the batches of all trials. Searches with
            neighbouring seeds share trials, for keras-tuner counts on from the seed: for
            independent ones choose seeds further apart than there are trials.
        weights: Registered weights that every trial starts from, such as `"cifar10"`, or a
            `.weights.h5` file. `train` and `mf-zoo train` take the same. Weights that were trained
            on all images of the same dataset have seen those held out: errors are then too low, and
            choices worth little.
        freeze: Layers that are not trained: names, or patterns as in a shell (`"stage*"`).
        recipe: The values that are not searched: a `Recipe`, a name of `RECIPES`, or a `.toml`
            file. Its `epochs` are those of a trial, with Hyperband of the longest ones.
        search: What is searched, as in `MeanFieldHyperModel`.
        weights_sha256: Digest of the file in `weights`, which `tune` fills in.

    Raises:
        ValueError: If a value is out of range or of the wrong type.

    Example:

    >>> from mf_zoo.tuning import SearchSettings
    >>> settings = SearchSettings("MFResNet20", search=["momentum"], tuner="grid")
    >>> settings.models, settings.search
    (('MFResNet20',), {'momentum': [0.8, 0.9, 0.95, 0.98]})
    """

    models: tuple[str, ...]
    dataset: str = _as_in_run("dataset")
    tuner: str = setting("hyperband", f"{', '.join(TUNERS)} (default: hyperband)", metavar="NAME")
    max_trials: int | None = setting(None, "number of trials", 1, "N")
    holdout: int = setting(
        5000, "choose by the last N training images, not trained on (default: 5000)", 0, "N"
    )
    limit: int | None = setting(None, "use N training images", 1, "N")
    seed: int = setting(0, "of the search and of all its trials (default: 0)", 0, "N", LARGEST_SEED)
    weights: str | None = _as_in_run("weights")
    freeze: tuple[str, ...] = _as_in_run("freeze")
    recipe: Recipe = RECIPES["quick"]
    search: Mapping[str, list | tuple] | None = None
    weights_sha256: str | None = None

    def __post_init__(self) -> None:
        # A recipe may be given as that of a run.
        object.__setattr__(self, "recipe", RunSettings("any", recipe=self.recipe).recipe)
        super().__post_init__()
        check_recipe(self.recipe)
        if not self.models or len(set(self.models)) < len(self.models):
            raise ValueError(
                f"`models` must be one name or several different ones. Received: {self.models}"
            )
        if self.tuner not in TUNERS:
            raise ValueError(
                f"`tuner` must be one of {', '.join(TUNERS)}. Received: tuner={self.tuner!r}"
            )
        if self.holdout < 1:
            raise ValueError(
                "`holdout` must be a whole number from 1: choices are never made on test images. "
                f"Received: holdout={self.holdout!r}"
            )
        if self.search is not None:
            search = self.search
            search = search if isinstance(search, Mapping) else parse_search(search)
            object.__setattr__(self, "search", check_space(search, self.recipe))

    def to_dict(self) -> dict[str, Any]:
        """Returns all values as plain data, fit for JSON."""
        search = None if self.search is None else format_search(self.search)
        return {**super().to_dict(), "search": search}
