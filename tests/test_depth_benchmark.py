"""The benchmark of depth measures what it says, once, and tells it as it is."""

import sys

import numpy as np
import pytest
import tiny_zoo
from conftest import ROOT

if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import depth as benchmark
from benchmarks import growth, harness
from mf_zoo import applications, data, depth, files, training, weights


@pytest.mark.once
def test_particles_of_a_depth():
    for name in ("ResNet20", "ResNet56", "ResNet164", "WideResNet28_10"):
        architecture = applications.architecture(name)
        # 2 and 2 convolutions a block, 3 in a bottleneck; the wide network's 28 counts 4 layers.
        number = {"WideResNet28_10": 26}.get(name) or int(name.removeprefix("ResNet"))
        assert benchmark.particles_at(architecture, number) == architecture.particles
    assert benchmark.particles_at(applications.architecture("ResNet20"), 218) == (36, 35, 35)
    for depth_without_network in (21, 8, 2):
        with pytest.raises(ValueError, match=f"multiple of 6. Received: {depth_without_network}"):
            benchmark.particles_at(applications.architecture("ResNet20"), depth_without_network)


@pytest.mark.once_on_torch
def test_states_are_measured_once_and_alike(cifar10_dir, tmp_path, capsys):
    output = tmp_path / "depth.csv"
    arguments = [
        "--data-dir",
        str(cifar10_dir),
        "--weights",
        "MFResNet20:cifar10",
        "--depths",
        "32",
    ]
    arguments += ["--images", "60", "--statistics", "100", "--output", str(output)]
    assert benchmark.main([*arguments, "--epochs", "1", "--train-images", "128"]) == 0
    rows = files.read_rows(output)
    assert [row["state"] for row in rows] == ["as it is", "recalibrated", "1 epochs"]
    assert {row["particles"] for row in rows} == {"5 4 4"} and {r["depth"] for r in rows} == {"32"}
    assert [row["training_images"] for row in rows] == ["0", "0", "128"]

    # By hand, from the same files.
    x, labels = data.load("cifar10", "test[:60]", data_dir=cifar10_dir)
    train = data.load("cifar10", "train[:100]", data_dir=cifar10_dir)
    model = applications.MFResNet20(weights="cifar10")
    model = depth.refine(model, "MFResNet32")

    def error():
        return 100 * np.mean(model.predict(x, verbose=0).argmax(axis=1) != labels)

    assert float(rows[0]["error"]) == pytest.approx(error(), abs=0.01)
    augment = data.Augmentation(padding=4, flip=True)
    depth.recalibrate(model, data.batches(*train, 500, augment=augment, seed=0))
    assert float(rows[1]["error"]) == pytest.approx(error(), abs=0.01)
    assert int(rows[0]["multiply_adds"]) == applications.architecture("ResNet32").multiply_adds()

    before = output.read_text(encoding="utf-8")
    capsys.readouterr()
    assert benchmark.main([*arguments, "--epochs", "1", "--train-images", "128"]) == 0
    assert output.read_text(encoding="utf-8") == before  # nothing is measured again
    assert {row["digest"] for row in rows} == {weights.get("MFResNet20", "cifar10").sha256[:12]}
    shown = capsys.readouterr().out.splitlines()
    errors = " | ".join(row["error"] for row in rows)
    assert f"| MFResNet20 | cifar10 | split | 32 | 5 4 4 | {errors} |" in shown
    assert output.with_suffix(".png").stat().st_size > 5000

    # A row of weights that have been trained anew since, and one of another network.
    other = {**rows[0], "model": "ResNet20"}
    former = {**rows[1], "digest": "0" * 12, "error": "99.00"}
    files.write_rows(output, [rows[0], former, rows[2], other], benchmark.COLUMNS)
    assert benchmark.main([*arguments, "--epochs", "1", "--train-images", "128"]) == 0
    *kept, found = files.read_rows(output)
    assert kept == [rows[0], rows[2], other]
    changing = ("date", "seconds")
    assert {**found, **dict.fromkeys(changing)} == {**rows[1], **dict.fromkeys(changing)}


@pytest.mark.once_on_torch
def test_networks_of_runs_are_measured(cifar10_dir, tmp_path):
    run, output = tmp_path / "MFResNet20-of-today", tmp_path / "depth.csv"
    recipe = training.get_recipe("quick", epochs=1, batch_size=32, learning_rate=0.01)
    options = {"data_dir": cifar10_dir, "recipe": recipe, "limit": 64, "verbose": 0}
    tiny_zoo.train("MFResNet20", output=run, **options)
    arguments = ["--data-dir", str(cifar10_dir), "--weights", f"MFResNet20:{run}"]
    arguments += ["--depths", "20", "--images", "60", "--statistics", "64", "--output", str(output)]
    assert benchmark.main(arguments) == 0
    row = files.read_rows(output)[0]
    assert (row["weights"], row["state"], row["particles"]) == (run.name, "as it is", "3 2 2")
    model = applications.MFResNet20(weights=str(run / "final.weights.h5"))
    x, labels = data.load("cifar10", "test[:60]", data_dir=cifar10_dir)
    scores = training.evaluate(model, x, labels)
    assert float(row["error"]) == pytest.approx(scores.error, abs=0.01)
    assert float(row["loss"]) == pytest.approx(scores.nll, rel=1e-3)


@pytest.mark.once
def test_coarsened_networks_are_runs_of_a_campaign():
    runs = {row["run"]: row for name in growth.CAMPAIGNS for row in growth.finished(name)}
    rows = files.read_rows(harness.RESULTS / "coarsening.csv")
    assert {row["digest"] for row in rows} == {runs[row["weights"]]["sha256"][:12] for row in rows}


@pytest.mark.once
def test_the_table_of_coarsened_networks(monkeypatch, tmp_path):
    shared = {"model": "MFResNet56", "weights": "run", "state": "as it is", "training_images": "0"}
    shared |= {"rule": "merge", "learning_rate": "0.0"}
    files.write_rows(
        tmp_path / "coarsening.csv",
        [
            {**shared, "depth": "20", "particles": "3 2 2", "error": "16.50"},
            {**shared, "depth": "56", "particles": "9 8 8", "error": "10.00"},
        ],
        (*shared, "depth", "particles", "error"),
    )
    run = {"run": "run", "state": "finished", "model": "MFResNet56", "epochs": "20", "seed": "0"}
    run |= {"overrides": "epochs=20 ladder=ResNet20:10", "test_error": "9", "multiply_adds": "1"}
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(growth, "finished", lambda name: [run] if name == "growth-trial" else [])
    trained = "20, of these 10 at the depth of ResNet20"
    assert benchmark.coarsening_table().splitlines() == [
        "| network | epochs | rule | depth | particles | as it is |",
        "|---|---|---|---:|---|---:|",
        f"| MFResNet56 | {trained} |  | 56 | 9 8 8 | 10.00 |",
        f"| MFResNet56 | {trained} | merge | 20 | 3 2 2 | 16.50 |",
    ]
