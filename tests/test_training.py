"""Recipes, schedules, losses, evaluation and runs."""

import contextlib
import csv
import dataclasses
import hashlib
import importlib.util
import itertools
import json
import math
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tiny_zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from run_folders import arrays, assert_same_run
from tiny_zoo import train

from mf_zoo import applications, chains, data, depth, files, weights
from mf_zoo.errors import UserError
from mf_zoo.layers import integrators, quadrature
from mf_zoo.training import (
    RECIPES,
    Recipe,
    RunSettings,
    assembly,
    callbacks,
    evaluate,
    evaluate_weights,
    get_recipe,
    on_device,
    runner,
    runs,
)
from mf_zoo.training.callbacks import order_swaps
from mf_zoo.training.evaluation import calibration_error
from mf_zoo.training.folder import open_folder
from mf_zoo.training.losses import SmoothedCrossentropy
from mf_zoo.training.recipes import load_recipe, parse_override, recipe_toml
from mf_zoo.training.schedules import learning_rate_schedule

HERE = pathlib.Path(__file__).parent


# --- Recipes ---------------------------------------------------------------------------------


def test_the_named_recipes_hold_the_published_settings():
    paper, cosine, quick = (RECIPES[name] for name in ("paper", "cosine", "quick"))
    # He et al., 2016, section 4.2: 64k iterations of 128 images in batches are 164 epochs.
    assert (paper.learning_rate, paper.momentum, paper.nesterov) == (0.1, 0.9, False)
    assert (paper.batch_size, paper.weight_decay, paper.schedule) == (128, 1e-4, "step")
    assert (cosine.epochs, cosine.weight_decay, cosine.nesterov) == (200, 5e-4, True)
    assert cosine.schedule == "cosine"
    assert quick.epochs == 40 and quick.schedule == "one_cycle" and quick.label_smoothing > 0
    for recipe in (paper, cosine, quick):
        assert (recipe.padding, recipe.flip, recipe.cutout) == (4, True, 0)
        assert not recipe.soft_labels
    short = RECIPES["short"]
    assert short == quick.replace(
        name="short", description=short.description, alternating_flip=True
    )
    strong = RECIPES["strong"]
    # Half of the batches get a box, as in the authors' training on CIFAR.
    assert strong.mixup > 0 and (strong.cutmix, strong.cutout) == (1, 0)
    longer = {key: getattr(strong, key) for key in ("epochs", "warmup_epochs", "label_smoothing")}
    mixed = {"mixup": strong.mixup, "cutmix": 1.0}
    named = {"name": "strong", "description": strong.description}
    assert strong == cosine.replace(**named, **longer, **mixed)
    assert "not yet chosen" in strong.description


def test_changing_the_epochs_keeps_the_shape_of_the_schedule():
    assert get_recipe("quick", epochs=20).warmup_epochs == RECIPES["quick"].warmup_epochs / 2
    assert get_recipe("quick", epochs=20, warmup_epochs=3.0).warmup_epochs == 3


@pytest.mark.parametrize(
    "text, expected",
    [
        ("epochs=3", ("epochs", 3)),
        ("learning_rate = 1e-3", ("learning_rate", 1e-3)),
        ("learning_rate=.5", ("learning_rate", 0.5)),
        ("nesterov=True", ("nesterov", True)),
        ("horizon=none", ("horizon", None)),
        ("horizon=2", ("horizon", 2)),
        ("quadrature=midpoint", ("quadrature", "midpoint")),
        ('schedule="cosine"', ("schedule", "cosine")),
    ],
)
def test_overrides_are_read_by_the_type_of_their_value(text, expected):
    key, value = parse_override(text)
    assert (key, value) == expected
    assert getattr(RECIPES["paper"].replace(**{key: value}), key) == value


@pytest.mark.parametrize(
    "values, message",
    [
        ({"epochs": 0}, "epochs.*greater than 0.*Received: epochs=0"),
        ({"epochs": 2.5}, "epochs.*type int.*Received"),
        ({"epochs": True}, "epochs.*type int.*Received"),
        ({"learning_rate": "fast"}, "learning_rate.*type float.*Received.*'fast'"),
        ({"learning_rate": float("nan")}, "learning_rate.*Received"),
        ({"learning_rate": float("inf")}, "learning_rate.*Received"),
        ({"momentum": 1.0}, r"momentum.*in \[0, 1\).*Received"),
        ({"weight_decay": -1e-4}, "weight_decay.*0 or more"),
        ({"schedule": "stepwise"}, "schedule.*step, cosine, one_cycle.*Received"),
        ({"quadrature": "midpoints"}, "quadrature.*backward, midpoint.*Received.*'midpoints'"),
        ({"reorder": 1}, "reorder.*type bool.*Received"),
        ({"integrator": "rk4"}, "integrator.*euler, midpoint, heun.*Received.*'rk4'"),
        ({"epochs": 2, "warmup_epochs": 2.0}, "warmup_epochs.*less than the 2 epochs"),
        ({"ema_momentum": 1.0}, r"ema_momentum.*in \[0, 1\).*Received"),
        ({"wieght_decay": 0.1}, "did you mean 'weight_decay'.*Received: 'wieght_decay'"),
    ],
)
def test_bad_values_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        RECIPES["paper"].replace(**values)


def test_the_rules_of_recipes_are_those_of_stages():
    for name in quadrature.rules():
        assert RECIPES["paper"].replace(quadrature=name).quadrature == name
    with pytest.raises(ValueError, match=rf"must be one of {', '.join(quadrature.rules())}\. Rec"):
        RECIPES["paper"].replace(quadrature="x")
    for name in integrators.names():
        assert RECIPES["paper"].replace(integrator=name).integrator == name


