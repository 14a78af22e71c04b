"""Growth as training: trunks, ladders, what they cost, and weights of another depth."""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from run_folders import assert_same_run
from tiny_zoo import train

from mf_zoo import applications, cli, data, depth, files, layers, weights
from mf_zoo.errors import UserError
from mf_zoo.reporting.cell import cells, read_results
from mf_zoo.training import (
    RECIPES,
    RunSettings,
    campaign,
    distribution,
    evaluate,
    get_recipe,
    growth,
    ladder,
)
from mf_zoo.training.dry_run import dry_run
from mf_zoo.tuning import MeanFieldHyperModel, SearchSettings

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
        ({"growth_rule": "merge"}, r"`growth_rule` must be one of split, constant.*'merge'"),
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
def test_where_no_network_grows():
    recipe = get_recipe("quick", ladder="Tiny:10", horizon=3)
    with pytest.raises(ValueError, match=r"Received: horizon=3.0 of Tiny with \(3,\)"):
        ladder.rungs(RunSettings("Tiny4", recipe=recipe))
    for horizon in (None, 2.5):
        assert ladder.rungs(RunSettings("Tiny4", recipe=recipe.replace(horizon=horizon)))
    with pytest.raises(ValueError, match=r"has no `ladder`. Received: ladder='Tiny:10'"):
        SearchSettings("Tiny4", recipe=recipe)
    with pytest.raises(ValueError, match=r"has no `ema_momentum`. Received: ema_momentum=0.9"):
        SearchSettings("Tiny4", recipe=get_recipe("quick", ema_momentum=0.9))
    with pytest.raises(ValueError, match=r"has no `ema_momentum`. Received: ema_momentum=0.9"):
        MeanFieldHyperModel("Tiny4", recipe=get_recipe("quick", ema_momentum=0.9))


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
    assert found["test_error"] == float(files.read_rows(trunk / "history.csv")[-1]["test_error"])
    options = {"recipe": RECIPE, "data_dir": cifar10_dir, **OPTIONS}
    result = train("Tiny", output=tmp_path / "branch", trunk=trunk, **options)
    assert_same_run(whole, tmp_path / "branch")
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
    refused(r"freeze is \[\] there and \['stem'\] here", freeze="stem")
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
    with pytest.raises(UserError, match=r"trunk_sha256 is '.*' there and '.*' here"):
        train("Tiny", output=tmp_path / "run", trunk=moved, resume=True, **options)
    # The folder may be another, if the trunk is the same; and it may be gone.
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    train("Tiny", output=tmp_path / "run", trunk=trunk, resume=True, **options)
    shutil.rmtree(moved)
    train("Tiny", output=tmp_path / "other", trunk=moved, resume=True, **options)
    assert _json(tmp_path / "other" / "result.json")["grown_from"][0]["epochs"] == 2
    assert_same_run(whole, tmp_path / "other")
    assert_same_run(whole, tmp_path / "run")


# --- Ladders -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grown(cifar10_dir, tmp_path_factory):
    """A run that grew after its second epoch, and was let alone."""
    folder = tmp_path_factory.mktemp("ladder") / "grown"
    train("Tiny4", output=folder, recipe=GROWING, data_dir=cifar10_dir, **OPTIONS)
    return folder


