"""Growth as training: trunks, ladders, what they cost, and weights of another depth."""

import csv
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
import tiny_zoo
from tiny_zoo import train

from mf_zoo import applications, cli, data, files, weights
from mf_zoo.errors import UserError
from mf_zoo.reporting.cell import cells, read_results
from mf_zoo.training import RECIPES, RunSettings, campaign, get_recipe, ladder
from mf_zoo.training.dry_run import dry_run

HERE = pathlib.Path(__file__).parent

# Random times and a fast clock, so that particles change places.
RECIPE = RECIPES["quick"].replace(
    epochs=4,
    warmup_epochs=1.0,
    batch_size=16,
    initial_times="random",
    time_learning_rate_multiplier=20.0,
)
GROWING = RECIPE.replace(ladder="Tiny:2", growth_noise=0.1)
OPTIONS = {"seed": 3, "limit": 64, "verbose": 0}
COMMAND = [
    *("train", "Tiny4", "--recipe", "quick", "--seed", "3", "--limit", "64", "--verbose", "0"),
    *("--epochs", "4", "--batch-size", "16", "--set", "warmup_epochs=1"),
    *("--initial-times", "random", "--time-learning-rate-multiplier", "20"),
    *("--ladder", "Tiny:2", "--growth-noise", "0.1"),
]


def _arrays(path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: (
                found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
        )
    return found


def _rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def _assert_same_run(first, second):
    """The same weights to the bit and the same history, apart from the time it took."""
    one, two = (_arrays(folder / "final.weights.h5") for folder in (first, second))
    assert one.keys() == two.keys() and len(one) > 10
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)
    histories = [_rows(folder / "history.csv") for folder in (first, second)]
    for row in itertools.chain(*histories):
        del row["seconds"], row["images_per_second"]
    assert histories[0] == histories[1]
    assert (first / "times.csv").read_text() == (second / "times.csv").read_text()


def _json(path):
    return json.loads(path.read_text())


# --- Recipes and what follows from them --------------------------------------------------------


@pytest.mark.once
def test_a_ladder_is_read_and_has_one_spelling():
    recipe = get_recipe("quick", ladder=" ResNet20:10, ResNet32:20 ")
    assert recipe.ladder == "ResNet20:10,ResNet32:20"
    assert recipe.rungs == (("ResNet20", 10), ("ResNet32", 20))
    assert RECIPES["quick"].rungs == ()
    # The shape of the schedule stays, and the ladder is part of it.
    assert get_recipe(recipe, epochs=8).rungs == (("ResNet20", 2), ("ResNet32", 4))
    assert get_recipe(recipe, epochs=8, ladder="ResNet20:5").rungs == (("ResNet20", 5),)


@pytest.mark.once
@pytest.mark.parametrize(
    "values, message",
    [
        ({"ladder": "ResNet20"}, r"`ladder` must be empty or a list.*Received: ladder='ResNet20'"),
        ({"ladder": "ResNet20:10,"}, r"empty or a list"),
        ({"ladder": "ResNet20:-1"}, r"empty or a list"),
        ({"ladder": "ResNet20:0"}, r"end one after another"),
        ({"ladder": "ResNet20:40"}, r"before the 40 epochs do"),
        ({"ladder": "ResNet20:9,ResNet32:9"}, r"end one after another"),
        ({"ladder": "ResNet20:20", "epochs": 20}, r"before the 20 epochs do"),
        ({"growth_state": "lost"}, r"one of keep, reset"),
        ({"growth_noise": -1}, r"0 or more"),
        ({"growth_rule": "merge"}, r"`growth_rule` must be one of split.*'merge'"),
    ],
)
def test_bad_ladders_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        get_recipe("quick", **values)


@pytest.mark.once
def test_the_runs_of_a_ladder():
    recipe = get_recipe("quick", ladder="ResNet20:10,ResNet32:20", growth_noise=0.1)
    settings = RunSettings("MFResNet56", "cifar100", seed=2, holdout=5000, recipe=recipe)
    first, second = ladder.rungs(settings)
    # The first one knows nothing of growth, and so is that of all ladders that begin like it.
    assert first == settings.replace(model="MFResNet20", until=10, recipe="quick")
    assert second == settings.replace(
        model="MFResNet32", until=20, recipe=recipe.replace(ladder="ResNet20:10")
    )
    other = settings.replace(
        model="MFResNet110",
        recipe=recipe.replace(ladder="ResNet20:10", growth_noise=0.0, growth_state="reset"),
    )
    assert ladder.rungs(other) == [first]
    plain = ladder.rungs(settings.replace(model="ResNet56"))
    assert [run.model for run in plain] == ["ResNet20", "ResNet32"]
    assert ladder.rungs(settings.replace(recipe="quick")) == []
    assert settings.last_epoch == 40 and first.last_epoch == 10