def test_a_recipe_is_read_from_a_file(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('base = "cosine"\nepochs = 7\nhorizon = 1\n')
    recipe = get_recipe(file, learning_rate=0.05)
    assert recipe == RECIPES["cosine"].replace(
        name="mine", epochs=7, horizon=1.0, learning_rate=0.05
    )
    file.write_text("epochs: 7")
    with pytest.raises(ValueError, match=r"must be TOML.*Received: .*mine\.toml"):
        load_recipe(file)
    file.write_text("epoch = 7")
    with pytest.raises(ValueError, match=r"did you mean 'epochs'.*Received: 'epoch'"):
        load_recipe(file)
    with pytest.raises(ValueError, match=r"must be readable.*Received: absent"):
        get_recipe("absent.toml")
    with pytest.raises(ValueError, match=r"paper, cosine, quick.*Received: 'slow'"):
        get_recipe("slow")


@pytest.mark.once
def test_a_recipe_is_based_on_named_ones_alone(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(f'base = "{file}"')
    with pytest.raises(ValueError, match=r"`base` must be one of paper, .*Received: base="):
        load_recipe(file)


def test_a_recipe_survives_its_file(tmp_path):
    odd = RECIPES["quick"].replace(
        name='a "b"\\c', description="é\u2028 # no comment", learning_rate=1e-05, horizon=2
    )
    for recipe in (*RECIPES.values(), odd):
        file = tmp_path / "recipe.toml"
        file.write_text(recipe_toml(recipe, "found by\n\nnobody"), encoding="utf-8")
        assert load_recipe(file) == recipe
    assert file.read_text().startswith("# found by\n#\n# nobody\nname = ")
    assert "horizon" not in recipe_toml(RECIPES["paper"])


def test_a_recipe_survives_json():
    for recipe in RECIPES.values():
        assert Recipe(**json.loads(json.dumps(recipe.to_dict()))) == recipe


# --- Schedules -------------------------------------------------------------------------------


def _rates(recipe, steps_per_epoch, steps):
    schedule = learning_rate_schedule(recipe, steps_per_epoch)
    return [float(keras.ops.convert_to_numpy(schedule(step))) for step in steps]


def test_step_schedule():
    # 200 epochs of 391 steps: 78200; half is 39100, three quarters 58650.
    rates = _rates(RECIPES["paper"], 391, [0, 39099, 39100, 58649, 58650, 78199])
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)
    warm = RECIPES["paper"].replace(epochs=8, warmup_epochs=1.5)
    rates = _rates(warm, 10, [0, 14, 15, 39, 40, 60])
    np.testing.assert_allclose(rates, [0.01, 0.01, 0.1, 0.1, 0.01, 0.001], rtol=1e-6)
    with pytest.raises(ValueError, match=r"before the first step down.*Received: .*4\.0"):
        learning_rate_schedule(warm.replace(warmup_epochs=4.0), 10)


def test_cosine_schedule():
    steps = [0, 1, 500, 1000, 1999]
    expected = [0.05 * (1 + math.cos(math.pi * step / 2000)) for step in steps]
    np.testing.assert_allclose(_rates(RECIPES["cosine"], 10, steps), expected, rtol=1e-3, atol=1e-9)


def test_one_cycle_schedule():
    recipe = RECIPES["quick"].replace(epochs=10, warmup_epochs=2.5, learning_rate=0.4)
    # From 0.4/25 = 0.016 to 0.4 in 25 steps, then a cosine over the 75 that are left.
    steps = [0, 5, 25, 50, 99]
    expected = [0.016, 0.016 + 0.384 / 5, 0.4]
    expected += [0.2 * (1 + math.cos(math.pi * k / 75)) for k in (25, 74)]
    np.testing.assert_allclose(_rates(recipe, 10, steps), expected, rtol=1e-4)


# --- Swaps -----------------------------------------------------------------------------------


def _swaps_by_bubble_sort(before, after):
    places = [list(after).index(particle) for particle in before]
    count = 0
    for end in range(len(places), 1, -1):
        for i in range(end - 1):
            if places[i] > places[i + 1]:
                places[i], places[i + 1] = places[i + 1], places[i]
                count += 1
    return count


def test_order_swaps_by_hand():
    assert order_swaps([0, 1, 2, 3], [0, 1, 2, 3]) == 0
    assert order_swaps([0, 1, 2, 3], [1, 0, 2, 3]) == 1
    assert order_swaps([0, 1, 2, 3], [3, 0, 1, 2]) == 3  # one particle overtakes three
    assert order_swaps([2, 0, 1, 3], [3, 1, 0, 2]) == 6  # reversed
    assert order_swaps([0], [0]) == 0


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(*[st.permutations(range(n))] * 2)))
@settings(max_examples=100, deadline=None)
def test_order_swaps_are_swaps_of_neighbours(orders):
    assert order_swaps(*orders) == _swaps_by_bubble_sort(*orders) == order_swaps(*orders[::-1])


# --- Loss and evaluation ---------------------------------------------------------------------


def _log_softmax(row):
    shift = max(row)
    total = sum(math.exp(value - shift) for value in row)
    return [value - shift - math.log(total) for value in row]


def test_smoothed_crossentropy():
    logits = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]], "float32")
    labels = np.array([2, 1])
    expected = 0.0
    for row, label in zip(logits.tolist(), labels, strict=True):
        logs = _log_softmax(row)
        expected -= (0.9 * logs[label] + 0.1 * sum(logs) / 3) / 2
    loss = SmoothedCrossentropy(0.1)
    for targets in (labels, labels[:, None], np.eye(3, dtype="float32")[labels]):
        value = float(keras.ops.convert_to_numpy(loss(targets, logits)))
        assert value == pytest.approx(expected, rel=1e-6)
    again = SmoothedCrossentropy.from_config(loss.get_config())
    assert again.label_smoothing == 0.1
    with pytest.raises(ValueError, match=r"in \[0, 1\).*Received: label_smoothing=1"):
        SmoothedCrossentropy(1)


def _identity(classes, softmax=False):
    activation = keras.layers.Activation("softmax" if softmax else "linear")
    return keras.Sequential([keras.layers.Input((classes,)), activation])


