"""The command that draws the pictures of the theory: what it is given, writes and says."""

import builtins
import csv
import json
import os
import re
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
from conftest import ROOT

from mf_zoo import data, files
from mf_zoo.errors import UserError
from mf_zoo.layers import stages
from mf_zoo.theory.figures import __main__ as command
from mf_zoo.theory.figures import inputs as sources

pytestmark = pytest.mark.once_on_torch


@pytest.fixture
def picture(monkeypatch):
    """Puts a module with a function `draw` in the place of a picture's."""
    pytest.importorskip("matplotlib")

    def put(name, draw):
        about = f"About\n{name}.\n\nMore of it."
        module = types.ModuleType(f"mf_zoo.theory.figures.{name}", about)
        module.draw = draw
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return put


def _arrow(figure, inputs):
    figure.subplots().plot([0, 1], [0, len(inputs.images)])
    return [{"x": 0, "y": 0}, {"x": 1, "y": len(inputs.images)}]


def _rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_each_picture_is_written_with_its_numbers_and_what_it_was_made_from(
    picture, tmp_path, capsys
):
    picture("adjoint", _arrow)

    def dots(figure, inputs):
        figure.subplots().plot([1, 2], "o")
        return [{"seen": int(inputs.labels.sum())}]

    picture("minima", dots)
    out = tmp_path / "new" / "figures"
    assert command.main(["--output", str(out), "--only", "minima", "adjoint"]) == 0
    names = {f"{name}.{kind}" for name in ("adjoint", "minima") for kind in ("png", "csv")}
    assert {file.name for file in out.iterdir()} == {*names, "figures.json"}
    assert _rows(out / "adjoint.csv") == [{"x": "0", "y": "0"}, {"x": "1", "y": "200"}]
    assert _rows(out / "minima.csv") == [{"seen": str(20 * sum(range(10)))}]
    png = (out / "adjoint.png").read_bytes()
    assert png.startswith(b"\x89PNG") and b"Software" not in png

    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert [line.split()[0] for line in lines] == ["adjoint", "minima"]  # in the order of the list
    assert [line.split(" s  ")[1] for line in lines] == ["About adjoint", "About minima"]
    assert said.err == ""

    records = json.loads((out / "figures.json").read_text())
    assert list(records) == ["adjoint", "minima"]
    record = records["adjoint"]
    assert record["caption"] == "About adjoint" and record["seconds"] >= 0
    assert (record["images"], record["train_images"]) == (200, 200)
    assert record["networks"] == {
        "MFResNet20": "MFResNet20:cifar10",
        "ResNet20": "ResNet20:cifar10",
    }
    assert record["sha256"] == {
        label: files.sha256(ROOT / "weights" / f"{file}-cifar10.weights.h5")
        for label, file in (("MFResNet20", "mf_resnet20"), ("ResNet20", "resnet20"))
    }
    assert record["versions"]["numpy"] == np.__version__ and record["date"].startswith("2")

    # Another picture later: the record of the first stays, and so do its bytes, drawn again.
    assert command.main(["--output", str(out), "--only", "adjoint"]) == 0
    assert (out / "adjoint.png").read_bytes() == png
    assert list(json.loads((out / "figures.json").read_text())) == ["adjoint", "minima"]


def test_one_failure_leaves_the_others_their_pictures(picture, tmp_path, capsys):
    def broken(figure, inputs):
        raise ZeroDivisionError("by nothing")

    def refused(figure, inputs):
        raise UserError("No such thing.\nReceived: it")

    def uneven(figure, inputs):
        return [{"a": 1}, {"b": 2}]

    picture("adjoint", broken)
    picture("gradient_gap", refused)
    picture("minima", uneven)
    picture("lesions", lambda figure, inputs: [])
    picture("shuffles", _arrow)
    names = ["adjoint", "gradient_gap", "minima", "lesions", "shuffles"]
    (tmp_path / "adjoint.png").write_bytes(b"of an earlier time")
    assert command.main(["--output", str(tmp_path), "--only", *names]) == 1
    said = capsys.readouterr()
    assert [line.split()[0] for line in said.out.splitlines()] == ["shuffles"]
    assert "adjoint failed: by nothing" in said.err and "ZeroDivisionError" in said.err
    assert "gradient_gap failed: No such thing. Received: it" in said.err
    assert "UserError" not in said.err  # no traceback for what is the user's
    for name in ("minima", "lesions"):
        assert f"{name} failed: `draw` of {name} must return rows" in said.err
    assert {file.name for file in tmp_path.iterdir()} == {
        *("adjoint.png", "shuffles.png", "shuffles.csv", "figures.json")
    }
    assert (tmp_path / "adjoint.png").read_bytes() == b"of an earlier time"
    assert list(json.loads((tmp_path / "figures.json").read_text())) == ["shuffles"]