@pytest.mark.once
@pytest.mark.parametrize(
    "model, steps, message",
    [
        ("MFResNet56", "ResNet21:10", r"architectures of the family of MFResNet56: ResNet20, .*'R"),
        ("MFResNet56", "MFResNet20:10", r"Received: 'MFResNet20'"),
        ("MFResNet20", "ResNet56:10", r"no fewer blocks.*MFResNet56 with \(9, 8, 8\), to grow to"),
        ("ResNet56", "ResNet32:9,ResNet20:10", r"Received: ResNet32 with .*, to grow to ResNet20"),
        ("MFResNet56", "PreActResNet110:10", r"of the same family.*PreActResNet110"),
    ],
)
def test_ladders_of_other_networks_are_refused(model, steps, message):
    settings = RunSettings(model, recipe=get_recipe("quick", ladder=steps))
    with pytest.raises(ValueError, match=message):
        ladder.rungs(settings)


@pytest.mark.once
@pytest.mark.parametrize(
    "values, message",
    [
        ({"until": 0}, r"`until` must be a whole number from 1"),
        ({"until": 41}, r"epochs that the model trains, 1 to 40. Received: until=41"),
        ({"until": 20, "recipe": get_recipe("quick", ladder="ResNet20:20")}, r"21 to 40"),
        ({"weights": "cifar10", "trunk": "runs/a"}, r"`weights` or grows from a trunk"),
        (
            {"weights": "cifar10", "recipe": get_recipe("quick", ladder="ResNet20:20")},
            r"Received: weights='cifar10'",
        ),
    ],
)
def test_settings_of_growth_that_do_not_go_together_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        RunSettings("MFResNet56", **{"recipe": "quick", **values})


@pytest.mark.once
def test_a_dry_run_adds_up_the_networks_of_a_ladder(capsys):
    recipe = get_recipe("quick", ladder="ResNet20:10,ResNet32:20")
    found = dry_run(RunSettings("MFResNet56", recipe=recipe))
    counts = [applications.architecture(f"ResNet{n}").multiply_adds() for n in (20, 32, 56)]
    assert counts[0] == 40813184
    passes = [10 * 50_000, 10 * 50_000, 20 * 50_000]
    works = [3 * count * images for count, images in zip(counts, passes, strict=True)]
    assert found["rungs"] == [
        {"model": "MFResNet20", "epochs": 10, "steps": 3910, "multiply_adds": works[0]},
        {"model": "MFResNet32", "epochs": 10, "steps": 3910, "multiply_adds": works[1]},
        {"model": "MFResNet56", "epochs": 20, "steps": 7820, "multiply_adds": works[2]},
    ]
    assert found["training_multiply_adds"] == sum(works)
    assert (found["epochs"], found["steps"]) == (40, 15640)
    command = ["train", "MFResNet56", "--recipe", "quick", "--ladder", "ResNet20:20", "--dry-run"]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    total = 3 * 20 * 50_000 * (counts[0] + counts[2])
    assert f"work           {total:.3g} multiply-adds" in printed
    assert "MFResNet20   20 epochs, 7,820 steps" in printed
    assert cli.main(["train", "Tiny", "--dry-run", "--trunk", "runs/a"]) == 2


# --- Trunks ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(cifar10_dir, tmp_path_factory):
    """A run of `Tiny` that was let alone."""
    folder = tmp_path_factory.mktemp("ladder") / "whole"
    train("Tiny", output=folder, recipe=RECIPE, data_dir=cifar10_dir, **OPTIONS)
    return folder


@pytest.fixture(scope="module")
def trunk(cifar10_dir, tmp_path_factory):
    """The same until its second epoch."""
    folder = tmp_path_factory.mktemp("ladder") / "trunk"
    train("Tiny", output=folder, until=2, recipe=RECIPE, data_dir=cifar10_dir, **OPTIONS)
    return folder


