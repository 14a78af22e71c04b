"""Corrupted test images, and what a temperature does to probabilities."""

import colorsys
import json
import sys

import keras
import numpy as np
import pytest
import tfds_folders
from conftest import ROOT
from scipy import special

if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import robustness
from mf_zoo import applications, cli, data, deploy
from mf_zoo.data.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, load_corrupted
from mf_zoo.training import divide_logits, evaluate, evaluate_corruptions, fit_temperature

COUNT = 40  # images of each severity


def noisy(images, severity):
    """Gaussian noise as in CIFAR-10-C."""
    deviation = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    noise = np.random.default_rng(severity).normal(scale=deviation, size=images.shape)
    return np.uint8(np.clip(images / 255 + noise, 0, 1) * 255)


def flat(images, severity):
    """Less contrast as in CIFAR-10-C."""
    factor = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    means = images.mean(axis=(1, 2), keepdims=True)
    return np.uint8(np.clip((images - means) * factor + means, 0, 255))


MADE = {"gaussian_noise": noisy, "contrast": flat}


@pytest.fixture(scope="module")
def sample():
    images, labels = data.sample("cifar10")
    return images[:COUNT], labels[:COUNT]


@pytest.fixture(scope="module")
def folder(sample, tmp_path_factory):
    """Real images, corrupted, in files laid out as those of the authors."""
    images, labels = sample
    folder = tmp_path_factory.mktemp("corrupted")
    for name in ("CIFAR-10-C", "CIFAR-100-C"):
        (folder / name).mkdir()
        np.save(folder / name / "labels.npy", np.tile(labels, 5).astype("uint8"))
        for corruption, make in MADE.items():
            made = [make(images, severity) for severity in range(1, 6)]
            np.save(folder / name / f"{corruption}.npy", np.concatenate(made))
    return folder


@pytest.fixture(scope="module")
def model():
    return applications.MFResNet20(weights="cifar10", classifier_activation=None)


@pytest.mark.once
@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_the_authors_files_hold_the_severities_one_after_the_other(folder, sample, dataset):
    for corruption, make in MADE.items():
        for severity in range(1, 6):
            images, labels = load_corrupted(dataset, corruption, severity, folder)
            np.testing.assert_array_equal(images, make(sample[0], severity))
            np.testing.assert_array_equal(labels, sample[1])
            assert images.dtype == np.uint8 and labels.dtype == np.int64


@pytest.mark.once
def test_folders_of_tensorflow_datasets_whose_names_differ(sample, tmp_path):
    images, labels = sample
    names = {"gaussian_noise": "gaussian_noise", "glass_blur": "frosted_glass_blur"}
    for place, (ours, theirs) in enumerate(names.items()):
        made = noisy(images, place + 1)
        examples = [
            {"image": image, "label": int(label)} for image, label in zip(made, labels, strict=True)
        ]
        tfds_folders.prepare_known(
            f"cifar10_corrupted/{theirs}_{place + 1}", tmp_path, {"test": examples}
        )
        found, found_labels = load_corrupted("cifar10", ours, place + 1, tmp_path, download=False)
        pairs = {image.tobytes(): label for image, label in zip(found, found_labels, strict=True)}
        assert pairs == {image.tobytes(): label for image, label in zip(made, labels, strict=True)}
    # The names are all those of tensorflow-datasets, and they are what the paper lists.
    from tensorflow_datasets.image_classification import cifar10_corrupted as known

    files = {
        name: file.removesuffix(".npy") for name, file in known._CORRUPTIONS_TO_FILENAMES.items()
    }
    assert [files[name] for name in known.BENCHMARK_CORRUPTIONS] == list(CORRUPTIONS)
    assert {files[name] for name in known.EXTRA_CORRUPTIONS} == set(EXTRA_CORRUPTIONS)
    with pytest.raises(data.DatasetUnavailableError, match=r"fog_2.*not prepared"):
        load_corrupted("cifar10", "fog", 2, tmp_path, download=False)