def _process(signal_name, when, *arguments, **options):
    command = [sys.executable, HERE / "tiny_zoo.py", signal_name, when, *arguments]
    return subprocess.run(
        [*map(str, command)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "KERAS_BACKEND": keras.config.backend(),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
        timeout=300,
        **options,
    )


@pytest.mark.once_on_torch
def test_a_grown_run_killed_and_resumed_ends_with_the_same_weights(
    grown, cifar10_dir, tmp_path, capsys
):
    folder, rung = tmp_path / "killed", tmp_path / "killed" / "rungs" / "Tiny-2"
    command = [*COMMAND, "--data-dir", cifar10_dir, "--output", folder]
    resume = ["train", "--resume", "--output", folder, "--verbose", "0"]
    if keras.config.backend() == "torch":
        # When the last checkpoint of the first network is written but does not count yet.
        process = _process("SIGKILL", "2.state", *command)
        assert process.returncode == -9, process.stderr
        assert _json(rung / "state.json")["epoch"] == 1 and (folder / "config.json").exists()
        options = argparse.Namespace(output=folder, subcommand="train")
        assert cli._how_to_resume(options).startswith(" after epoch 1; resume with: mf-zoo train")
        command = resume
    # When it has grown, and before its first checkpoint.
    process = _process("SIGKILL", "2.2", *command)
    assert process.returncode == -9, process.stderr
    assert "Tiny after epoch 2 of 4 of " in process.stderr
    assert "grows to Tiny4; statistics of BatchNormalization measured on 64" in process.stderr
    assert (rung / "result.json").exists() and not (folder / "state.json").exists()
    if keras.config.backend() == "torch":
        process = _process("SIGKILL", "4.state", *resume)
        assert process.returncode == -9, process.stderr
        assert _json(folder / "state.json")["epoch"] == 3
    assert cli.main([*map(str, resume)]) == 0
    assert "after 4 epochs (grown from Tiny to epoch 2); " in capsys.readouterr().out
    assert_same_run(grown, folder)
    assert_same_run(grown / "rungs" / "Tiny-2", rung)
    result, expected = _json(folder / "result.json"), _json(grown / "result.json")
    for key in ("sha256", "test_error", "order_swaps", "image_passes", "multiply_adds", "epochs"):
        assert result[key] == expected[key]
    assert not list(folder.rglob("partial-*"))


def test_a_grown_run_continues_the_schedule_and_the_history_of_its_trunk(grown):
    rung = grown / "rungs" / "Tiny-2"
    history, before = files.read_rows(grown / "history.csv"), files.read_rows(rung / "history.csv")
    assert history[:2] == before and [row["epoch"] for row in history] == ["1", "2", "3", "4"]
    # As in one run: four steps an epoch, one epoch of warm-up, then a cosine over twelve steps.
    expected = [0.008 + 0.192 * 3 / 4]
    expected += [0.1 * (1 + np.cos(np.pi * k / 12)) for k in (3, 7, 11)]
    np.testing.assert_allclose([float(row["learning_rate"]) for row in history], expected, 1e-4)
    particles = {}
    for row in files.read_rows(grown / "times.csv"):
        particles[row["epoch"]] = particles.get(row["epoch"], 0) + 1
    assert particles == {"0": 3, "1": 3, "2": 3, "3": 4, "4": 4}
    model = keras.saving.load_model(grown / "checkpoint-0004.keras")
    assert model.name == "tiny4" and model.get_layer("stage1").num_particles == 4
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 16


@pytest.mark.once_on_torch
def test_what_a_grown_run_took_is_added_up(grown, tmp_path):
    result, rung = _json(grown / "result.json"), _json(grown / "rungs" / "Tiny-2" / "result.json")
    # Stem 4 x 4 x (3 x 3 x 3 x 4), blocks of two convolutions 4 x 4 x (3 x 3 x 4 x 4), head 4 x 10.
    small, large = (1728 + blocks * 2 * 2304 + 40 for blocks in (3, 4))
    assert rung["image_passes"] == 2 * 64 and rung["multiply_adds"] == 3 * 128 * small
    assert result["image_passes"] == 4 * 64
    assert result["multiply_adds"] == 3 * 128 * (small + large)
    (entry,) = result["grown_from"]
    state = _json(grown / "rungs" / "Tiny-2" / "state.json")
    assert entry == {
        "model": "Tiny",
        "epochs": 2,
        "sha256": state["sha256"],
        "image_passes": 128,
        "multiply_adds": 3 * 128 * small,
        "train_seconds": rung["train_seconds"],
        "weights": None,
        "weights_sha256": None,
    }
    seconds = [float(row["seconds"]) for row in files.read_rows(grown / "history.csv")]
    assert result["train_seconds"] == pytest.approx(sum(seconds[2:]), abs=0.06)
    assert result["total_train_seconds"] == pytest.approx(sum(seconds), abs=0.11)

    record = weights.publish(grown, directory=tmp_path, partial=True)
    assert record.grown_from == (weights.Rung(model="Tiny", epochs=2, sha256=state["sha256"]),)
    assert (record.image_passes, record.multiply_adds) == (256, result["multiply_adds"])
    assert (record.epochs, record.train_seconds) == (4, result["total_train_seconds"])
    assert weights.records(directory=tmp_path) == [record]
    values = json.loads(record.to_json())
    for bad in ([{"model": "Tiny", "epochs": 4, "sha256": state["sha256"]}], [{"model": "Tiny"}]):
        with pytest.raises(ValueError, match=r"`grown_from` must be a list.*Received: grown_from"):
            weights.WeightRecord.from_json(json.dumps({**values, "grown_from": bad}))
    for field in ("grown_from", "image_passes", "multiply_adds"):  # as in older records
        del values[field]
    older = weights.WeightRecord.from_json(json.dumps(values))
    assert (older.grown_from, older.multiply_adds) == ((), None)


@pytest.mark.once_on_torch
def test_momenta_grow_or_start_anew(trunk):
    found = {}
    for state in ("keep", "reset"):
        recipe = RECIPE.replace(growth_state=state)
        settings = RunSettings("Tiny4", seed=3, limit=64, recipe=recipe, trunk=trunk)
        images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), "uint8")
        start = ladder.read_trunk(trunk, settings)
        network, _ = growth.grow(start, settings, images, distribution.Group())
        assert int(keras.ops.convert_to_numpy(network.optimizer.iterations)) == 8
        found[state] = [keras.ops.convert_to_numpy(m) for m in network.optimizer.momentums]
    assert all(not np.any(momentum) for momentum in found["reset"])
    before = keras.saving.load_model(trunk / "checkpoint-0002.keras")
    shapes = [tuple(variable.shape) for variable in before.trainable_variables]
    for momentum, old, shape in zip(found["keep"], before.optimizer.momentums, shapes, strict=True):
        old = keras.ops.convert_to_numpy(old)
        assert np.any(old)
        if shape[0] != 3:  # outside of the stage
            np.testing.assert_array_equal(momentum, old)


