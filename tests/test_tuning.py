"""The hypermodel, what the tuners make of it, and `mf-zoo tune`."""

import collections
import csv
import itertools
import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import keras
import keras_tuner
import numpy as np
import pytest
import tiny_zoo

from mf_zoo import applications, cli, data, files, layers
from mf_zoo.errors import UserError
from mf_zoo.training import RECIPES, Recipe, evaluate
from mf_zoo.training.recipes import load_recipe
from mf_zoo.tuning import (
    SPACE,
    MeanFieldHyperModel,
    SearchSettings,
    oracles,
    results,
    search,
    tune,
)
from mf_zoo.tuning.picture import parallel_coordinates
from mf_zoo.tuning.space import MEAN_FIELD, check_space, format_search, parse_search

HERE = pathlib.Path(__file__).parent
OLD = HERE / "fixtures" / "version-0.1" / "search"
BOTH = ("Tiny", "TinyPlain")
# Three steps an epoch of 24 images.
RECIPE = RECIPES["quick"].replace(epochs=3, warmup_epochs=1.0, batch_size=8, learning_rate=0.05)


def _images(count=24):
    images, labels = data.sample("cifar10")
    chosen = np.random.default_rng(0).permutation(200)[: count + 40]
    return (images[chosen[:count]], labels[chosen[:count]]), (
        images[chosen[count:]],
        labels[chosen[count:]],
    )


def _hyperparameters(**values):
    """Hyperparameters as a tuner hands them out: no space, but values."""
    hp = keras_tuner.HyperParameters()
    hp.values = values
    return hp


def _array(value):
    return keras.ops.convert_to_numpy(value)


class Instant(MeanFieldHyperModel):
    """One whose trials take no time: accuracy is a function of the recipe, best at one point."""

    calls: list

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = []

    def build(self, hp):
        self.recipe(hp)

    def fit(self, hp, model, *args, epochs, **kwargs):
        recipe = self.recipe(hp)
        self.calls.append(recipe)
        distance = abs(math.log10(recipe.learning_rate / 0.03)) + recipe.label_smoothing
        return {"val_accuracy": 1 / (1 + distance) - 0.1 / epochs, "loss": distance, "seconds": 1.0}


def _instant_trial(self, trial, *args, epochs=3, **kwargs):
    """Instead of `Tuner.run_trial`, which collects garbage and writes checkpoints."""
    hp = trial.hyperparameters
    return self.hypermodel.fit(hp, None, epochs=hp.values.get("tuner/epochs", epochs))


# --- The space -------------------------------------------------------------------------------


@pytest.mark.once
def test_a_search_is_read_from_the_command_line():
    texts = ["momentum", "learning_rate=0.01:1", "cutout=0,8", "quadrature=midpoint", "flip"]
    space = parse_search(texts)
    assert space == {
        "momentum": None,
        "learning_rate": (0.01, 1),
        "cutout": [0, 8],
        "quadrature": ["midpoint"],
        "flip": None,
    }
    checked = check_space(space, RECIPE)
    assert checked["momentum"] == SPACE["momentum"] and checked["learning_rate"] == (0.01, 1.0)
    assert type(checked["learning_rate"][1]) is float
    assert parse_search(format_search(checked)) == checked
    everything = check_space(SPACE, RECIPE)
    assert everything == dict(SPACE) == check_space(parse_search(format_search(SPACE)), RECIPE)


@pytest.mark.once
@pytest.mark.parametrize(
    "given, message",
    [
        ([], r"at least one value to search\. Received: \[\]"),
        (["wieght_decay"], "did you mean 'weight_decay'.*Received: 'wieght_decay'"),
        (["epochs"], "`epochs` is fixed in a search.*Received: 'epochs'"),
        (["schedule"], "`schedule` has no range of its own.*Received: 'schedule'"),
        ({"momentum": 0.9}, r"must be a list, or a pair of numbers.*Received: 0\.9"),
        ({"momentum": (0.9, 0.8)}, r"a pair of numbers \(low, high\)\. Received: \(0\.9, 0\.8\)"),
        ({"quadrature": ("a", "b")}, r"a pair of numbers.*Received: \('a', 'b'\)"),
        ({"momentum": [0.9, 1.0]}, r"momentum.*in \[0, 1\).*Received: momentum=1\.0"),
        ({"batch_size": (1.0, 2.0)}, "batch_size.*type int.*Received"),
        ({"cutout": [8, 8]}, r"different from each other.*Received: \[8, 8\]"),
        ({"cutout": []}, "Received"),
        ({"horizon": [1.0, None]}, r"not None\. Received: \[1\.0, None\]"),
    ],
)
def test_bad_spaces_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        check_space(given, RECIPE)


@pytest.mark.once
def test_bad_arguments_of_the_hypermodel():
    with pytest.raises(ValueError, match=r"Model must be one of.*Received: 'ResNet21'"):
        MeanFieldHyperModel("ResNet21")
    with pytest.raises(ValueError, match=r"several different ones\. Received: \['Tiny', 'Tiny'\]"):
        MeanFieldHyperModel(["Tiny", "Tiny"])
    with pytest.raises(ValueError, match=r"nothing to search in quadrature\. Received: .*Plain"):
        MeanFieldHyperModel("TinyPlain", search=["momentum", "quadrature"])
    with pytest.raises(ValueError, match=r"whole number from 1\. Received: 0"):
        MeanFieldHyperModel("Tiny", train_images=0)
    with pytest.raises(ValueError, match=r"layers of the model, which are .*stem.*Received: 'x\*'"):
        MeanFieldHyperModel("Tiny", classes=10, freeze="x*").build(_hyperparameters())
    (images, labels), validation = _images()
    hypermodel = MeanFieldHyperModel("Tiny", recipe=RECIPE)
    model = tiny_zoo.tiny()
    for epochs, initial in ((4, 0), (2, 2)):
        with pytest.raises(keras_tuner.errors.FatalValueError, match=r"1\.\.3.*Received: epochs="):
            hypermodel.fit(
                _hyperparameters(),
                model,
                images,
                labels,
                validation_data=validation,
                epochs=epochs,
                initial_epoch=initial,
            )