def test_evaluation_by_hand():
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=3, size=(203, 7)).astype("float32")
    labels = rng.integers(0, 7, 203)
    superclasses = ["a", "b", "a", "c", "b", "c", "a"]
    top1 = top5 = coarse = nll = smoothed = 0
    bins = [[] for _ in range(15)]
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        logs = _log_softmax(row)
        better = sum(other > logs[label] for other in logs)
        top1 += better == 0
        top5 += better < 5
        coarse += superclasses[logs.index(max(logs))] != superclasses[label]
        nll -= logs[label]
        smoothed -= 0.8 * logs[label] + 0.2 * sum(logs) / 7
        confidence = math.exp(max(logs))
        index = next(k for k in range(15) if k / 15 < confidence <= (k + 1) / 15)
        bins[index].append((confidence, better == 0))
    ece = sum(
        abs(sum(right for _, right in content) - sum(confidence for confidence, _ in content))
        for content in bins
    )
    for softmax in (False, True):
        scores = evaluate(
            _identity(7, softmax),
            logits,
            labels,
            batch_size=50,
            from_logits=not softmax,
            label_smoothing=0.2,
            superclasses=superclasses,
        )
        assert scores.images == 203
        assert scores.top1 == pytest.approx(100 * top1 / 203)
        assert scores.error == pytest.approx(100 - 100 * top1 / 203)
        assert scores.top5 == pytest.approx(100 * top5 / 203)
        assert scores.top5_error == pytest.approx(100 - 100 * top5 / 203)
        assert scores.coarse_error == pytest.approx(100 * coarse / 203)
        assert scores.nll == pytest.approx(nll / 203, rel=1e-5)
        assert scores.loss == pytest.approx(smoothed / 203, rel=1e-5)
        assert scores.ece == pytest.approx(100 * ece / 203, rel=1e-4)
    assert 0 < top1 < top5 < 203 and 0 < coarse < 203 - top1
    with pytest.raises(ValueError, match=r"each of the 7 classes. Received: 6 entries"):
        evaluate(_identity(7), logits, labels, superclasses=superclasses[1:])


def test_images_are_measured_in_a_dataset_that_is_not_tuned(monkeypatch):
    given, predict = [], keras.Model.predict
    monkeypatch.setattr(
        keras.Model, "predict", lambda m, x, **s: given.append(x) or predict(m, x, **s)
    )
    logits = np.eye(3, dtype="float32")
    evaluate(_identity(3), logits, np.arange(3), batch_size=2, from_logits=True)
    if keras.backend.backend() == "tensorflow":
        assert given[0].options().autotune.enabled is False and len(given[0]) == 2
    else:
        assert given[0] is logits
    # What Keras converts is left to it: float64 to its own float, for one.
    scores = evaluate(_identity(3), logits.astype("float64"), np.arange(3), from_logits=True)
    assert scores.top1 == 100 and given[1].dtype == "float64"


def test_evaluation_of_extreme_logits_is_finite_and_exact():
    logits = np.array([[1e4, 0.0], [0.0, 1e4]], "float32")
    scores = evaluate(_identity(2), logits, np.array([0, 0]), from_logits=True)
    assert scores.nll == pytest.approx(5e3)
    assert (scores.top1, scores.top5) == (50, 100)
    scores = evaluate(_identity(2, softmax=True), logits, np.array([0, 0]))
    assert np.isfinite(scores.nll)


def test_calibration_bins_are_closed_on_the_right():
    # 3/15 falls into the third bin together with 0.15, and not with 0.21.
    confidence, correct = np.array([0.15, 0.2, 0.21]), np.array([True, False, False])
    expected = abs(0.15 - 1 + 0.2) + 0.21
    assert calibration_error(confidence, correct) == pytest.approx(100 * expected / 3)
    assert calibration_error(np.array([1.0]), np.array([True])) == 0


def test_predictions_are_written(tmp_path):
    logits = np.log(np.array([[0.2, 0.8], [0.75, 0.25]], "float32"))
    labels = np.array([0, 0])
    scores = evaluate(_identity(2), logits, labels, from_logits=True)
    scores.write_predictions(tmp_path / "p.csv", labels, ["cat", "dog"])
    rows = list(csv.reader((tmp_path / "p.csv").open()))
    assert rows[0] == ["index", "label", "prediction", "confidence", "p_cat", "p_dog"]
    values = np.array(rows[1:], "float64")
    np.testing.assert_allclose(values, [[0, 0, 1, 0.8, 0.2, 0.8], [1, 0, 0, 0.75, 0.75, 0.25]])


def test_evaluation_refuses_what_does_not_fit():
    images = np.zeros((2, 3), "float32")
    with pytest.raises(ValueError, match=r"one label for each.*Received: 2 images"):
        evaluate(_identity(3), images, np.array([0]))
    with pytest.raises(ValueError, match=r"at least one image.*Received: 0 images"):
        evaluate(_identity(3), images[:0], np.array([], "int64"))
    with pytest.raises(ValueError, match=r"classes of the model.*Received.*labels from 0 to 3"):
        evaluate(_identity(3), images, np.array([0, 3]))
    # Logits that are taken for probabilities: all below 0 would be one tie.
    with pytest.raises(ValueError, match=r"from_logits.*outputs from -2 to -1"):
        evaluate(_identity(2), np.array([[-1.0, -2.0]], "float32"), np.array([0]))
    with pytest.raises(ValueError, match=r"from_logits.*outputs from 0\.5 to 3"):
        evaluate(_identity(2), np.array([[0.5, 3.0]], "float32"), np.array([1]))


# --- Runs ------------------------------------------------------------------------------------

# Random times and a fast clock, so that particles change places within four short epochs.
RECIPE = RECIPES["quick"].replace(
    epochs=4,
    warmup_epochs=1.0,
    batch_size=16,
    initial_times="random",
    time_learning_rate_multiplier=20.0,
)
OPTIONS = {"recipe": RECIPE, "seed": 3, "limit": 64, "verbose": 0}
COMMAND = [
    *("train", "Tiny", "--recipe", "quick", "--seed", "3", "--limit", "64", "--verbose", "0"),
    *("--epochs", "4", "--batch-size", "16", "--set", "warmup_epochs=1"),
    *("--initial-times", "random", "--time-learning-rate-multiplier", "20"),
]


