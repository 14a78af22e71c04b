"""What version 0.1 wrote still loads: weights, a model, run folders, a campaign."""

import csv
import json
import pathlib
import shutil

import keras
import numpy as np
import pytest
import tiny_zoo  # noqa: F401  # registers the network
from run_folders import arrays

from mf_zoo import applications, cli, data, files
from mf_zoo.layers import stages
from mf_zoo.reporting.cell import cells, read_results
from mf_zoo.training import Machine, RunSettings, evaluate, evaluate_weights

OLD = pathlib.Path(__file__).parent / "fixtures" / "version-0.1"

pytestmark = pytest.mark.once_on_torch


def test_a_run_begun_by_version_0_1_is_resumed_to_its_weights(cifar10_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    shutil.copytree(OLD / "begun", folder)
    command = ["train", "--resume", "--output", str(folder), "--data-dir", str(cifar10_dir)]
    assert cli.main([*command, "--verbose", "0"]) == 0
    found, expected = (arrays(path / "final.weights.h5") for path in (folder, OLD / "whole"))
    assert found.keys() == expected.keys()
    for name, value in expected.items():  # Another processor rounds otherwise.
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    histories = [
        list(csv.DictReader((path / "history.csv").open())) for path in (folder, OLD / "whole")
    ]
    assert [row["learning_rate"] for row in histories[0]] == [
        row["learning_rate"] for row in histories[1]
    ]
    assert [row["order_swaps"] for row in histories[0]] == [
        row["order_swaps"] for row in histories[1]
    ]


def test_a_finished_run_of_version_0_1_is_measured_as_it_was(cifar10_dir):
    result = json.loads((OLD / "whole" / "result.json").read_text())
    scores = evaluate_weights(OLD / "whole", OLD / "whole" / result["file"], data_dir=cifar10_dir)
    assert scores.error == pytest.approx(result["test_error"], abs=1e-5)
    assert scores.nll == pytest.approx(result["test_loss"], rel=1e-5)
    config = json.loads((OLD / "whole" / "config.json").read_text())
    settings = RunSettings.from_dict(config)
    assert (settings.model, settings.freeze, settings.limit) == ("Tiny", ("st*",), 64)
    assert Machine.from_dict(config) == Machine()


def test_a_model_of_version_0_1_loads_and_computes_what_it_did(cifar10_dir):
    model = keras.saving.load_model(OLD / "begun" / "checkpoint-0001.keras")
    (stage,) = stages(model)
    assert stage.num_particles == 3 and not stage.trainable
    # Its weights by NumPy: the times are in the order that the run wrote down.
    times = [
        float(row["time"])
        for row in csv.DictReader((OLD / "begun" / "times.csv").open())
        if row["epoch"] == "1"
    ]
    np.testing.assert_allclose(keras.ops.convert_to_numpy(stage.times), times, rtol=1e-6)
    history = list(csv.DictReader((OLD / "begun" / "history.csv").open()))
    images, labels = data.load("cifar10", "test[:64]", data_dir=cifar10_dir)
    scores = evaluate(model, images, labels, from_logits=True)
    assert scores.error == pytest.approx(float(history[0]["test_error"]), abs=1e-4)
    assert scores.nll == pytest.approx(float(history[0]["test_loss"]), rel=1e-4)


def test_a_campaign_of_version_0_1_is_finished(tmp_path, monkeypatch, capsys):
    """Its runs have the same names, so nothing is trained a second time."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(OLD / "results", tmp_path / "results" / "camp")
    shutil.copy(OLD / "camp.toml", tmp_path)
    before = files.read_rows(tmp_path / "results" / "camp" / "runs.csv")
    assert cli.main(["campaign", "camp.toml"]) == 0
    assert "2 of 2 runs finished, 0 failed" in capsys.readouterr().out
    after = files.read_rows(tmp_path / "results" / "camp" / "runs.csv")
    # What later versions add is not known of them.
    assert after == [{**row, "image_passes": "", "multiply_adds": ""} for row in before]
    for folder in (OLD / "results", tmp_path / "results" / "camp"):
        assert len(cells(read_results(folder))) == 1


def test_the_shipped_weights_normalise_as_they_were_trained():
    """The oldest of CIFAR-100 were trained with the statistics of CIFAR-10."""
    older = {("MFResNet20", "cifar100"): "cifar10"}
    for name in ("cifar10", "cifar100"):
        for model in ("MFResNet20", "ResNet20"):
            network = applications.get(model)(weights=name)
            record = data.get(older.get((model, name), name))
            assert applications.normalization_of(network) == (record.mean, record.std)


def test_the_files_hold_nothing_of_the_machine_they_were_made_on():
    texts = [path for path in OLD.rglob("*") if path.suffix in (".json", ".csv", ".toml")]
    assert len(texts) >= 10
    for path in texts:
        assert str(pathlib.Path.home()) not in path.read_text(), path