def _sampled(hypermodel, count=300, **arguments):
    """The recipes and values of so many random trials."""
    oracle = keras_tuner.oracles.RandomSearchOracle(
        "val_accuracy", max_trials=count, seed=1, **arguments
    )
    hp = oracle.get_space()
    hypermodel.recipe(hp)
    oracle.update_space(hp)
    found = []
    for trial in range(count):
        hp = oracle.get_space()
        hp.values = oracle.populate_space(str(trial))["values"]
        values = dict(hp.values)
        found.append((hypermodel.model_name(hp), hypermodel.recipe(hp), values))
        assert hp.values == values  # nothing that the oracle did not know of
    return found


@pytest.mark.once
def test_a_value_is_searched_only_where_it_matters():
    hypermodel = MeanFieldHyperModel(BOTH, recipe=RECIPE)
    seen = collections.defaultdict(set)
    default = Recipe(name="default")
    for model, recipe, values in _sampled(hypermodel):
        mean_field = model == "Tiny"
        assert (values["model"], "quadrature" in values, "initial_times" in values) == (
            model,
            mean_field,
            mean_field,
        )
        moving = values.get("quadrature") in ("backward", "midpoint")
        assert ("time_learning_rate_multiplier" in values) == moving
        fixed = values.get("fixed_horizon", False)
        assert ("horizon" in values, "mean_field_scaling" in values) == (fixed, fixed)
        for name in MEAN_FIELD:
            if name not in values:
                assert getattr(recipe, name) == getattr(default, name)
        for name, value in values.items():
            if name in SPACE:
                used = getattr(recipe, name)
                assert used == (pytest.approx(value, rel=1e-3) if type(value) is float else value)
                seen[name].add(value)
    for name, choices in SPACE.items():
        if isinstance(choices, list):
            assert seen[name] == set(choices), name
        else:
            low, high = choices
            assert low <= min(seen[name]) < low * 1.5 and high / 1.5 < max(seen[name]) <= high
    # Logarithmic: half of the learning rates are below the geometric mean.
    below = np.mean([rate < 0.1 for rate in seen["learning_rate"]])
    assert 0.4 < below < 0.6


@pytest.mark.once
def test_the_default_is_the_recipe():
    for recipe in RECIPES.values():
        named = {"name": "tuned", "description": "Found by mf_zoo.tuning."}
        hypermodel = MeanFieldHyperModel(BOTH, recipe=recipe)
        assert hypermodel.recipe(keras_tuner.HyperParameters()) == recipe.replace(**named)
    fixed = RECIPES["paper"].replace(horizon=2.0, mean_field_scaling=True, **named)
    assert MeanFieldHyperModel("Tiny", recipe=fixed).recipe(keras_tuner.HyperParameters()) == fixed


@pytest.mark.once
def test_what_is_not_searched_is_the_recipes():
    recipe = RECIPE.replace(horizon=2.0, mixup=0.3)
    search = {"learning_rate": (0.1, 0.2), "mean_field_scaling": None}
    for _, found, values in _sampled(MeanFieldHyperModel("Tiny", recipe=recipe, search=search), 50):
        assert set(values) == {"model", "learning_rate", "mean_field_scaling"}
        changed = {name: getattr(found, name) for name in search}
        assert found == recipe.replace(name=found.name, description=found.description, **changed)
        assert changed["learning_rate"] == float(f"{values['learning_rate']:.4g}")
    plain = MeanFieldHyperModel("TinyPlain", recipe=recipe)
    assert not set(plain.space) & set(MEAN_FIELD)
    assert plain.recipe(keras_tuner.HyperParameters()).horizon is None
    pretrained = MeanFieldHyperModel("MFResNet20", weights="cifar10")
    assert set(SPACE) - set(pretrained.space) == {"quadrature", "initial_times", "horizon"}


@pytest.mark.once
@pytest.mark.parametrize("models", [BOTH, ("Tiny",)])
def test_hyperparameters_given_to_the_tuner_hold(models):
    given = keras_tuner.HyperParameters()
    given.Fixed("learning_rate", 0.123456)  # not rounded
    given.Fixed("quadrature", "midpoint")
    given.Fixed("time_learning_rate_multiplier", 3)
    given.Fixed("horizon", 1.5)
    given.Choice("cutout", [2, 3])
    recipes = [
        (model, recipe)
        for model, recipe, _ in _sampled(
            MeanFieldHyperModel(models, recipe=RECIPE), 40, hyperparameters=given
        )
    ]
    assert {recipe.learning_rate for _, recipe in recipes} == {0.123456}
    assert {recipe.cutout for _, recipe in recipes} == {2, 3}
    mean_field = [recipe for model, recipe in recipes if model == "Tiny"]
    assert {recipe.quadrature for recipe in mean_field} == {"midpoint"}
    assert {recipe.time_learning_rate_multiplier for recipe in mean_field} == {3.0}
    assert {recipe.horizon for recipe in mean_field} == {1.5}
    assert {recipe.mean_field_scaling for recipe in mean_field} == {False, True}
    assert len({recipe.weight_decay for _, recipe in recipes}) == 40
    assert {recipe.horizon for model, recipe in recipes if model != "Tiny"} <= {None}
    # One that is not searched.
    given = keras_tuner.HyperParameters()
    given.Fixed("schedule", "cosine")
    given.Fixed("noise_temperature", 0.5)
    hypermodel = MeanFieldHyperModel(models, recipe=RECIPE, search=["momentum"])
    for model, recipe, _ in _sampled(hypermodel, 4, hyperparameters=given):
        assert recipe.schedule == "cosine"
        assert recipe.noise_temperature == (0.5 if model == "Tiny" else 0.0)
    hypermodel = MeanFieldHyperModel(models, recipe=RECIPE, search={"integrator": ["heun"]})
    for model, recipe, _ in _sampled(hypermodel, 4):
        assert recipe.integrator == ("heun" if model == "Tiny" else "euler")
    # A condition whose other side is fixed.
    given = keras_tuner.HyperParameters()
    given.Fixed("fixed_horizon", True)
    given.Fixed("quadrature", "uniform")
    hypermodel = MeanFieldHyperModel(models, recipe=RECIPE)
    for model, recipe, values in _sampled(hypermodel, 40, hyperparameters=given):
        assert "time_learning_rate_multiplier" not in values
        assert (recipe.horizon is not None) == (model == "Tiny")


