"""A valid example of every kind of file that mf_zoo writes and reads again, and its reader."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from mf_zoo import files, weights
from mf_zoo.training.campaign import load_campaign
from mf_zoo.training.recipes import load_recipe

ROOT = pathlib.Path(__file__).parent.parent
OLD = pathlib.Path(__file__).parent / "fixtures" / "version-0.1"
RESULTS = ROOT / "results" / "growth-small"


class Example(NamedTuple):
    """A kind of file.

    Attributes:
        kind: Its name.
        read: Reads a file of that kind; raises UserError or ValueError for a bad one.
        name: What the file must be called.
        content: What a valid one holds.
    """

    kind: str
    read: Callable[[pathlib.Path], Any]
    name: str
    content: bytes


def examples() -> list[Example]:
    """The examples, made by real runs."""
    found = []
    for kind, file in {
        "state": OLD / "begun" / "state.json",
        "config": OLD / "begun" / "config.json",
        "result": OLD / "whole" / "result.json",
        "search": OLD / "search" / "search.json",
        "oracle": OLD / "search" / "keras_tuner" / "oracle.json",
        "trial": OLD / "search" / "keras_tuner" / "trial_0" / "trial.json",
        "record": ROOT / "weights" / "mf_resnet20-cifar10.json",
        "recipe": OLD / "begun" / "config.json",
    }.items():
        found.append(Example(kind, _json(kind), file.name, file.read_bytes()))
    settings = (
        b'{"settings": {"model": "ResNet20", "seed": 1, "recipe": {"epochs": 3}}, '
        b'"machine": {"threads": 1}, "command": "mf-zoo train"}'
    )
    found.append(Example("settings", _json("settings"), "a.settings.json", settings))
    figures = b'{"stages": {"caption": "Stages", "seconds": 1.5}}'
    found.append(Example("figures", _json("figures"), "figures.json", figures))
    histories = sorted(RESULTS.glob("*.history.csv"))
    for kind, file in {
        "runs": RESULTS / "runs.csv",
        "history": histories[0],
        "times": OLD / "begun" / "times.csv",
        "shared": sorted(RESULTS.glob("*.times.csv"))[0],
    }.items():
        found.append(Example(kind, _rows(kind), file.name, file.read_bytes()))
    recorded = b"epoch,stage,particle,time,rank,step,swaps\n0,a,0,1.0,0,1.0,0\n1,a,0,1.5,0,1.0,0\n"
    found.append(Example("recorded", _rows("recorded"), "times.csv", recorded))
    campaign = (
        b'jobs = 2\n[[runs]]\nmodel = ["MFResNet20", "ResNet20"]\nseed = [0, 1]\nepochs = 3\n'
    )
    found.append(Example("campaign", load_campaign, "camp.toml", campaign))
    recipe = b'base = "quick"\nepochs = 9\nlearning_rate = 0.1\n'
    found.append(Example("best", load_recipe, "best.toml", recipe))
    record = ROOT / "weights" / "mf_resnet20-cifar10.json"
    read = weights.record.WeightRecord.read
    found.append(Example("weights", read, record.name, record.read_bytes()))
    return found


def _json(kind: str) -> Callable[[pathlib.Path], Any]:
    return lambda path: files.read_json(path, kind)


def _rows(kind: str) -> Callable[[pathlib.Path], Any]:
    return lambda path: files.read_rows(path, kind)