TENSORBOARD = all(map(importlib.util.find_spec, ("tensorflow", "tensorboard")))


@pytest.fixture(scope="module")
def finished(cifar10_dir, tmp_path_factory):
    """A run that was let alone."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    train(
        "Tiny",
        data_dir=cifar10_dir,
        output=folder,
        eval_every=3,
        tensorboard=TENSORBOARD,
        **OPTIONS,
    )
    return folder


def test_the_run_folder_is_complete(finished, cifar10_dir):
    names = {path.name for path in finished.iterdir()} - {"tensorboard", ".lock"}
    files = {"config.json", "state.json", "result.json", "history.csv", "times.csv"}
    assert names == files | {"checkpoint-0003.keras", "checkpoint-0004.keras", "final.weights.h5"}
    config = json.loads((finished / "config.json").read_text())
    assert Recipe(**config["recipe"]) == RECIPE
    assert (config["model"], config["seed"], config["limit"]) == ("Tiny", 3, 64)
    assert config["versions"]["keras"] == keras.__version__
    assert config["backend"] == keras.config.backend() and config["device"]
    result = json.loads((finished / "result.json").read_text())
    weights = finished / result["file"]
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == result["sha256"]
    assert result["size"] == weights.stat().st_size
    assert result["epochs"] == 4 and result["parameters"] == tiny_zoo.tiny().count_params()


def test_the_result_is_that_of_the_shipped_weights(finished, cifar10_dir):
    result = json.loads((finished / "result.json").read_text())
    model = tiny_zoo.tiny(finished / "final.weights.h5")
    images, labels = data.load("cifar10", "test", data_dir=cifar10_dir)
    probabilities = model.predict(images[:64], verbose=0).astype("float64")
    right = probabilities[np.arange(64), labels[:64]]
    assert result["test_error"] == pytest.approx(
        100 * np.mean(probabilities.argmax(1) != labels[:64]), abs=1e-5
    )
    assert result["test_loss"] == pytest.approx(-np.log(right).mean(), rel=1e-5)
    last = files.read_rows(finished / "history.csv")[-1]
    assert float(last["test_error"]) == pytest.approx(result["test_error"], abs=1e-4)
    assert float(last["test_loss"]) == pytest.approx(result["test_loss"], rel=1e-4)


@pytest.mark.once
def test_weights_are_measured_as_the_run_measured_its_own(finished, cifar10_dir, tmp_path):
    result = json.loads((finished / "result.json").read_text())
    scores = evaluate_weights(finished, finished / result["file"], data_dir=cifar10_dir)
    assert scores.images == 64
    assert scores.error == pytest.approx(result["test_error"], abs=1e-5)
    assert scores.nll == pytest.approx(result["test_loss"], rel=1e-5)
    found = []

    def measure(file):
        found.append(evaluate_weights(finished, file, data_dir=cifar10_dir))
        return found[-1]

    half = weights.publish(
        finished, directory=tmp_path, partial=True, dtype="float16", evaluate=measure
    )
    assert half.test_error == pytest.approx(result["test_error"], abs=0.02)
    # Other weights, by a little.
    assert 0 < abs(found[0].nll - scores.nll) < 1e-2
    with pytest.raises(UserError, match=r"must hold a config\.json\. Received: "):
        evaluate_weights(tmp_path, finished / result["file"], data_dir=cifar10_dir)


def test_the_history_tells_what_happened(finished):
    history = files.read_rows(finished / "history.csv")
    assert [row["epoch"] for row in history] == ["1", "2", "3", "4"]
    # Evaluated every third epoch, and after the last.
    assert [bool(row["test_error"]) for row in history] == [False, False, True, True]
    # Four steps an epoch, one epoch of warm-up; the rate is that of the epoch's last step.
    expected = [0.008 + 0.192 * 3 / 4]
    expected += [0.1 * (1 + math.cos(math.pi * k / 12)) for k in (3, 7, 11)]
    rates = [float(row["learning_rate"]) for row in history]
    np.testing.assert_allclose(rates, expected, rtol=1e-4)
    assert all(float(row["images_per_second"]) > 0 for row in history)


def test_runs_train_on_a_dataset_that_is_not_tuned(cifar10_dir, tmp_path, monkeypatch):
    given = []
    fit = keras.Model.fit
    monkeypatch.setattr(keras.Model, "fit", lambda m, x, **s: given.append(x) or fit(m, x, **s))
    train("Tiny", output=tmp_path / "run", **{**OPTIONS, "data_dir": cifar10_dir})
    if keras.backend.backend() == "tensorflow":
        assert given[0].options().autotune.enabled is False
    else:
        assert isinstance(given[0], keras.utils.PyDataset)


def test_times_ranks_and_swaps_belong_together(finished):
    epochs = {}
    for row in files.read_rows(finished / "times.csv"):
        epochs.setdefault(int(row["epoch"]), []).append((float(row["time"]), int(row["rank"])))
    assert sorted(epochs) == [0, 1, 2, 3, 4]
    swaps = []
    for epoch, particles in epochs.items():
        assert len(particles) == 3
        times = [time for time, _ in particles]
        assert all(0 <= time <= 3 for time in times)
        assert [rank for _, rank in particles] == [sorted(times).index(time) for time in times]
        if epoch:
            earlier = [time for time, _ in epochs[epoch - 1]]
            swaps.append(
                sum(
                    (earlier[i] < earlier[j]) != (times[i] < times[j])
                    for i, j in itertools.combinations(range(3), 2)
                )
            )
    assert [int(row["order_swaps"]) for row in files.read_rows(finished / "history.csv")] == swaps
    assert sum(swaps) > 0  # else this test shows little


def test_the_recipe_reaches_the_optimizer(finished):
    model = keras.saving.load_model(finished / "checkpoint-0004.keras")
    config = model.optimizer.get_config()
    for name in ("momentum", "nesterov", "weight_decay", "time_learning_rate_multiplier"):
        assert config[name] == getattr(RECIPE, name)
    assert config["coupled_weight_decay"] is True
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 16
    assert model.loss.label_smoothing == RECIPE.label_smoothing


@pytest.mark.skipif(not TENSORBOARD, reason="needs tensorflow and tensorboard")
def test_tensorboard_logs(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    log = EventAccumulator(str(finished / "tensorboard" / "train"))
    log.Reload()
    for name in ("loss", "accuracy", "order_swaps"):
        logged = [
            float(tensor_util.make_ndarray(event.tensor_proto))
            for event in log.Tensors(f"epoch_{name}")
        ]
        written = [float(row[name]) for row in files.read_rows(finished / "history.csv")]
        np.testing.assert_allclose(logged, written, rtol=1e-6)


def _run_process(signal_name, when, *arguments):
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


def test_a_killed_run_goes_on_to_the_same_weights(finished, cifar10_dir, tmp_path):
    folder = tmp_path / "killed"
    start = [*COMMAND, "--eval-every", "3", "--data-dir", cifar10_dir, "--output", folder]
    resume = ["train", "--resume", "--output", folder, "--verbose", "0"]
    # Killed when the second epoch's rows and checkpoint are written but do not count yet.
    process = _run_process("SIGKILL", "2.state", *start)
    assert process.returncode == -9, process.stderr
    assert json.loads((folder / "state.json").read_text())["epoch"] == 1
    assert {path.name for path in folder.glob("checkpoint*")} == {
        "checkpoint-0001.keras",
        "checkpoint-0002.keras",
    }
    assert len(files.read_rows(folder / "history.csv")) == 2
    # Asked to stop in the middle of the third.
    process = _run_process("SIGTERM", "2.2", *resume)
    assert process.returncode == 143, process.stderr
    assert f"after epoch 2; resume with: mf-zoo train --resume --output {folder}" in process.stderr
    assert "Traceback" not in process.stderr
    with open(folder / "history.csv", "a") as file:
        file.write("3,0.0")  # as if killed while writing a row
    train(
        "Tiny",
        data_dir=cifar10_dir,
        output=folder,
        resume=True,
        eval_every=3,
        **OPTIONS,
    )
    assert_same_run(finished, folder)
    assert not list(folder.glob("partial-*"))


@contextlib.contextmanager
def _killed_in_the_second_epoch(monkeypatch):
    """A run in this process ends when its second checkpoint is written but does not count yet."""

    class Killed(BaseException):
        pass

    def write_json(path, content, write=files.write_json):
        if content.get("epoch") == 2:
            raise Killed
        write(path, content)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(files, "write_json", write_json)
        yield


@pytest.mark.once_on_torch
def test_a_run_from_weights_with_frozen_layers(cifar10_dir, tmp_path, monkeypatch):
    keras.utils.set_random_seed(1)
    source = tiny_zoo.tiny()
    source.save_weights(tmp_path / "source.weights.h5")
    start = {"weights": tmp_path / "source.weights.h5", "freeze": ["st*"]}
    options = {**OPTIONS, "recipe": RECIPE.replace(epochs=2), "data_dir": cifar10_dir}
    train("Tiny", output=tmp_path / "whole", **start, **options)
    folder = tmp_path / "killed"
    with _killed_in_the_second_epoch(monkeypatch):
        train("Tiny", output=folder, **start, **options)
    for change, message in (
        ({"freeze": ["stem"]}, r"freeze is \['st\*'\] there and \['stem'\] here"),
        ({"weights": None}, "weights_sha256 is '.*' there and None here"),
    ):
        with pytest.raises(UserError, match=message):
            train("Tiny", output=folder, resume=True, **{**start, **change}, **options)
    train("Tiny", output=folder, resume=True, **start, **options)
    assert_same_run(tmp_path / "whole", folder)

    trained = tiny_zoo.tiny(folder / "final.weights.h5")
    changed = {
        layer.name
        for layer, before in zip(trained.layers, source.layers, strict=True)
        for one, two in zip(layer.get_weights(), before.get_weights(), strict=True)
        if not np.array_equal(one, two)
    }
    assert changed == {"predictions"}
    record = weights.publish(folder, directory=tmp_path / "registry", partial=True)
    digest = hashlib.sha256(start["weights"].read_bytes()).hexdigest()
    assert record.initial_weights == f"source.weights.h5 sha256:{digest}"
    assert record.freeze == ("st*",)
    assert weights.records(directory=tmp_path / "registry") == [record]


@pytest.mark.once_on_torch
def test_a_resumed_run_of_a_frozen_network_trains_its_classifier_alone(
    cifar10_dir, tmp_path, monkeypatch
):
    """The blocks that start a stage are layers of ours: frozen too, after a checkpoint as before.

    Else the optimizer's state does not fit the checkpoint's model, and the schedule starts anew.
    """
    recipe = RECIPES["paper"].replace(epochs=3, batch_size=16, learning_rate=0.05)
    options = {"recipe": recipe, "limit": 32, "verbose": 0, "data_dir": cifar10_dir}
    options["freeze"] = ["stage*", "head*", "stem*"]
    train("MFResNet20", output=tmp_path / "whole", **options)
    folder = tmp_path / "killed"
    with _killed_in_the_second_epoch(monkeypatch):
        train("MFResNet20", output=folder, **options)
    assert json.loads((folder / "state.json").read_text())["epoch"] == 1
    train("MFResNet20", output=folder, resume=True, **options)
    assert_same_run(tmp_path / "whole", folder)
    rates = [float(row["learning_rate"]) for row in files.read_rows(folder / "history.csv")]
    np.testing.assert_allclose(rates, [0.05, 0.005, 0.0005], rtol=1e-5)
    results = [
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "killed")
    ]
    assert results[0]["test_error"] == results[1]["test_error"]


@pytest.mark.once_on_torch
def test_a_run_that_averages_its_weights(cifar10_dir, tmp_path, monkeypatch):
    """The average over the steps, worked out from the weights after each of them.

    A batch is an epoch here, so that the weights of every step are seen.
    """
    recipe = RECIPE.replace(batch_size=64, learning_rate=0.5, ema_momentum=0.75)
    options = {**OPTIONS, "recipe": recipe, "data_dir": cifar10_dir}
    seen = []

    class Watched(callbacks.Checkpoint):
        def on_epoch_end(self, epoch, logs=None):
            seen.append([v.numpy().copy() for v in self.model.trainable_variables])
            super().on_epoch_end(epoch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "Checkpoint", Watched)
        train("Tiny", output=tmp_path / "whole", **options)
    assert len(seen) == 4
    average = seen[0]
    for step in seen[1:]:
        average = [0.75 * a + 0.25 * w for a, w in zip(average, step, strict=True)]
    network = tiny_zoo.tiny(tmp_path / "whole" / "final.weights.h5")
    for variable, expected in zip(network.trainable_variables, average, strict=True):
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-4, atol=1e-5)

    # With statistics that are measured on augmented training images, and so on no other.
    statistics = [v.numpy().copy() for v in network.non_trainable_variables]
    images, labels = data.load("cifar10", "train", data_dir=cifar10_dir)
    batches = assembly.make_batches(images[:64], labels[:64], recipe, OPTIONS["seed"], 10)
    depth.recalibrate(network, batches)
    for before, variable in zip(statistics, network.non_trainable_variables, strict=True):
        np.testing.assert_allclose(variable.numpy(), before, rtol=1e-4, atol=1e-5)

    folder = tmp_path / "killed"
    with _killed_in_the_second_epoch(monkeypatch):
        train("Tiny", output=folder, **options)
    train("Tiny", output=folder, resume=True, **options)
    assert_same_run(tmp_path / "whole", folder)
    # And where it was killed between its last epoch and its result.
    for name in ("result.json", "final.weights.h5"):
        (folder / name).unlink()
    train("Tiny", output=folder, resume=True, **options)
    assert_same_run(tmp_path / "whole", folder)


@pytest.mark.once_on_torch
def test_a_run_with_identity_shortcuts(cifar10_dir, tmp_path, monkeypatch, registries):
    """From the recipe through run folder, record and registry back into a network."""
    from mf_zoo.cli.common import load_trained
    from mf_zoo.training.dry_run import dry_run
    from mf_zoo.weights import registry

    learned, _ = applications.register(
        applications.Architecture(
            name="Little",
            title="a little network",
            source="the tests",
            block=chains.BASIC,
            filters=(4, 8),
            blocks=(2, 2),
            stem=applications.Stem(4, strides=4),
        )
    )
    recipe = RECIPE.replace(shortcut="identity", epochs=1, warmup_epochs=0.0)
    options = {**OPTIONS, "recipe": recipe, "data_dir": cifar10_dir}
    counts = dry_run(RunSettings("MFLittle", recipe=recipe))
    projecting = dry_run(RunSettings("MFLittle", recipe=recipe.replace(shortcut=None)))
    assert counts["training_multiply_adds"] < projecting["training_multiply_adds"]
    folder = tmp_path / "run"
    result = train("MFLittle", output=folder, **options)
    # Option A has neither the 1 x 1 convolutions, 4 x 4 and 4 x 8, nor what normalises them.
    whole = learned().count_params()
    assert result["parameters"] == learned(shortcut="identity").count_params() < whole - 48
    assert sum(counts["parameters"].values()) == result["parameters"]

    home = tmp_path / "registry"
    record = weights.publish(folder, directory=home, partial=True)
    assert record.shortcut == "identity"
    monkeypatch.setattr(registry, "FOLDER", home)
    images = data.sample("cifar10")[0][:8]
    model = learned(weights="cifar10", classifier_activation=None)
    expected = model.predict(images, verbose=0)
    assert model.count_params() == result["parameters"]
    from_run, _ = load_trained("MFLittle", str(folder), None, None)
    np.testing.assert_allclose(from_run.predict(images, verbose=0), expected, atol=1e-5)
    plain = applications.get("Little")(weights="MFLittle:cifar10", classifier_activation=None)
    assert plain.count_params() == result["parameters"]
    with pytest.raises(ValueError, match=r"shortcut='identity'\. Received: shortcut='projection'"):
        learned(weights="cifar10", shortcut="projection")
    # A run that starts from them has theirs.
    again = train(
        "MFLittle",
        output=tmp_path / "again",
        **{**options, "weights": "cifar10", "recipe": recipe.replace(shortcut=None)},
    )
    assert again["parameters"] == result["parameters"]
    assert json.loads((tmp_path / "again/config.json").read_text())["recipe"]["shortcut"] == (
        "identity"
    )


@pytest.mark.once
def test_a_start_that_does_not_fit_is_refused_and_leaves_no_run(cifar10_dir, tmp_path):
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    other.save_weights(tmp_path / "other.weights.h5")
    for start, message in (
        ({"weights": tmp_path / "other.weights.h5"}, r"of another architecture.*Received: a file"),
        ({"weights": tmp_path / "none.weights.h5"}, r"must exist.*Received: .*none"),
        ({"weights": "imagenet"}, r"Received: .*'imagenet'"),
        ({"freeze": "x*"}, r"must name layers of the model, which are .*stem.*Received: 'x\*'"),
    ):
        with pytest.raises(UserError, match=message):
            train("Tiny", data_dir=cifar10_dir, output=tmp_path / "run", **start, **OPTIONS)
        assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.once
def test_what_the_recipe_leaves_open_is_as_in_the_registered_weights(monkeypatch):
    from mf_zoo.training import pretrained

    record = dataclasses.replace(
        weights.get("MFResNet20", "cifar10"),
        quadrature="midpoint",
        horizon=2.5,
        reorder=False,
        integrator="heun",
    )
    monkeypatch.setattr(weights, "get", lambda model, name: record)
    found = pretrained.with_network_of("cifar10", "MFResNet20", RECIPE.replace(horizon=3.0))
    expected = {"quadrature": "midpoint", "reorder": False, "integrator": "heun"}
    assert found == RECIPE.replace(horizon=3.0, **expected)
    assert pretrained.with_network_of("a/b.weights.h5", "MFResNet20", RECIPE) == RECIPE


@pytest.mark.once
def test_a_run_older_than_a_value_of_the_recipe_is_resumed(tmp_path):
    recipe = RECIPE.to_dict()
    older = {key: value for key, value in recipe.items() if key != "cutmix"}
    config = {"model": "Tiny", "backend": keras.config.backend(), "recipe": older}
    files.write_json(tmp_path / runs.CONFIG, config)
    assert open_folder(tmp_path, {"model": "Tiny", "recipe": recipe}, resume=True)
    with pytest.raises(UserError, match=r"cutmix is 0\.0 there and 1\.0 here"):
        changed = {"model": "Tiny", "recipe": {**recipe, "cutmix": 1.0}}
        open_folder(tmp_path, changed, resume=True)
    described = {"model": "Tiny", "recipe": {**recipe, "description": "In other words."}}
    assert open_folder(tmp_path, described, resume=True)
    with pytest.raises(UserError, match=r"name is .* there and 'other' here"):
        open_folder(tmp_path, {"recipe": {**recipe, "name": "other"}}, resume=True)


# --- On the device ---------------------------------------------------------------------------


@pytest.mark.once
def test_the_draws_of_an_epoch_are_those_of_its_batches():
    images, labels = data.sample("cifar10")
    augment = data.Augmentation(padding=4, flip=True, cutout=8)
    batches = data.Batches(images, labels, 64, shuffle=True, augment=augment, seed=5)
    batches.epoch = 2
    epochs = on_device.Epochs(batches)
    assert len(batches) == 4 and len(epochs) == 2
    steps = [
        {key: values[step] for key, values in draws.items()}
        for (draws,) in (epochs[0], epochs[1])
        for step in range(len(draws["index"]))
    ]
    assert [len(draw["index"]) for draw in steps] == [64, 64, 64, 8]
    for step, draw in enumerate(steps):
        expected, classes = batches.batch(2, step)
        np.testing.assert_array_equal(labels[draw["index"]], classes)
        np.testing.assert_array_equal(
            augment.transform_images(images[draw["index"]], draw), expected
        )


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="runs of epochs are JAX's")
@pytest.mark.parametrize("epochs, tolerance", [(1, 1e-4), (4, 2e-2)])
def test_a_run_on_the_device_is_the_same_run(epochs, tolerance, cifar10_dir, tmp_path):
    """A loop rounds otherwise than its steps on some processors, and rounding grows."""
    recipe = RECIPE.replace(
        epochs=epochs, warmup_epochs=epochs / 4, time_learning_rate_multiplier=1.0
    )
    folders = _on_host_and_device(cifar10_dir, tmp_path, recipe=recipe, eval_every=3)
    host, device = (arrays(folder / "final.weights.h5") for folder in folders)
    assert host.keys() == device.keys() and len(host) > 10
    for key, value in host.items():
        np.testing.assert_allclose(
            device[key], value, rtol=0, atol=tolerance * np.abs(value).max(), err_msg=key
        )
    one, two = (files.read_rows(folder / "history.csv") for folder in folders)
    for key in ("epoch", "learning_rate", "order_swaps"):
        assert [row[key] for row in one] == [row[key] for row in two]


def _on_host_and_device(cifar10_dir, folder, **changes):
    """The folders of the same run, trained step by step and in runs of epochs."""
    folders = [folder / "host", folder / "device"]
    for on, output in zip((False, True), folders, strict=True):
        options = {**OPTIONS, "on_device": on, **changes}
        train("Tiny", data_dir=cifar10_dir, output=output, **options)
    return folders


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="runs of epochs are JAX's")
def test_mixed_labels_and_a_last_batch_that_is_not_full_on_the_device(cifar10_dir, tmp_path):
    """Here rounding differs."""
    recipe = RECIPE.replace(mixup=0.4, cutmix=1.0, epochs=1, warmup_epochs=0.5)
    folders = _on_host_and_device(cifar10_dir, tmp_path, recipe=recipe, limit=60)
    host, device = (arrays(folder / "final.weights.h5") for folder in folders)
    for key, value in host.items():
        np.testing.assert_allclose(device[key], value, rtol=1e-3, atol=1e-5, err_msg=key)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX can")
def test_other_backends_refuse_to_train_on_the_device(cifar10_dir, tmp_path):
    with pytest.raises(UserError, match=r"needs the JAX backend\. Received: backend="):
        train("Tiny", data_dir=cifar10_dir, output=tmp_path / "a", on_device=True, **OPTIONS)
    assert not (tmp_path / "a").exists()


def test_no_room_for_a_checkpoint_keeps_the_one_before(
    finished, cifar10_dir, tmp_path, monkeypatch
):
    if not pathlib.Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    folder = tmp_path / "full"
    batch = data.Batches.batch

    def fill_the_disk(self, epoch, index):
        if (epoch, index) == (1, 3):
            partial = folder / "partial-checkpoint-0002.keras"
            if not partial.is_symlink():
                partial.symlink_to("/dev/full")
        return batch(self, epoch, index)

    monkeypatch.setattr(data.Batches, "batch", fill_the_disk)
    run = {"data_dir": cifar10_dir, "output": folder, "eval_every": 3, **OPTIONS}
    with pytest.raises(UserError, match=r"Cannot write .*checkpoint-0002\.keras: No space left"):
        train("Tiny", **run)
    state = json.loads((folder / "state.json").read_text())
    assert state["epoch"] == 1
    content = (folder / state["checkpoint"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == state["sha256"]
    assert not list(folder.glob("partial-*"))


def test_a_folder_that_holds_a_run_is_left_alone(finished, cifar10_dir, tmp_path):
    run = {"data_dir": cifar10_dir, **OPTIONS}
    for resume in (False, True):
        with pytest.raises(
            UserError, match=r"is finished.*result\.json.*mf-zoo evaluate.*Received: output="
        ):
            train("Tiny", output=finished, resume=resume, **run)
    folder = tmp_path / "begun"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"must be new or empty. Received"):
        train("Tiny", output=folder, **run)
    (folder / "config.json").write_text((finished / "config.json").read_text())
    with pytest.raises(UserError, match=r"holds a run already: resume it by --resume"):
        train("Tiny", output=folder, **run)
    with pytest.raises(UserError) as error:
        changed = {**run, "seed": 4, "recipe": RECIPE.replace(epochs=9)}
        train("Tiny", output=folder, resume=True, **changed)
    assert "seed is 3 there and 4 here" in str(error.value)
    assert "epochs is 4 there and 9 here" in str(error.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write .*file"):
        train("Tiny", output=tmp_path / "file" / "run", **run)


def test_damaged_checkpoints_are_refused(finished, cifar10_dir, tmp_path, capsys):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for name in ("config.json", "state.json"):
        (folder / name).write_text((finished / name).read_text())
    content = bytearray((finished / "checkpoint-0004.keras").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "checkpoint-0004.keras").write_bytes(content)
    resumed = {"data_dir": cifar10_dir, "output": folder, "resume": True, "eval_every": 3}
    # The one before, which it would fall back to, is missing; without one the newest is named.
    with pytest.raises(UserError, match=r"checkpoint-0003\.keras is missing or damaged"):
        train("Tiny", **resumed, **OPTIONS)
    assert "checkpoint-0004.keras is missing or damaged" in capsys.readouterr().err
    older = json.loads((finished / "state.json").read_text())
    del older["before"]  # written before two were kept
    (folder / "state.json").write_text(json.dumps(older))
    with pytest.raises(UserError, match=r"checkpoint-0004\.keras is missing or damaged"):
        train("Tiny", **resumed, **OPTIONS)
    # A state that no run writes: another file than one of its own, an epoch beyond the last.
    state = json.loads((finished / "state.json").read_text())
    for change, message in (
        ({"checkpoint": "../else.keras"}, r"in its folder. Received: '\.\./else\.keras'"),
        ({"checkpoint": None}, r"`checkpoint` in .*state\.json must be .*\. Received: None"),
        ({"epoch": 10**400}, r"`epoch` in .*state\.json must be .*\. Received: 1000"),
        ({"epoch": "4"}, r"`epoch` in .*state\.json must be .*integer\. Received: '4'"),
        ({"epoch": 5}, r"`epoch` in .*state\.json must be from 0 to 4\. Received: 5"),
    ):
        (folder / "state.json").write_text(json.dumps({**state, **change}))
        with pytest.raises(UserError, match=message):
            train("Tiny", **resumed, **OPTIONS)


def test_mixed_precision_mixup_and_a_holdout(cifar10_dir, tmp_path):
    recipe = RECIPE.replace(
        epochs=1, warmup_epochs=0.0, dtype_policy="mixed_bfloat16", mixup=0.4, cutout=8
    )
    options = {**OPTIONS, "recipe": recipe, "limit": None, "holdout": 452}
    result = train("Tiny", data_dir=cifar10_dir, output=tmp_path / "run", **options)
    assert keras.config.dtype_policy().name == "float32"
    assert result["evaluated_on"] == "last 452 training images"
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["train_images"], config["evaluation_images"]) == (48, 452)
    # The result is that of a float32 model, on images held out, against their own labels.
    images, labels = data.load("cifar10", "train[-452:]", data_dir=cifar10_dir)
    model = tiny_zoo.tiny(tmp_path / "run" / "final.weights.h5")
    scores = evaluate(model, images, labels)
    assert result["test_loss"] == pytest.approx(scores.nll, rel=1e-5)
    assert result["test_error"] == pytest.approx(scores.error, abs=1e-5)
    assert all(
        value.dtype.kind == "f" for value in arrays(tmp_path / "run" / result["file"]).values()
    )


def test_a_diverging_run_stops_before_its_checkpoint(cifar10_dir, tmp_path):
    recipe = RECIPE.replace(learning_rate=1e30, schedule="cosine", warmup_epochs=0.0)
    with pytest.raises(UserError, match=r"diverged.*Received: loss=(nan|inf) in epoch 1"):
        train(
            "Tiny",
            data_dir=cifar10_dir,
            output=tmp_path / "run",
            **{**OPTIONS, "recipe": recipe},
        )
    assert not (tmp_path / "run" / "state.json").exists()


def test_bad_arguments_are_refused_before_anything_is_written(cifar10_dir, tmp_path):
    folder = tmp_path / "run"
    run = {"data_dir": cifar10_dir, "output": folder, **OPTIONS}
    for change, message in (
        ({"model": "ResNet21"}, "Model must be one of.*MFResNet20.*Received: 'ResNet21'"),
        ({"eval_every": 0}, "`eval_every` must be a whole number from 1. Received: eval_every=0"),
        ({"recipe": "slow"}, "paper, cosine, quick.*Received: 'slow'"),
    ):
        with pytest.raises(UserError, match=message):
            train(**{"model": "Tiny", **run, **change})
        assert not folder.exists()
    with pytest.raises(UserError, match=r"cifar10, cifar100.*Received: name='mnist'"):
        train("Tiny", "mnist", **run)
    with pytest.raises(UserError, match=r"less than the 64 training images. Received: 64"):
        train("Tiny", **run, holdout=64)
    recipe = RECIPE.replace(initial_times="grid", quadrature="midpoint")
    with pytest.raises(UserError, match=r"takes no `quadrature`. Received: quadrature='midpoint'"):
        train("TinyPlain", **{**run, "recipe": recipe})
