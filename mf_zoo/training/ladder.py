"""Ladders: the runs that a run grows from, each of a network of less depth. No Keras."""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mf_zoo import applications, files
from mf_zoo.applications.registry import networks
from mf_zoo.errors import UserError, one_line
from mf_zoo.training import runs
from mf_zoo.training.recipes import Recipe
from mf_zoo.training.settings import RunSettings


def rungs(settings: RunSettings) -> list[RunSettings]:
    """The runs that a run with a ladder grows from, the first one first.

    A run has the settings of the one that grows from it, but for the model and the epoch at which
    it ends. Of growth its recipe says what has happened until then, so that runs that grow in
    another way, or to another depth, later on share it.

    Args:
        settings: The settings of a run.

    Returns:
        The settings of the other runs, in which no `trunk` is filled in; none without a ladder.

    Raises:
        ValueError: If the ladder names a network that there is not, or that does not grow to the
            one after it.
    """
    recipe, ladder = settings.recipe, settings.recipe.rungs
    found = []
    for number, (name, epoch) in enumerate(ladder):
        text = ",".join(f"{name}:{epoch}" for name, epoch in ladder[:number])
        plain = {} if number else Recipe(name="default").values("growth")
        found.append(
            settings.replace(
                model=_relative(name, settings.model),
                until=epoch,
                recipe=recipe.replace(**{**plain, "ladder": text}),
                trunk=None,
                trunk_sha256=None,
            )
        )
    models = [*(rung.model for rung in found), settings.model]
    for small, large in itertools.pairwise(models):
        check_growth(small, large, recipe.horizon)
    return found


def _relative(name: str, model: str) -> str:
    """Name of the network of an architecture that has learned times if another one has."""
    mean_field = applications.network(model).mean_field
    for network in networks().values():
        if (network.architecture.name, network.mean_field) == (name, mean_field):
            return network.name
    architecture = applications.architecture(model)
    known = {
        network.architecture.name: None
        for network in networks().values()
        if network.architecture.is_depth_of(architecture)
    }
    raise ValueError(
        f"`ladder` must name architectures of the family of {model}: {', '.join(known)}. "
        f"Received: {name!r}"
    )


def check_growth(small: str, large: str, horizon: float | None) -> None:
    """Refuses to grow a network into one that is of another family, or of less depth.

    Args:
        small, large: Names of networks.
        horizon: Horizon of their stages, `None` for the number of particles.

    Raises:
        ValueError: Which says so.
    """
    first, second = applications.network(small), applications.network(large)
    same = first.mean_field == second.mean_field
    same = same and first.architecture.is_depth_of(second.architecture)
    particles = first.architecture.particles, second.architecture.particles
    if not same or any(few > many for few, many in zip(*particles, strict=True)):
        raise ValueError(
            "A network grows to one of the same family that has no fewer blocks in any stage. "
            f"Received: {small} with {particles[0]}, to grow to {large} with {particles[1]}"
        )
    if small != large and set(particles[0]) == {horizon}:
        # `refine` cannot tell it from one that follows the number of particles.
        raise ValueError(
            "A horizon that every stage has as its number of particles grows with that. Received: "
            f"horizon={horizon} of {small} with {particles[0]}"
        )


# What a run and those that it grew from took together, of which its own part is the rest.
_COSTS = ("image_passes", "multiply_adds")