@pytest.mark.once
def test_new_entries_may_be_left_at_their_defaults(tmp_path, monkeypatch):
    given = keras_tuner.HyperParameters()
    given.Float("learning_rate", 0.01, 0.04)
    recipe = RECIPES["quick"]
    hypermodel = Instant(BOTH, recipe=recipe)
    monkeypatch.setattr(keras_tuner.RandomSearch, "run_trial", _instant_trial)
    tuner = keras_tuner.RandomSearch(
        hypermodel,
        "val_accuracy",
        max_trials=5,
        seed=1,
        hyperparameters=given,
        tune_new_entries=False,
        directory=tmp_path,
    )
    tuner.search(verbose=0)
    assert len({found.learning_rate for found in hypermodel.calls}) == 5
    for found in hypermodel.calls:
        assert 0.01 <= found.learning_rate <= 0.04
        changed = {"name": "x", "description": "", "learning_rate": 0.05}
        assert found.replace(**changed) == recipe.replace(**changed)


# --- Settings --------------------------------------------------------------------------------


@pytest.mark.once
def test_settings_are_plain_data_and_back():
    settings = SearchSettings(
        BOTH,
        tuner="grid",
        limit=100,
        freeze="st*",
        recipe=RECIPE,
        search={"momentum": None, "learning_rate": (0.01, 1)},
    )
    stored = json.loads(json.dumps(settings.to_dict()))
    assert stored["search"] == ["learning_rate=0.01:1.0", "momentum=0.8,0.9,0.95,0.98"]
    assert SearchSettings.from_dict({**stored, "date": "today"}) == settings
    # Values that came later have their defaults in older files.
    for name in ("weights", "freeze", "weights_sha256"):
        del stored[name]
    del stored["recipe"]["reorder"]
    assert SearchSettings.from_dict(stored) == settings.replace(freeze=())
    assert SearchSettings("Tiny").models == ("Tiny",)
    assert SearchSettings("Tiny", recipe="paper").recipe == RECIPES["paper"]
    assert SearchSettings("Tiny").to_dict()["search"] is None


@pytest.mark.once
@pytest.mark.parametrize(
    "values, message",
    [
        ({"models": ()}, r"one name or several different ones\. Received: \(\)"),
        ({"models": ("Tiny", "Tiny")}, r"several different ones\. Received: \('Tiny', 'Tiny'\)"),
        ({"tuner": "best"}, r"random, bayesian, hyperband, grid\. Received: tuner='best'"),
        ({"holdout": 0}, r"never made on test images\. Received: holdout=0"),
        ({"max_trials": 0}, r"from 1\. Received: max_trials=0"),
        ({"seed": 1.0}, r"from 0 to 4294967295\. Received: seed=1\.0"),
        ({"search": ["wieght_decay"]}, "did you mean 'weight_decay'"),
        ({"recipe": "slow"}, "`recipe` must be one of.*Received: 'slow'"),
    ],
)
def test_bad_settings(values, message):
    with pytest.raises(ValueError, match=message):
        SearchSettings(**{"models": "Tiny", **values})


# --- What tuners explore ---------------------------------------------------------------------


def _instant_search(folder, monkeypatch, tuner="random", resume=False, **options):
    """`tune` with trials that take no time; the rows of the table, without times of day."""
    monkeypatch.setattr(search, "MeanFieldHyperModel", Instant)
    monkeypatch.setattr(search, "load_data", lambda *_: ((None, None), (None, None)))
    monkeypatch.setattr(results, "_draw", lambda *_: None)
    monkeypatch.setattr(oracles.Tuner, "run_trial", _instant_trial)
    settings = SearchSettings(BOTH, tuner=tuner, **{"recipe": RECIPE, "seed": 0, **options})
    tune(settings, folder, resume=resume, verbose=0)
    return _rows(folder / "trials.csv")