CAMPAIGN = """
jobs = 2
[defaults]
recipe = "quick"
epochs = 3
warmup_epochs = 1
batch_size = 16
limit = 32
learning_rate = 0.05
[[runs]]
model = "Tiny4"
seed = 3
ladder = "Tiny:1"
growth_state = ["keep", "reset"]
"""


@pytest.mark.once_on_torch
@pytest.mark.long
def test_a_campaign_whose_runs_share_a_trunk_killed_and_resumed(cifar10_dir, tmp_path):
    file = tmp_path / "queue.toml"
    file.write_text(CAMPAIGN)
    first, *branches = campaign.load_campaign(file).runs
    assert (first.settings.model, first.settings.until, len(branches)) == ("Tiny", 1, 2)
    alone = {}
    for run in branches:
        folder = tmp_path / "alone" / run.name
        options = {"seed": 3, "limit": 32, "verbose": 0, "data_dir": cifar10_dir}
        alone[run.name] = train("Tiny4", output=folder, recipe=run.settings.recipe, **options)
    output = tmp_path / "runs" / "queue"

    # A run that has grown kills the driver with -9, and then sleeps for minutes.
    process = _process("PARENT", "2.1", "campaign", file, "--data-dir", cifar10_dir, cwd=tmp_path)
    assert process.returncode == -9, process.stderr
    until = time.monotonic() + 60
    while any(map(files.is_locked, (output / run.name for run in (first, *branches)))):
        assert time.monotonic() < until, "the runs of a killed driver must end with it"
        time.sleep(0.05)
    assert not any((output / run.name / "result.json").exists() for run in branches)
    trunk = (output / first.name / "result.json").stat().st_mtime_ns
    process = _process("-", "-", "campaign", file, "--data-dir", cifar10_dir, cwd=tmp_path)
    assert process.returncode == 0, process.stdout + process.stderr
    assert (output / first.name / "result.json").stat().st_mtime_ns == trunk
    rows = {row["run"]: row for row in files.read_rows(tmp_path / "results/queue/runs.csv")}
    assert len({row["sha256"] for row in rows.values()}) == 3
    for name, result in alone.items():
        assert rows[name]["sha256"] == result["sha256"]
        assert rows[name]["test_error"] == str(result["test_error"])
        assert rows[name]["multiply_adds"] == str(result["multiply_adds"])
        assert (rows[name]["epochs"], rows[name]["epochs_done"]) == ("3", "3")
        times = files.read_rows(tmp_path / "results" / "queue" / f"{name}.times.csv")
        assert times[0]["stage1/3"] == "" and times[-1]["stage1/3"] != ""
    # A trunk is no result.
    found = cells(read_results(tmp_path / "results" / "queue"))
    assert [cell.model for cell in found] == ["Tiny4", "Tiny4"]


# --- Real networks -----------------------------------------------------------------------------

STILL = RECIPES["cosine"].replace(epochs=2, batch_size=100, learning_rate=1e-9, momentum=0.0)
FEW = {"limit": 200, "verbose": 0}