@pytest.mark.once
def test_what_is_wrong_with_the_files_is_said(sample, folder, tmp_path):
    with pytest.raises(ValueError, match="corruption='rain'"):
        load_corrupted("cifar10", "rain", 1, folder)
    for severity in (0, 6, "1"):
        with pytest.raises(ValueError, match="Received: severity="):
            load_corrupted("cifar10", "contrast", severity, folder)
    with pytest.raises(data.DatasetUnavailableError, match=r"fog\.npy"):
        load_corrupted("cifar10", "fog", 1, folder)
    with pytest.raises(data.DatasetUnavailableError, match=r"CIFAR-100-C, with fog\.npy"):
        load_corrupted("cifar100", "fog", 1, tmp_path)
    broken = tmp_path / "CIFAR-10-C"
    broken.mkdir()
    images, labels = np.zeros((10, 32, 32, 3), "uint8"), np.zeros(10, "uint8")
    wrong = {
        "objects": (np.array([{}] * 10), labels),
        "floats": (images / 1.0, labels),
        "severities": (images[:9], labels[:9]),
        "labels": (images, labels[:9]),
        "classes": (images, labels + 10),
        "none": (images[:0], labels[:0]),
    }
    for some, classes in wrong.values():
        np.save(broken / "contrast.npy", some, allow_pickle=True)
        np.save(broken / "labels.npy", classes)
        with pytest.raises(data.DatasetCorruptError, match=r"contrast\.npy"):
            load_corrupted("cifar10", "contrast", 1, tmp_path)
    (broken / "contrast.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(data.DatasetCorruptError, match=r"contrast\.npy"):
        load_corrupted("cifar10", "contrast", 1, tmp_path)


def test_errors_are_those_of_the_images_by_themselves(model, sample, folder):
    images, labels = sample
    found = evaluate_corruptions(model, "cifar10", folder, list(MADE), [1, 5])
    expected = {
        name: {k: evaluate(model, make(images, k), labels, from_logits=True).error for k in (1, 5)}
        for name, make in MADE.items()
    }
    assert found.errors == expected and found.images == COUNT
    assert found.errors["contrast"][5] > found.errors["contrast"][1]  # 0.15 of the contrast
    means = [sum(row.values()) / 2 for row in expected.values()]
    assert found.mean_error == pytest.approx(sum(means) / 2)
    with pytest.raises(ValueError, match=r"corruptions=\[\]"):
        evaluate_corruptions(model, "cifar10", folder, [])


@pytest.mark.once_on_torch
def test_the_command_prints_them(model, folder, capsys):
    base = ["evaluate", "MFResNet20", "--weights", "cifar10", "--data-dir", str(folder)]
    asked = ["--corruptions", *MADE, "--severities", "5", "1", "5", "--limit", "20"]
    assert cli.main([*base, *asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = evaluate_corruptions(model, "cifar10", folder, list(MADE), [5, 1], limit=20)
    assert found["mean_error"] == pytest.approx(expected.mean_error)
    assert found["images"] == 20
    assert cli.main([*base, *asked]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| corruption | 5 | 1 | mean |" in lines
    row = expected.errors["contrast"]
    assert f"| contrast | {row[5]:.2f} | {row[1]:.2f} | {(row[5] + row[1]) / 2:.2f} |" in lines
    assert cli.main([*base, "--corruptions", "--calibrate", "5"]) == 2
    assert "Received: 5" in capsys.readouterr().err
    assert cli.main([*base, "--severities", "1"]) == 2
    assert cli.main([*base, "--corruptions"]) == 2  # all 15, and there are two
    assert "shot_noise.npy" in capsys.readouterr().err


@pytest.mark.once
def test_a_temperature_is_the_one_of_the_drawn_labels():
    """Labels drawn from softmax(z / T) are fitted by T, whatever is added to a row of z."""
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=3, size=(20_000, 5))
    for temperature in (0.5, 1.0, 2.5):
        probabilities = special.softmax(logits / temperature, axis=1)
        drawn = (generator.random((len(logits), 1)) > probabilities.cumsum(axis=1)).sum(axis=1)
        found = fit_temperature(logits, drawn)
        assert found == pytest.approx(temperature, rel=0.03)
        shifted = logits + generator.normal(size=(len(logits), 1))
        assert fit_temperature(shifted, drawn) == pytest.approx(found, rel=1e-5)
    # It is where the derivative of the likelihood by 1/T is 0: the mean logit of the labels is the
    # mean expected one.
    probabilities = special.softmax(logits / found, axis=1)
    chosen = logits[np.arange(len(logits)), drawn].mean()
    assert (probabilities * logits).sum(axis=1).mean() == pytest.approx(chosen, abs=1e-4)
    for scores, labels in [(logits, drawn[:-1]), (logits[0], drawn), (logits, drawn + 5)]:
        with pytest.raises(ValueError, match="one class for each row"):
            fit_temperature(scores, labels)


def test_divided_logits_change_the_probabilities_alone(sample):
    images, _ = sample
    network = applications.MFResNet20(weights="cifar10")
    before = network.predict(images, verbose=0)
    divide_logits(network, 1.7)
    expected = special.softmax(np.log(before.astype("float64")) / 1.7, axis=1)
    np.testing.assert_allclose(network.predict(images, verbose=0), expected, atol=2e-5)
    folded = deploy.fold(network).predict(images, verbose=0)
    np.testing.assert_allclose(folded, expected, atol=2e-4)
    with pytest.raises(ValueError, match="temperature=0"):
        divide_logits(network, 0)
    with pytest.raises(ValueError, match="must be a Dense layer"):
        divide_logits(applications.MFResNet20(include_top=False), 2)
    with pytest.raises(ValueError, match="must be a Dense layer"):
        divide_logits(keras.Sequential([keras.layers.Dense(2, activation="relu")]), 2)


@pytest.mark.once_on_torch
def test_the_command_calibrates_on_the_first_images(cifar10_dir, capsys):
    base = ["evaluate", "MFResNet20", "--weights", "cifar10", "--data-dir", str(cifar10_dir)]
    base += ["--limit", "60"]
    assert cli.main([*base, "--calibrate", "30", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    images, labels = data.load("cifar10", "test[:60]", data_dir=cifar10_dir)
    network = applications.MFResNet20(weights="cifar10")
    first = evaluate(network, images[:30], labels[:30])
    temperature = fit_temperature(first.log_probabilities, labels[:30])
    plain = evaluate(network, images[30:], labels[30:])
    divide_logits(network, temperature)
    divided = evaluate(network, images[30:], labels[30:])
    assert found["images"] == len(images) - 30
    assert found["temperature"] == pytest.approx(temperature, rel=1e-4)
    assert found["nll"] == pytest.approx(plain.nll, rel=1e-4)
    assert found["calibrated_nll"] == pytest.approx(divided.nll, rel=1e-4)
    assert found["calibrated_ece"] == pytest.approx(divided.ece, abs=0.05)
    assert found["error"] == pytest.approx(plain.error) == pytest.approx(divided.error)
    assert cli.main([*base, "--calibrate", "30"]) == 0
    printed = capsys.readouterr().out
    assert f"temperature {temperature:.4f}" in printed
    for count in ("0", "60"):
        assert cli.main([*base, "--calibrate", count]) == 2
        assert f"Received: {count}" in capsys.readouterr().err


@pytest.mark.once
def test_images_are_corrupted_as_the_authors_say(sample, tmp_path):
    images, labels = sample
    x = images / 255

    def made(corruption, severity=5, of=images):
        return robustness.corrupt(of, corruption, severity).astype("float64")

    grey = np.full((400, 32, 32, 3), 128, "uint8")
    noise = made("gaussian_noise", of=grey) / 255
    assert noise.std() == pytest.approx(0.1, rel=0.02)
    assert noise.mean() == pytest.approx(128 / 255, abs=0.004)  # rounded down
    photons = made("shot_noise", of=grey) / 255 * 50
    assert photons.var() == pytest.approx(50 * 128 / 255, rel=0.02)
    salted = made("impulse_noise", of=grey)
    for value in (0, 255):
        assert np.mean(salted == value) == pytest.approx(0.035, rel=0.03)
    np.testing.assert_allclose(made("contrast"), flat(images, 5), atol=1)
    brighter = made("brightness")
    for place in [(0, 3, 4), (5, 20, 9), (7, 31, 31)]:
        hue, saturation, value = colorsys.rgb_to_hsv(*x[place])
        rgb = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.3, 1))
        np.testing.assert_allclose(brighter[place], np.array(rgb) * 255, atol=1)
    assert np.all(made("brightness", of=images[:1] * 0) == int(0.3 * 255))  # black becomes grey
    # A zoom keeps what is the same everywhere, and a point in the middle grows.
    np.testing.assert_array_equal(made("zoom_blur", of=grey), grey)
    point = np.zeros((1, 32, 32, 3), "uint8")
    point[:, 15:17, 15:17] = 255
    blurred = made("zoom_blur", of=point)[0, :, :, 0]
    assert np.count_nonzero(blurred) > 4 and blurred.max() > 200
    assert len(np.unique(made("pixelate")[0].reshape(-1, 3), axis=0)) <= 20 * 20
    differences = [np.abs(made("jpeg_compression", k) - images).mean() for k in (1, 5)]
    assert 0 < differences[0] < differences[1] < 10

    robustness.write(tmp_path, "CIFAR-10", images[:3], labels[:3])
    loaded, classes = load_corrupted("cifar10", "jpeg_compression", 4, tmp_path)
    np.testing.assert_array_equal(loaded, made("jpeg_compression", 4, images[:3]))
    np.testing.assert_array_equal(classes, labels[:3])


@pytest.mark.once
def test_the_tables_of_the_benchmark():
    row = {"corruption": "fog", "dataset": "cifar10", "network": "ResNet20", "mean": "10.004"}
    rows = [row, {**row, "corruption": "snow", "mean": "20"}]
    rows += [{**one, "network": "MFResNet20", "mean": float(one["mean"]) + 1} for one in rows]
    lines = robustness.table(rows).splitlines()
    assert lines[0] == "| corruption | `ResNet20`, cifar10 | `MFResNet20`, cifar10 |"
    assert lines[2:] == [
        "| fog | 10.00 | 11.00 |",
        "| snow | 20.00 | 21.00 |",
        "| **mean** | **15.00** | **16.00** |",
    ]
    # Right 3 times of 4 with the probability 9/10 each time: 3/4 with the temperature 2.
    logs = np.log(np.tile([[0.1, 0.9]], (8, 1)))
    found = robustness.calibrated("cifar10", "ResNet20", logs, np.array([1, 1, 1, 0] * 2))
    assert (found.temperature, found.error) == (pytest.approx(2, rel=1e-5), 25)
    assert found.ece == pytest.approx(15) and found.calibrated_ece == pytest.approx(0, abs=1e-3)
    assert found.nll == pytest.approx(-(3 * np.log(0.9) + np.log(0.1)) / 4)
    assert found.calibrated_nll == pytest.approx(-(3 * np.log(0.75) + np.log(0.25)) / 4)
    assert "| `ResNet20` | cifar10 | 2.000 |" in robustness.calibration_table([vars(found)])