def _rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def _without_seconds(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.mark.once
def test_grid_search_tries_every_combination_once(tmp_path, monkeypatch):
    space = {"cutout": [0, 8, 16], "flip": None}
    rows = _instant_search(tmp_path / "a", monkeypatch, "grid", search=space)
    found = [(row["model"], row["cutout"], row["flip"]) for row in rows]
    assert found[0] == ("Tiny", "0", "True")  # the defaults
    assert sorted(found) == sorted(itertools.product(BOTH, ("0", "8", "16"), ("True", "False")))


@pytest.mark.once
def test_hyperband_spends_its_epochs_as_it_should(tmp_path, monkeypatch):
    # R = 9, eta = 3: keras-tuner's brackets are 9 trials of 1 epoch, the best 3 of them to 3 and
    # the best one to 9; 5 of 3 epochs, the best 2 to 9; 3 of 9.
    recipe = RECIPE.replace(epochs=9)
    rows = _instant_search(tmp_path / "a", monkeypatch, "hyperband", recipe=recipe)
    epochs = [int(row["epochs"]) for row in rows]
    fresh = [epoch for row, epoch in zip(rows, epochs, strict=True) if not row["goes_on_from"]]
    assert collections.Counter(fresh) == {1: 9, 3: 5, 9: 3}
    by_number = {row["trial"]: row for row in rows}
    went_on = [row for row in rows if row["goes_on_from"]]
    assert collections.Counter(row["epochs"] for row in went_on) == {"3": 3, "9": 3}
    searched = ["model", *SPACE]
    for row in went_on:
        before = by_number[row["goes_on_from"]]
        assert [row[name] for name in searched] == [before[name] for name in searched]
        assert int(row["epochs"]) == 3 * int(before["epochs"])
    # The first bracket promotes the best: those of lowest error.
    first = sorted(rows[:9], key=lambda row: float(row["val_error"]))
    promoted = [row["goes_on_from"] for row in went_on if row["epochs"] == "3"]
    assert sorted(promoted) == sorted(row["trial"] for row in first[:3])
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert result["epochs"] == 9 and result["trials"] == len(rows) == 23
    longest = [row for row in rows if row["epochs"] == "9"]
    best = min(longest, key=lambda row: float(row["val_error"]))
    assert result["best_trial"] == best["trial"]
    assert result["val_error"] == float(best["val_error"])


@pytest.mark.once
def test_hyperband_stops_after_the_trials_it_was_given(tmp_path, monkeypatch):
    rows = _instant_search(tmp_path / "a", monkeypatch, "hyperband", max_trials=4)
    assert len(rows) == 4
    rows = _instant_search(tmp_path / "b", monkeypatch, "hyperband", max_trials=30)
    assert len(rows) == 30  # several runs of Hyperband
    assert len({row["learning_rate"] for row in rows if not row["goes_on_from"]}) > 15


@pytest.mark.once
def test_bayesian_optimization_finds_the_best_point(tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install 'keras-tuner[bayesian]'")
    space = {"learning_rate": (0.001, 1.0), "label_smoothing": (0.0, 0.3)}
    options = {"search": space, "max_trials": 20, "seed": 3}
    guessed = _instant_search(tmp_path / "a", monkeypatch, "random", **options)
    modelled = _instant_search(tmp_path / "b", monkeypatch, "bayesian", **options)

    errors = np.array([[float(row["val_error"]) for row in rows] for rows in (guessed, modelled)])
    # Nine points at random, three for each of model and values; then where the model expects most.
    np.testing.assert_array_equal(errors[0, :9], errors[1, :9])
    assert errors[1, -5:].mean() < 0.5 * errors[0, -5:].mean()
    late = [float(row["learning_rate"]) for row in modelled[-5:]]
    assert all(0.01 < rate < 0.1 for rate in late)  # the best is 0.03


@pytest.mark.once
@pytest.mark.parametrize(
    "name", ["RandomSearch", "BayesianOptimization", "Hyperband", "GridSearch"]
)
def test_the_tuners_of_keras_tuner_run_it(name, tmp_path, monkeypatch):
    if name == "BayesianOptimization":
        pytest.importorskip("sklearn", reason="needs scikit-learn")
    monkeypatch.setattr(keras_tuner.Tuner, "run_trial", _instant_trial)
    hypermodel = Instant(BOTH, recipe=RECIPES["quick"])
    limit = {"max_epochs": 9} if name == "Hyperband" else {"max_trials": 50}
    tuner = getattr(keras_tuner, name)(
        hypermodel, "val_accuracy", seed=1, directory=tmp_path, **limit
    )
    if name == "BayesianOptimization":  # its model is slow; random points come first
        tuner.oracle.max_trials, tuner.oracle.num_initial_points = 8, 4
    tuner.search(verbose=0)
    trials = tuner.oracle.trials.values()
    assert {trial.status for trial in trials} == {"COMPLETED"}
    promoted = sum("tuner/trial_id" in trial.hyperparameters.values for trial in trials)
    expected = {"BayesianOptimization": 8, "Hyperband": 23}.get(name, 50)
    assert len(trials) == expected and promoted == (6 if name == "Hyperband" else 0)
    assert len(set(hypermodel.calls)) == expected - promoted
    best = max(hypermodel.calls, key=lambda recipe: -abs(math.log10(recipe.learning_rate / 0.03)))
    if name == "RandomSearch":
        assert 0.02 < best.learning_rate < 0.045
    found = hypermodel.recipe(tuner.get_best_hyperparameters()[0])
    assert found in hypermodel.calls


@pytest.mark.once
def test_the_seed_is_the_search(tmp_path, monkeypatch):
    tables = [
        _instant_search(tmp_path / name, monkeypatch, max_trials=6, seed=seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1000))
    ]
    assert tables[0] == tables[1]
    assert all(one != two for one, two in zip(tables[0], tables[2], strict=True))


# --- Kills -----------------------------------------------------------------------------------


class Killed(BaseException):
    """As good as kill -9: nothing of the search goes on after it."""


@pytest.mark.once
@pytest.mark.parametrize("tuner", ["random", "hyperband", "grid"])
def test_a_search_killed_at_any_write_ends_the_same(tuner, tmp_path, monkeypatch):
    options = {"search": {"learning_rate": None, "cutout": [0, 8]}}
    options |= {"max_trials": 5 if tuner != "hyperband" else None}
    monkeypatch.setattr(os, "fsync", lambda _: None)  # for the time
    write, writes = files.write_json, []

    def count(path, content):
        writes.append(path.name)
        write(path, content)

    monkeypatch.setattr(files, "write_json", count)
    expected = _instant_search(tmp_path / "whole", monkeypatch, tuner, **options)
    assert len(expected) >= 5
    total = len(writes)
    assert collections.Counter(writes)["trial.json"] >= 3 * len(expected) - 2

    for kill in range(1, total):
        folder = tmp_path / str(kill)
        left = kill

        def count_down(path, content):
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            write(path, content)

        monkeypatch.setattr(files, "write_json", count_down)
        with pytest.raises(Killed):
            _instant_search(folder, monkeypatch, tuner, **options)
        monkeypatch.setattr(files, "write_json", write)
        assert _instant_search(folder, monkeypatch, tuner, resume=True, **options) == expected, (
            f"killed at write {kill} of {total}, {writes[kill]}"
        )


@pytest.mark.once
def test_a_bayesian_search_goes_on_to_the_same_values(tmp_path):
    pytest.importorskip("sklearn", reason="needs scikit-learn")

    def oracle(name):
        given = keras_tuner.HyperParameters()
        given.Float("x", 0.0, 1.0)
        given.Float("y", 0.0, 1.0)
        one = oracles.BayesianOptimizationOracle(
            "val_accuracy", 6, num_initial_points=3, seed=1, hyperparameters=given
        )
        one._set_project_dir(str(tmp_path), name)  # as a tuner does
        one.verbose = 0
        return one

    def run(one):
        trial = one.create_trial("tuner0")
        x, y = (trial.hyperparameters.values[name] for name in "xy")
        accuracy = math.sin(9 * x) * math.cos(7 * y)
        one.update_trial(trial.trial_id, {"val_accuracy": accuracy})
        trial.status = "COMPLETED"
        one.end_trial(trial)
        return x, y

    whole = oracle("whole")
    expected = [run(whole) for _ in range(6)]
    found = []
    for number in range(6):  # killed after each trial, and in the middle of every other
        if number % 2:
            killed = oracle("killed")
            killed.reload()
            killed.create_trial("tuner0")
        one = oracle("killed")
        if number:
            one.reload()
            assert list(one.trials) == one.start_order
        found.append(run(one))
    assert found == expected


def _process(signal_name, when, *arguments):
    return subprocess.run(
        [sys.executable, HERE / "tiny_zoo.py", signal_name, when, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "KERAS_BACKEND": keras.config.backend(),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
        timeout=300,
    )


COMMAND = [
    *("tune", "Tiny", "--tuner", "random", "--max-trials", "2", "--epochs", "2", "--seed", "5"),
    *("--holdout", "40", "--limit", "64", "--set", "batch_size=8", "--search", "momentum"),
    *("--search", "learning_rate=0.01:0.1"),
]


@pytest.fixture(scope="module")
def finished(cifar10_dir, tmp_path_factory):
    """The folder of a search that was let alone."""
    folder = tmp_path_factory.mktemp("searches") / "finished"
    arguments = [*COMMAND, "--data-dir", str(cifar10_dir), "--output", str(folder)]
    assert cli.main(arguments) == 0
    return folder


@pytest.mark.once_on_torch
def test_the_folder_is_complete(finished):
    names = {path.name for path in finished.iterdir()} - {files.LOCK}
    assert names == {
        *("search.json", "trials.csv", "best.toml", "result.json", "trials.png", "keras_tuner")
    }
    config = json.loads((finished / "search.json").read_text())
    assert config["models"] == ["Tiny"] and config["seed"] == 5 and config["limit"] == 64
    assert config["command"].startswith("mf-zoo tune Tiny --tuner random --max-trials 2")
    assert config["search"][0].startswith("learning_rate=0.01:0.1")
    assert config["recipe"]["epochs"] == 2 and config["recipe"]["batch_size"] == 8
    rows = _rows(finished / "trials.csv")
    assert [row["trial"] for row in rows] == ["0", "1"]
    assert {row["status"] for row in rows} == {"COMPLETED"}
    result = json.loads((finished / "result.json").read_text())
    best = min(rows, key=lambda row: float(row["val_error"]))
    assert (result["best_trial"], result["val_error"]) == (best["trial"], float(best["val_error"]))
    assert result["evaluated_on"] == "last 40 training images"
    recipe = load_recipe(finished / "best.toml")
    assert recipe.learning_rate == float(best["learning_rate"])
    assert recipe.momentum == float(best["momentum"])
    assert (finished / "trials.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.once_on_torch
def test_the_best_recipe_trains_as_the_trial_did(finished, cifar10_dir, tmp_path, capsys):
    arguments = ["train", "Tiny", "--recipe", str(finished / "best.toml"), "--seed", "5"]
    arguments += ["--holdout", "40", "--limit", "64", "--data-dir", str(cifar10_dir)]
    arguments += ["--output", str(tmp_path / "run"), "--verbose", "0"]
    assert cli.main(arguments) == 0
    trained = json.loads((tmp_path / "run" / "result.json").read_text())
    result = json.loads((finished / "result.json").read_text())
    row = _rows(finished / "trials.csv")[int(result["best_trial"])]
    assert trained["test_error"] == pytest.approx(result["val_error"], abs=1e-3)
    assert trained["train_loss"] == pytest.approx(float(row["loss"]), rel=1e-5)


@pytest.mark.once_on_torch
def test_a_search_from_weights_goes_on_and_its_recipe_trains_as_the_trial_did(
    cifar10_dir, tmp_path, monkeypatch, capsys
):
    fit, recipes = MeanFieldHyperModel.fit, []

    def fit_once(self, hp, *args, **kwargs):
        recipes.append(self.recipe(hp))
        if len(recipes) == 2:
            raise Killed
        return fit(self, hp, *args, **kwargs)

    keras.utils.set_random_seed(1)
    source = tmp_path / "source.weights.h5"
    tiny_zoo.tiny().save_weights(source)
    start = ["--weights", str(source), "--freeze", "st*"]
    folder, common = tmp_path / "search", ["--data-dir", str(cifar10_dir), "--output"]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(MeanFieldHyperModel, "fit", fit_once)
        cli.main([*COMMAND, *start, *common, str(folder)])
    assert "trial 0 (1 of 2)" in capsys.readouterr().out
    resume = ["tune", "--resume", "--output", str(folder)]
    assert "freeze is ['st*'] there and ['stem'] here" in _fails(
        capsys, *resume, "--freeze", "stem"
    )
    assert cli.main(resume) == 0
    config, result = (
        json.loads((folder / name).read_text()) for name in ("search.json", "result.json")
    )
    for settings in (config, result):
        assert (settings["weights"], settings["freeze"]) == (str(source), ["st*"])
    row = _rows(folder / "trials.csv")[int(result["best_trial"])]

    arguments = ["train", "Tiny", "--recipe", str(folder / "best.toml"), "--seed", "5", *start]
    arguments += ["--holdout", "40", "--limit", "64", "--verbose", "0", *common]
    assert "mf-zoo train Tiny " + " ".join(start[:2]) in (folder / "best.toml").read_text()
    assert cli.main([*arguments, str(tmp_path / "run")]) == 0
    trained = json.loads((tmp_path / "run" / "result.json").read_text())
    assert trained["test_error"] == pytest.approx(result["val_error"], abs=1e-3)
    assert trained["train_loss"] == pytest.approx(float(row["loss"]), rel=1e-5)


@pytest.mark.once_on_torch
def test_a_killed_search_goes_on_to_the_same_trials(finished, cifar10_dir, tmp_path, capsys):
    folder = tmp_path / "a search"
    # In the second epoch of the second trial.
    process = _process("SIGKILL", "1.1.2", *COMMAND, "--data-dir", cifar10_dir, "--output", folder)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert len(process.stdout.splitlines()) == 1 and process.stdout.startswith("trial 0 (1 of 2)")
    assert [row["status"] for row in _rows(folder / "trials.csv")] == ["COMPLETED"]
    assert not (folder / "result.json").exists()
    assert cli.main(["tune", "--output", str(folder), "--resume", "--seed", "6"]) == 2
    assert "seed is 5 there and 6 here" in capsys.readouterr().err
    assert cli.main(["tune", "--output", str(folder)]) == 2
    assert "A model must be named" in capsys.readouterr().err
    assert cli.main(["tune", "--output", str(folder), "--resume"]) == 0
    printed = capsys.readouterr().out
    assert "trial 1 (2 of 2)" in printed and "trial 0 (" not in printed
    one, two = (_rows(path / "trials.csv") for path in (finished, folder))
    assert _without_seconds(one) == _without_seconds(two)
    assert (finished / "best.toml").read_text() == (folder / "best.toml").read_text()


@pytest.mark.once_on_torch
def test_a_search_begun_by_version_0_1_is_resumed(finished, cifar10_dir, tmp_path, capsys):
    """Of the two trials of the search in `finished` one was done."""
    folder = tmp_path / "search"
    shutil.copytree(OLD, folder)
    (before,) = _rows(folder / "trials.csv")
    command = ["tune", "--resume", "--output", str(folder), "--data-dir", str(cifar10_dir)]
    assert "seed is 5 there and 6 here" in _fails(capsys, *command, "--seed", "6")
    assert cli.main(command) == 0
    assert "trial 0 (" not in capsys.readouterr().out
    first, second = _rows(folder / "trials.csv")
    assert first == before
    expected = _rows(finished / "trials.csv")[1]
    for name in ("trial", "status", "epochs", "model", "learning_rate", "momentum"):
        assert second[name] == expected[name]
    # Another processor rounds otherwise.
    assert float(second["val_loss"]) == pytest.approx(float(expected["val_loss"]), rel=1e-3)


# --- Models and their training ---------------------------------------------------------------


def test_the_values_reach_the_model():
    hypermodel = MeanFieldHyperModel(BOTH, recipe=RECIPE, classes=7, train_images=17)
    hp = _hyperparameters(
        model="Tiny",
        quadrature="midpoint",
        initial_times="grid",
        time_learning_rate_multiplier=5.0,
        fixed_horizon=True,
        horizon=1.5,
        mean_field_scaling=True,
        learning_rate=0.12345678,
        momentum=0.8,
        nesterov=False,
        weight_decay=2e-3,
        label_smoothing=0.1,
        batch_size=4,
    )
    model = hypermodel.build(hp)
    (stage,) = layers.stages(model)
    assert (stage.horizon, type(stage.quadrature).__name__) == (1.5, "MidpointRule")
    np.testing.assert_allclose(_array(stage.times), [0.25, 0.75, 1.25], rtol=1e-6)
    config = model.optimizer.get_config()
    expected = {"momentum": 0.8, "nesterov": False, "weight_decay": 2e-3}
    expected |= {"time_learning_rate_multiplier": 5.0, "mean_field_scaling": True, "seed": 0}
    assert {key: config[key] for key in expected} == expected
    assert config["coupled_weight_decay"] is True
    assert model.loss.label_smoothing == 0.1
    assert model.output_shape == (None, 7)
    logits = model.predict(_images()[0][0][:2], verbose=0)
    assert not np.allclose(logits.sum(axis=1), 1)
    # 17 images in batches of 4 are 5 steps; the first of 3 epochs rises from 1/25.
    schedule = model.optimizer._learning_rate
    rates = [float(_array(schedule(step))) for step in (0, 5, 14)]
    last = 0.1235 * 0.5 * (1 + math.cos(math.pi * 9 / 10))
    np.testing.assert_allclose(rates, [0.1235 / 25, 0.1235, last], rtol=1e-4)
    # The plain twin is built by the same values, and has no horizon to set.
    plain = hypermodel.build(_hyperparameters(model="TinyPlain", learning_rate=0.02))
    assert [stage.horizon for stage in layers.stages(plain)] == [3.0]


@pytest.mark.once_on_torch
def test_frozen_layers_stay_and_others_learn(tmp_path):
    keras.utils.set_random_seed(1)
    source = tiny_zoo.tiny()
    source.save_weights(tmp_path / "source.weights.h5")
    hypermodel = MeanFieldHyperModel(
        "Tiny",
        recipe=RECIPE,
        classes=10,
        weights=str(tmp_path / "source.weights.h5"),
        freeze=["st?m", "stage1"],
    )
    hp = keras_tuner.HyperParameters()
    model = hypermodel.build(hp)
    (images, labels), validation = _images()
    hypermodel.fit(hp, model, images, labels, validation_data=validation, epochs=1)
    changed = set()
    for layer, before in zip(model.layers, source.layers, strict=True):
        for one, two in zip(layer.weights, before.weights, strict=True):
            # To the bit, statistics of BatchNormalization and times included.
            if not np.array_equal(_array(one), _array(two)):
                changed.add(layer.name)
    assert changed == {"predictions"}


@pytest.mark.once
def test_pretrained_weights_with_another_head():
    with pytest.warns(UserWarning, match=r"10 classes.*classifier for 2 classes starts afresh"):
        hypermodel = MeanFieldHyperModel(
            "MFResNet20", weights="cifar10", classes=2, freeze="stage[12]"
        )
        model = hypermodel.build(keras_tuner.HyperParameters())
    source = applications.get("MFResNet20")(weights="cifar10")
    assert model.output_shape == (None, 2)
    for layer in source.layers:
        if layer.name != "predictions":
            for one, two in zip(
                layer.get_weights(), model.get_layer(layer.name).get_weights(), strict=True
            ):
                np.testing.assert_array_equal(one, two)
    frozen = [layer.name for layer in model.layers if not layer.trainable]
    assert frozen == ["stage1", "stage2"]
    trained = {id(variable) for variable in model.trainable_variables}
    assert not any(id(variable) in trained for variable in model.get_layer("stage1").weights)


@pytest.mark.once_on_torch
def test_the_measures_are_those_of_the_model_after_the_last_epoch():
    (images, labels), validation = _images()
    for cutmix in (0.0, 1.0):
        recipe = RECIPE.replace(cutmix=cutmix)
        hypermodel = MeanFieldHyperModel(
            "Tiny", classes=10, recipe=recipe, search=["momentum"], seed=3
        )
        hp = keras_tuner.HyperParameters()
        model = hypermodel.build(hp)
        found = hypermodel.fit(hp, model, images, labels, validation_data=validation, epochs=2)
        assert int(_array(model.optimizer.iterations)) == 6
        scores = evaluate(model, *validation, from_logits=True)
        assert found["val_accuracy"] == pytest.approx(scores.top1 / 100, abs=1e-6)
        assert found["val_nll"] == pytest.approx(scores.nll, rel=1e-4)
        assert found["seconds"] > 0 and "loss" in found
        if not cutmix:
            smoothed = 0.95 * scores.nll - 0.05 * scores.log_probabilities.mean()
            assert found["val_loss"] == pytest.approx(smoothed, rel=1e-4)


def test_a_training_that_diverges_ends_early_and_is_measured():
    (images, labels), validation = _images()
    recipe = RECIPE.replace(learning_rate=1e30, schedule="cosine", warmup_epochs=0.0)
    hypermodel = MeanFieldHyperModel("Tiny", classes=10, recipe=recipe, search=["momentum"])
    hp = keras_tuner.HyperParameters()
    model = hypermodel.build(hp)
    found = hypermodel.fit(hp, model, images, labels, validation_data=validation)
    assert not math.isfinite(found["loss"])
    assert 0 <= found["val_accuracy"] <= 0.4
    assert int(_array(model.optimizer.iterations)) < 9


@pytest.mark.once_on_torch
def test_a_promoted_trial_is_the_training_in_one_go(tmp_path):
    """Hyperband's: weights, momentum, step of the schedule and batches go on."""
    (images, labels), validation = _images()
    search_space = {"momentum": [0.8, 0.9]}
    hypermodel = MeanFieldHyperModel(
        "Steady", classes=10, recipe=RECIPE, search=search_space, seed=4
    )
    tuner = keras_tuner.Hyperband(
        hypermodel, "val_accuracy", max_epochs=2, factor=2, seed=1, directory=tmp_path
    )
    tuner.oracle.max_trials = 3  # two of one epoch, the better of which goes on
    tuner.search(images, labels, validation_data=validation, verbose=0)
    *first, promoted = tuner.oracle.trials.values()
    assert [trial.hyperparameters.values["tuner/epochs"] for trial in first] == [1, 1]
    values = promoted.hyperparameters.values
    assert (values["tuner/initial_epoch"], values["tuner/epochs"]) == (1, 2)
    assert values["tuner/trial_id"] == max(first, key=lambda trial: trial.score).trial_id

    hp = _hyperparameters(momentum=values["momentum"])
    whole = hypermodel.build(hp)
    found = hypermodel.fit(hp, whole, images, labels, validation_data=validation, epochs=2)
    went_on = tuner.load_model(promoted)
    for one, two in zip(whole.weights, went_on.weights, strict=True):
        np.testing.assert_array_equal(_array(one), _array(two), err_msg=one.path)
    assert promoted.score == pytest.approx(found["val_accuracy"])
    assert int(_array(went_on.optimizer.iterations)) == 6
    for one, two in zip(whole.optimizer.variables, went_on.optimizer.variables, strict=True):
        np.testing.assert_array_equal(_array(one), _array(two), err_msg=one.path)


def test_the_seed_gives_the_initial_weights():
    """And the batches: see `test_the_best_recipe_trains_as_the_trial_did`."""
    kernels = []
    for seed in (7, 7, 8, None, None):
        hypermodel = MeanFieldHyperModel("Tiny", classes=10, recipe=RECIPE, seed=seed)
        model = hypermodel.build(keras_tuner.HyperParameters())
        kernels.append(_array(model.get_layer("predictions").kernel))
    np.testing.assert_array_equal(kernels[0], kernels[1])
    for one, two in itertools.combinations(kernels[1:], 2):
        assert not np.array_equal(one, two)


# --- The command -----------------------------------------------------------------------------


def _fails(capsys, *arguments):
    """Asserts exit code 2 and one line on standard error; returns it."""
    assert cli.main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("mf-zoo: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.once
def test_bad_input_to_tune(capsys, tmp_path, cifar10_dir):
    folder = tmp_path / "search"
    command = ("tune", "--output", folder, "--data-dir", cifar10_dir)
    assert "A model must be named" in _fails(capsys, *command)
    assert "holds no search to resume" in _fails(capsys, *command, "--resume")
    assert _fails(capsys, *command, "ResNet21").endswith("Received: 'ResNet21'\n")
    assert "never made on test images" in _fails(capsys, *command, "Tiny", "--holdout", "0")
    assert "Received: --max-trials=0" in _fails(capsys, *command, "Tiny", "--max-trials", "0")
    assert "from 0 to 4294967295. Received: --seed=-1" in _fails(
        capsys, *command, "Tiny", "--seed", "-1"
    )
    assert "did you mean 'momentum'" in _fails(capsys, *command, "Tiny", "--search", "momentun")
    assert "did you mean 'momentum'" in _fails(capsys, *command, "Tiny", "--set", "momentun=0")
    both = ("--search", "momentum", "--set", "momentum=0.5")
    assert "set or searched, not both" in _fails(capsys, *command, "Tiny", *both)
    assert "names a worker" in _fails(capsys, *command, "Tiny", "--tuner-id", "w")
    assert "for a chief" in _fails(capsys, *command, "Tiny", "--allow-remote")
    worker = (*command, "--worker", "127.0.0.1:1")
    assert "settings of its chief. Received: --seed 3" in _fails(capsys, *worker, "--seed", "3")
    assert "not contain 'chief'" in _fails(capsys, *worker, "--tuner-id", "my-chief")
    assert "not contain 'chief'" in _fails(capsys, *worker, "--tuner-id", "../x")
    for address in ("127.0.0.1", "localhost:0", "localhost:70000", ":", "a b:1"):
        error = _fails(capsys, *command, "Tiny", "--chief", address)
        assert f"`--chief` must be HOST:PORT. Received: {address!r}" in error
    missing = ("--weights", tmp_path / "none.weights.h5")
    assert "must exist before it is loaded" in _fails(capsys, *command, "Tiny", *missing)
    assert "Received: --freeze ['stem']" in _fails(capsys, *worker, "--freeze", "stem")
    assert not folder.exists()
    error = _fails(capsys, *command, "Tiny", "--holdout", "500")
    assert "less than the 500 training images. Received: 500" in error
    few = ("--limit", "64", "--holdout", "40")
    error = _fails(capsys, *command, "MFResNet20", *few, "--weights", "imagenet")
    assert error.endswith("Received: 'imagenet'\n")
    error = _fails(capsys, *command, "Tiny", *few, "--freeze", "x*")
    assert "must name layers of the model, which are rescaling, stem, stage1" in error
    assert not (folder / "search.json").exists()


@pytest.mark.once
def test_set_values_are_not_searched(monkeypatch, capsys, tmp_path):
    seen = []

    def stop(settings, output, **options):
        seen.append(settings)
        raise UserError("enough. Received: it")

    monkeypatch.setattr(search, "tune", stop)
    command = ("tune", "Tiny", "--output", tmp_path / "a", "--epochs", "8")
    _fails(capsys, *command, "--set", "learning_rate=0.1", "--set", "horizon=2")
    assert set(seen[0].search) == set(SPACE) - {"learning_rate", "horizon"}
    assert (seen[0].recipe.learning_rate, seen[0].recipe.horizon) == (0.1, 2.0)
    # `quick` of 8 epochs: the shape of its schedule is kept.
    assert (seen[0].recipe.epochs, seen[0].recipe.warmup_epochs) == (8, 1.6)
    _fails(capsys, *command)
    assert seen[1].search is None


@pytest.mark.once
def test_folders_that_are_not_ours_to_write(tmp_path, monkeypatch):
    _instant_search(tmp_path / "a", monkeypatch, max_trials=2)
    for resume in (False, True):
        with pytest.raises(UserError, match=r"is finished, with its result in .*result\.json"):
            _instant_search(tmp_path / "a", monkeypatch, max_trials=2, resume=resume)
    (tmp_path / "a" / "result.json").unlink()
    with pytest.raises(UserError, match=r"holds a search already.*--resume"):
        _instant_search(tmp_path / "a", monkeypatch, max_trials=2)
    with pytest.raises(UserError) as error:
        changed = {"max_trials": 3, "recipe": RECIPE.replace(epochs=9)}
        _instant_search(tmp_path / "a", monkeypatch, resume=True, **changed)
    assert "max_trials is 2 there and 3 here; epochs is 3 there and 9 here" in str(error.value)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes").touch()
    with pytest.raises(UserError, match=r"must be new or empty\. Received"):
        _instant_search(tmp_path / "b", monkeypatch, max_trials=2)


@pytest.mark.once
def test_trials_that_fail(tmp_path, monkeypatch):
    def fail(self, *args, **kwargs):
        raise ValueError("no such device")

    monkeypatch.setattr(Instant, "fit", fail)
    with pytest.raises(UserError, match=r"three in a row failed\. Received: .*no such device"):
        _instant_search(tmp_path / "a", monkeypatch, max_trials=5)
    with pytest.raises(UserError, match=r"can be completed\. Received: .*no such device"):
        _instant_search(tmp_path / "b", monkeypatch, max_trials=2)
    rows = _rows(tmp_path / "b" / "trials.csv")
    assert [row["status"] for row in rows] == ["FAILED", "FAILED"]
    assert [row["val_error"] for row in rows] == ["", ""]


@pytest.mark.once
def test_tuning_without_keras_tuner(monkeypatch, capsys, tmp_path):
    for name in ("search", "hypermodel", "oracles"):
        monkeypatch.delitem(sys.modules, f"mf_zoo.tuning.{name}")
    monkeypatch.setitem(sys.modules, "keras_tuner", None)
    error = _fails(capsys, "tune", "Tiny", "--output", tmp_path / "a")
    assert "pip install 'keras-tuner[bayesian]'. Received: " in error


@pytest.mark.once
def test_an_interrupted_search_says_how_to_resume(monkeypatch, capsys, cifar10_dir, tmp_path):
    def interrupt(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(MeanFieldHyperModel, "fit", interrupt)
    folder = tmp_path / "a search"
    arguments = [*COMMAND, "--data-dir", str(cifar10_dir), "--output", str(folder)]
    assert cli.main(arguments) == 130
    assert f"resume with: mf-zoo tune --resume --output '{folder}'" in capsys.readouterr().err


@pytest.mark.once
def test_parallel_coordinates():
    rows = [
        {"model": "A", "rate": 0.01, "depth": None, "val_error": 50.0},
        {"model": "B", "rate": 1.0, "depth": 4, "val_error": 40.0},
        {"model": "A", "rate": 0.1, "depth": 2, "val_error": 60.0},
        {"model": "A", "rate": None, "depth": None, "val_error": None},  # it failed
    ]
    figure = parallel_coordinates(rows, ["model", "rate", "depth"], ["rate"])
    (axes,) = figure.axes
    lines = [line.get_ydata() for line in axes.lines if len(line.get_xdata()) == 4]
    # From the worst to the best; half-way on a logarithmic axis; a gap where there is no value.
    expected = [[0.25, 0.5, 0.0, 1.0], [0.25, 0.0, math.nan, 0.5], [0.75, 1.0, 1.0, 0.0]]
    np.testing.assert_allclose(lines, expected)
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        *("model", "rate", "depth", "error %"),
    ]