@pytest.mark.once_on_torch
@pytest.mark.long
def test_trained_networks_grow_and_know_what_they_knew(cifar10_dir, tmp_path):
    """From a trunk, with a learning rate that changes nothing."""
    options = {"recipe": STILL, "data_dir": cifar10_dir, **FEW}
    for small, large in (("MFResNet20", "MFResNet32"), ("ResNet20", "ResNet32")):
        first, second = tmp_path / small, tmp_path / large
        before = train(small, weights="cifar10", until=1, output=first, **options)
        after = train(large, trunk=first, output=second, **options)
        assert before["test_error"] < 12 and after["test_error"] < 20
        builder = applications.get(large)
        images, labels = data.load("cifar10", "test[:200]", data_dir=cifar10_dir)
        model = builder(weights=second / "final.weights.h5", classifier_activation=None)
        scores = evaluate(model, images, labels, from_logits=True)
        assert scores.error == pytest.approx(after["test_error"], abs=1e-5)
        counts = [applications.architecture(name).multiply_adds() for name in (small, large)]
        assert after["multiply_adds"] == 3 * 200 * sum(counts)


@pytest.mark.once_on_torch
def test_weights_of_another_depth_are_refined_and_measured_anew(cifar10_dir, tmp_path, capsys):
    source = applications.MFResNet20(weights="cifar10")
    source.save_weights(tmp_path / "source.weights.h5")
    options = {"recipe": STILL.replace(epochs=1), "data_dir": cifar10_dir, **FEW}
    start, output = tmp_path / "source.weights.h5", tmp_path / "run"
    result = train("MFResNet32", weights=start, output=output, **options)
    said = capsys.readouterr().err
    expected = "has (3, 2, 2) particles, made the (5, 4, 4) of MFResNet32; statistics of "
    assert expected in said and "measured on 200 training images" in said
    assert "Warning" not in said and result["test_error"] < 20
    trained = applications.MFResNet32(weights=output / "final.weights.h5")
    deeper = depth.refine(source, "MFResNet32")
    for one, other in zip(layers.stages(trained), layers.stages(deeper), strict=True):
        for block, refined in zip(one.blocks(), other.blocks(), strict=True):
            np.testing.assert_allclose(block.weights[0], refined.weights[0], atol=1e-6)

    applications.ResNet20(weights="cifar10").save_weights(tmp_path / "plain.weights.h5")
    images, labels = data.load("cifar10", "test[:200]", data_dir=cifar10_dir)
    training_images, _ = data.load("cifar10", "train", data_dir=cifar10_dir)
    for model, start, line in (
        ("MFResNet32", "MFResNet20:cifar10", expected),
        ("MFResNet32", str(tmp_path / "plain.weights.h5"), expected),
        ("MFResNet20", str(tmp_path / "plain.weights.h5"), None),  # its twin's
        ("ResNet20", "cifar10", None),
    ):
        settings = RunSettings(model, weights=start)
        network, said = growth.start(settings, training_images, distribution.Group())
        assert (said is None) == (line is None) and (line is None or line in said)
        assert evaluate(network, images, labels, from_logits=True).error < 20


@pytest.mark.once_on_torch
@pytest.mark.parametrize("model", ["MFResNet32", "ResNet32"])
def test_a_ladder_of_real_networks_from_end_to_end(model, cifar10_dir, tmp_path, capsys):
    small = model.replace("32", "20")
    command = ["train", model, "--recipe", "quick", "--epochs", "2", "--ladder", "ResNet20:1"]
    command += ["--limit", "32", "--batch-size", "16", "--data-dir", str(cifar10_dir)]
    assert cli.main([*command, "--output", str(tmp_path / "run"), "--verbose", "0"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{model} on cifar10, test: error ")
    assert f"after 2 epochs (grown from {small} to epoch 1); " in printed
    history = files.read_rows(tmp_path / "run" / "history.csv")
    assert [row["epoch"] for row in history] == ["1", "2"]
    found = {path.name for path in (tmp_path / "run" / "rungs" / f"{small}-1").iterdir()}
    assert {"checkpoint-0001.keras", "result.json", "final.weights.h5"} <= found
    (stage, *_) = layers.stages(keras.saving.load_model(tmp_path / "run/checkpoint-0002.keras"))
    assert stage.num_particles == 5
    moved = np.any(keras.ops.convert_to_numpy(stage.times) != np.arange(1.0, 6.0))
    assert moved == (model == "MFResNet32")