@pytest.mark.once_on_torch
def test_a_trunk_goes_on_to_the_run_that_was_let_alone(whole, trunk, cifar10_dir, tmp_path):
    found = _json(trunk / "result.json")
    assert (found["epochs"], found["grown_from"], found["image_passes"]) == (2, [], 128)
    assert found["test_error"] == float(_rows(trunk / "history.csv")[-1]["test_error"])
    options = {"recipe": RECIPE, "data_dir": cifar10_dir, **OPTIONS}
    result = train("Tiny", output=tmp_path / "branch", trunk=trunk, **options)
    _assert_same_run(whole, tmp_path / "branch")
    alone = _json(whole / "result.json")
    for key in ("sha256", "test_error", "test_loss", "order_swaps", "epochs", "train_loss"):
        assert result[key] == alone[key]
    for key in ("image_passes", "multiply_adds"):
        assert result[key] == alone[key] == 2 * found[key]
    state = _json(trunk / "state.json")
    (rung,) = result["grown_from"]
    assert (rung["model"], rung["epochs"], rung["sha256"]) == ("Tiny", 2, state["sha256"])


@pytest.mark.once_on_torch
def test_a_trunk_that_does_not_fit_is_refused_and_leaves_no_run(
    whole, trunk, cifar10_dir, tmp_path
):
    def refused(message, folder=trunk, model="Tiny4", **changes):
        options = {"recipe": RECIPE, "data_dir": cifar10_dir, **OPTIONS, **changes}
        with pytest.raises(UserError, match=message):
            train(model, output=tmp_path / "run", trunk=folder, **options)
        assert not (tmp_path / "run").exists()

    refused("same settings.*seed is 3 there and 4 here", seed=4)
    refused("limit is 64 there and None here", limit=None)
    refused("learning_rate is 0.2 there and 0.1 here", recipe=RECIPE.replace(learning_rate=0.1))
    refused(r"freeze is \(\) there and \('stem',\) here", freeze="stem")
    refused("until is 2 there and 1 here", recipe=RECIPE.replace(ladder="Tiny:1"))
    refused("must have ended before epoch 2, for", until=2)
    refused("must have ended before epoch 4, for", folder=whole)
    refused(r"must be the folder of a finished run.*Received: trunk='.*none'", tmp_path / "none")
    refused(r"same family.*Received: Tiny .*, to grow to MFResNet20.*trunk=", model="MFResNet20")
    unfinished, damaged = tmp_path / "unfinished", tmp_path / "damaged"
    for folder in (unfinished, damaged):
        shutil.copytree(trunk, folder)
    (unfinished / "result.json").unlink()
    refused("must be the folder of a finished run", unfinished)
    path = damaged / "checkpoint-0002.keras"
    path.write_bytes(path.read_bytes()[:-1])
    refused("checkpoint-0002.keras is missing or damaged", damaged)


@pytest.mark.once_on_torch
def test_a_trunk_that_has_changed_is_noticed(trunk, whole, cifar10_dir, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def write_json(path, content, write=files.write_json):
        if content.get("epoch") == 4:
            raise Killed
        write(path, content)

    moved = tmp_path / "moved"
    shutil.copytree(trunk, moved)
    options = {"recipe": RECIPE, "data_dir": cifar10_dir, **OPTIONS}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(files, "write_json", write_json)
        train("Tiny", output=tmp_path / "run", trunk=moved, **options)
    assert _json(tmp_path / "run" / "state.json")["epoch"] == 3
    checkpoint, state = moved / "checkpoint-0002.keras", _json(moved / "state.json")
    shutil.copy(whole / "checkpoint-0004.keras", checkpoint)
    files.write_json(moved / "state.json", {**state, "sha256": files.sha256(checkpoint)})
    with pytest.raises(UserError, match="trunk_sha256 is '.*' there and '.*' here"):
        train("Tiny", output=tmp_path / "run", trunk=moved, resume=True, **options)
    # The folder may be another; the trunk is the same.
    train("Tiny", output=tmp_path / "run", trunk=trunk, resume=True, **options)
    _assert_same_run(whole, tmp_path / "run")
