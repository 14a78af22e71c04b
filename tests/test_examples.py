"""The guides run, on real images, and do what they say."""

import importlib.util

import keras
import numpy as np
import pytest
from conftest import ROOT

import mf_zoo
from mf_zoo import applications, data, files, weights
from mf_zoo.layers import stages
from mf_zoo.theory import vjp


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.once_on_torch
def test_fine_tuning(cifar100_dir, tmp_path, monkeypatch, capsys):
    guide = example("fine_tune")
    epochs = ["12", "1"]
    snapshots = []
    evaluate = keras.Model.evaluate

    def look(self, *arguments, **options):
        snapshots.append([np.array(weight) for weight in self.get_weights()])
        return evaluate(self, *arguments, **options)

    monkeypatch.setattr(keras.Model, "evaluate", look)
    path = tmp_path / "tuned.keras"
    arguments = ["--data-dir", str(cifar100_dir), "--images", "500", "--output", str(path)]
    found = guide.main([*arguments, "--epochs", *epochs])

    pretrained = applications.MFResNet20(weights="cifar10", include_top=False).get_weights()
    frozen, unfrozen = snapshots
    # Frozen, the body stays as it was, to the bit: BatchNormalization's statistics and times too.
    for before, after in zip(pretrained, frozen, strict=False):
        np.testing.assert_array_equal(before, after)
    changed = [not np.array_equal(a, b) for a, b in zip(frozen, unfrozen, strict=True)]
    assert all(changed)
    # 500 images of 100 classes teach little, and more than guessing (1 %, standard deviation 0.4).
    assert 0.03 < found["frozen body"] < 0.5
    out = capsys.readouterr().out
    assert f"frozen body: accuracy {100 * found['frozen body']:.1f} % on 500 test images" in out

    loaded = keras.saving.load_model(path)
    for ours, theirs in zip(loaded.get_weights(), unfrozen, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for stage in stages(loaded):
        order = np.argsort(keras.ops.convert_to_numpy(stage.times)).tolist()
        assert f"{stage.name}: particles in the order of depth {order}" in out


@pytest.mark.once
def test_training_on_several_devices_goes_on_after_an_interruption(
    cifar10_dir, tmp_path, monkeypatch
):
    guide = example("several_devices")

    def train(name):
        guide.main(
            [
                *("cifar10", "--data-dir", str(cifar10_dir / "array_record")),
                *("--model", "MFResNet20", "--image-size", "16", "--classes", "10"),
                *("--batch", "250", "--learning-rate", "0.02", "--epochs", "2"),
                *("--output", str(tmp_path / name)),
            ]
        )
        return keras.saving.load_model(tmp_path / name)

    whole = train("whole.keras")
    assert int(whole.optimizer.iterations) == 2 * 2
    saved = guide.Save.on_epoch_end

    def save_and_stop(self, epoch, logs=None):
        saved(self, epoch, logs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(guide.Save, "on_epoch_end", save_and_stop)
        train("stopped.keras")
    stopped = keras.saving.load_model(tmp_path / "stopped.keras")
    assert int(stopped.optimizer.iterations) == 2
    for ours, theirs in zip(train("stopped.keras").get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(SystemExit, match="error: cifar100 must have been prepared"):
        guide.main(["cifar100", "--data-dir", str(tmp_path), "--output", str(tmp_path / "x")])


@pytest.mark.once_on_torch
@pytest.mark.long
def test_transfer_compares_equal_trainings_and_runs_none_twice(
    cifar100_dir, tmp_path, monkeypatch, capsys
):
    guide = example("transfer")
    trained = []
    fit = keras.Model.fit

    def look(self, batches, **options):
        trained.append((self, [np.array(weight) for weight in self.get_weights()], options))
        return fit(self, batches, **options)

    monkeypatch.setattr(keras.Model, "fit", look)
    arguments = ["--data-dir", str(cifar100_dir), "--models", "MFResNet20", "--images", "500"]
    arguments += ["--datasets", "cifar100", "--epochs", "2", "--learning-rate", "0.05"]
    arguments += ["--output", str(tmp_path / "transfer.csv")]
    rows = guide.main(arguments)
    assert [row["weights"] for row in rows] == ["", "cifar10"]

    # Both are trained alike; one has the body of the pretrained network.
    (scratch, random, first), (tuned, pretrained, second) = trained
    assert first == second
    assert int(scratch.optimizer.iterations) == int(tuned.optimizer.iterations) == 8
    settings = [{**m.optimizer.get_config(), "name": ""} for m in (scratch, tuned)]
    assert settings[0] == settings[1]
    body = applications.MFResNet20(weights="cifar10", include_top=False).get_weights()
    kernels = [i for i, weight in enumerate(body) if weight.ndim > 2]
    assert all(np.array_equal(body[i], pretrained[i]) for i in range(len(body)))
    assert not any(np.array_equal(body[i], random[i]) for i in kernels)
    images, labels = data.load("cifar100", "test", data_dir=cifar100_dir)
    for row, model in zip(rows, (scratch, tuned), strict=True):
        error = 100 * np.mean(model.predict(images, verbose=0).argmax(1) != labels)
        assert float(row["test_error"]) == pytest.approx(error, abs=0.006)

    printed = capsys.readouterr().out.splitlines()[-1]
    a, b = (row["test_error"] for row in rows)
    assert printed == f"| `MFResNet20` | cifar100 | 500 | 2 | {a} | cifar10 | {b} |"
    guide.main(arguments)
    assert len(trained) == 2 and capsys.readouterr().out.splitlines()[-1] == printed

    # Weights that have been trained anew since.
    files.write_rows(tmp_path / "transfer.csv", [rows[0], {**rows[1], "digest": "0" * 12}], rows[0])
    again = guide.main(arguments)
    assert len(trained) == 3 and again[0] == rows[0] and len(again) == 2
    assert again[1]["digest"] == weights.get("MFResNet20", "cifar10").sha256[:12]


@pytest.mark.once_on_torch
def test_heat_maps_are_those_of_the_formula(tmp_path, capsys):
    guide = example("grad_cam")
    path = tmp_path / "cam.png"
    layers = ["stage3/entry", "stage3/0", "stage3"]
    maps = guide.main(["--images", "3", "--output", str(path), "--layers", *layers])
    assert path.read_bytes().startswith(b"\x89PNG") and "stage3/0" in capsys.readouterr().out

    model = applications.MFResNet20(weights="cifar10", classifier_activation=None)
    images, labels = data.sample("cifar10")
    images = images[[int(np.argmax(labels == label)) for label in range(3)]].astype("float32")
    found = mf_zoo.features(model, layers).predict(images, verbose=0)
    answers = model.predict(images, verbose=0).argmax(1)
    kernel, bias = model.get_layer("predictions").get_weights()
    # Before a mean over the places and a linear classifier the weight of a channel is the
    # classifier's own, divided by the number of places.
    last = np.einsum("kb,bijk->bij", kernel[:, answers], found["stage3"]) / 8**2
    np.testing.assert_allclose(maps["stage3"], np.maximum(last, 0), rtol=1e-3, atol=1e-5)
    # From the state before the last block on, by hand and automatic differentiation.
    stage = stages(model)[2]

    def score(x):
        after = keras.ops.relu(x + stage.update(x, 1))
        scores = keras.ops.mean(after, (1, 2)) @ keras.ops.convert_to_tensor(
            kernel
        ) + keras.ops.convert_to_tensor(bias)
        return keras.ops.sum(scores * keras.ops.one_hot(answers, 10))

    _, (slope,) = vjp(score, [found["stage3/0"]])
    weights = keras.ops.convert_to_numpy(slope).mean((1, 2))
    expected = np.maximum(np.einsum("bk,bijk->bij", weights, found["stage3/0"]), 0)
    assert expected.max() > 0
    np.testing.assert_allclose(maps["stage3/0"], expected, rtol=1e-3, atol=1e-5)