def test_each_picture_starts_from_the_same_seed(picture, tmp_path):
    def random(figure, inputs):
        return [{"number": float(np.random.rand())}]

    picture("adjoint", random)
    picture("minima", random)
    assert command.main(["--output", str(tmp_path), "--only", "adjoint", "minima"]) == 0
    assert _rows(tmp_path / "adjoint.csv") == _rows(tmp_path / "minima.csv")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--images", "10"], "`--images` must be 1 or more, of the images of a `--data-dir`"),
        (["--data-dir", "here", "--train-images", "0"], "Received: --train-images=0 and"),
        (["--network", "MFResNet20"], "must be LABEL=NETWORK:FILE.*Received: 'MFResNet20'"),
        (["--network", "a=ResNet20:cifar10", "--network", "a=ResNet20:x"], "a label of its own"),
        (["--network", "a=NoNet:cifar10"], "must be one of .*Received: 'NoNet'"),
        (["--network", "a=ResNet20:missing.weights.h5"], "must be one of .*missing.weights.h5"),
        (["--network", "a=ResNet20:cifar100"], "trained on cifar10. Received: .* on cifar100"),
        (["--data-dir", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_before_any_work(arguments, said, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert command.main(["--output", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("python -m mf_zoo.theory.figures: error: ") and error.count("\n") == 1
    assert re.search(said, error), error
    assert not (tmp_path / "out").exists()


def test_unknown_pictures_and_missing_arguments_are_bad_usage(tmp_path, capsys):
    for arguments in ([], ["--output", str(tmp_path), "--only", "nothing"]):
        with pytest.raises(SystemExit) as ended:
            command.main(arguments)
        assert ended.value.code == 2
    assert "choose from" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_an_error_of_the_user(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "file").touch()
    assert command.main(["--output", str(tmp_path / "file")]) == 2
    assert "Cannot write" in capsys.readouterr().err


def test_without_matplotlib_the_command_says_what_to_install(tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *arguments, **others):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(f"No module named {name!r}")
        return real(name, *arguments, **others)

    monkeypatch.setattr(builtins, "__import__", without)
    assert command.main(["--output", str(tmp_path / "out")]) == 2
    assert "pip install 'mf_zoo[plot]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_networks_are_loaded_on_demand_and_once(monkeypatch, tmp_path):
    inputs = sources.load()
    images, labels = data.sample("cifar10")
    for found in (inputs.images, inputs.train_images):
        np.testing.assert_array_equal(found, images)
    for found in (inputs.labels, inputs.train_labels):
        np.testing.assert_array_equal(found, labels)
    assert list(inputs.networks) == ["MFResNet20", "ResNet20"] and len(inputs.networks) == 2
    assert inputs.networks._loaded == {}
    model = inputs.networks["MFResNet20"]
    assert inputs.networks["MFResNet20"] is model and set(inputs.networks._loaded) == {"MFResNet20"}
    assert [stage.num_particles for stage in stages(model)] == [3, 2, 2]
    assert model.layers[-1].activation is keras.activations.softmax
    with pytest.raises(KeyError):
        inputs.networks["other"]

    # A file of weights under a label of one's own.
    path = tmp_path / "a=b.weights.h5"
    model.save_weights(path)
    inputs = sources.load(network=[f"mine=MFResNet20:{path}", f"MFResNet20:{path}"])
    assert list(inputs.networks) == ["mine", "MFResNet20"]
    for found, saved in zip(inputs.networks["mine"].weights, model.weights, strict=True):
        np.testing.assert_array_equal(found.numpy(), saved.numpy())


def test_a_data_folder_gives_its_first_images(cifar10_dir):
    inputs = sources.load(cifar10_dir, images=30, train_images=20)
    for split, images, labels, count in (
        ("test", inputs.images, inputs.labels, 30),
        ("train", inputs.train_images, inputs.train_labels, 20),
    ):
        expected = data.load("cifar10", f"{split}[:{count}]", data_dir=cifar10_dir)
        np.testing.assert_array_equal(images, expected[0])
        np.testing.assert_array_equal(labels, expected[1])
    assert (inputs.about["images"], inputs.about["train_images"]) == (30, 20)


def test_the_command_answers_for_help_without_a_backend():
    code = "import sys; from mf_zoo.theory.figures.__main__ import _parser; _parser(); "
    code += "assert not {'keras', 'numpy', 'matplotlib'} & set(sys.modules), 'imported'"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})