@dataclasses.dataclass(frozen=True)
class Trunk:
    """A finished run that another one grows from.

    Attributes:
        folder: Its folder.
        state: What its `state.json` holds, the last checkpoint.
        config: What its `config.json` holds.
        result: What its `result.json` holds.
    """

    folder: Path
    state: Mapping[str, Any]
    config: Mapping[str, Any]
    result: Mapping[str, Any]

    @property
    def epoch(self) -> int:
        """The epoch of the schedule at which it ended."""
        return self.state["epoch"]

    @property
    def lineage(self) -> list[dict[str, Any]]:
        """The `grown_from` of a run that grows from it: its own and itself, with their costs."""
        before = self.result["grown_from"]
        own = {}
        for key in _COSTS:
            total, others = self.result[key], [rung[key] for rung in before]
            own[key] = None if None in (total, *others) else total - sum(others)
        return [
            *before,
            {
                "model": self.config["model"],
                "epochs": self.epoch,
                "sha256": self.state["sha256"],
                **own,
                "train_seconds": self.result["train_seconds"],
                "weights": self.config.get("weights"),
                "weights_sha256": self.config.get("weights_sha256"),
            },
        ]


def read_trunk(folder: str | Path, settings: RunSettings) -> Trunk:
    """Looks at the run that another one is to grow from.

    Args:
        folder: Its folder.
        settings: Settings of the run that is to grow from it.

    Returns:
        The `Trunk`, whose checkpoint is whole.

    Raises:
        UserError: If it is no finished run, was trained otherwise than `settings` say, or is
            damaged.
    """
    folder = Path(folder)
    config = files.read_json(folder / runs.CONFIG, "config")
    state = files.read_json(folder / runs.STATE, "state")
    result = files.read_json(folder / runs.RESULT, "result")
    costs = {"grown_from", *_COSTS}  # those of earlier versions do not say
    if config is None or state is None or result is None or not costs <= result.keys():
        raise UserError(
            "`trunk` must be the folder of a finished run with `until`, its checkpoint in it. "
            f"Received: trunk={str(folder)!r}"
        )
    try:
        there = RunSettings.from_dict(config)
        expected = rungs(settings)
        check_growth(there.model, settings.model, settings.recipe.horizon)
    except ValueError as error:
        raise UserError(f"{one_line(error)}, trunk={str(folder)!r}") from error
    if expected:
        here = expected[-1]
    else:
        growth = there.recipe.values("growth")
        here = settings.replace(
            model=there.model,
            until=there.until,
            weights=there.weights,
            trunk=None,
            recipe=settings.recipe.replace(**growth),
        )
    if differing := differences(there, here):
        raise UserError(
            f"A run grows from a trunk that was trained with the same settings. {folder}: "
            + "; ".join(differing)
        )
    if not state["epoch"] < settings.last_epoch:
        raise UserError(
            f"`trunk` must have ended before epoch {settings.last_epoch}, for there to be "
            f"something to train. Received: a run of {state['epoch']} epochs, "
            f"trunk={str(folder)!r}"
        )
    checkpoint(folder, state)
    return Trunk(folder, state, config, result)


class DamagedCheckpoint(UserError):
    """A checkpoint that is missing, is not the one that was written, or cannot be loaded."""


def checkpoint(folder: Path, state: Mapping[str, Any]) -> Path:
    """The checkpoint that a run's `state.json` names.

    Raises:
        UserError: If `state.json` names none.
        DamagedCheckpoint: If it is missing or damaged.
    """
    path = folder / state["checkpoint"]
    try:
        whole = path.is_file() and files.sha256(path) == state["sha256"]
    except OSError as error:
        raise DamagedCheckpoint(f"The checkpoint {path} cannot be read: {error}") from error
    if not whole:
        raise DamagedCheckpoint(
            f"The checkpoint {path} is missing or damaged: it does not have the SHA-256 in "
            f"{folder / runs.STATE}"
        )
    return path


# What may be another in a trunk: it changes no weights, or says where they come from.
_FREE = ("eval_every", "trunk", "trunk_sha256", "weights_sha256", "name", "description")


def differences(there: RunSettings, here: RunSettings) -> list[str]:
    """What one run was trained with otherwise than another one, for messages."""
    first, second = ({**run.to_dict(), **run.recipe.to_dict()} for run in (there, here))
    return [
        f"{key} is {first[key]!r} there and {value!r} here"
        for key, value in second.items()
        if key not in ("recipe", *_FREE) and first[key] != value
    ]
