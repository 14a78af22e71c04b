"""Exported files compute what the model does, each in its own runtime, without mf_zoo."""

import importlib.util
import inspect
import subprocess
import sys
import textwrap
import types

import keras
import numpy as np
import pytest
from networks import close, outputs, randomized, small

from mf_zoo import applications, cli, data, deploy
from mf_zoo.deploy import writer
from mf_zoo.errors import UserError

pytestmark = pytest.mark.once

IMAGES = data.sample("cifar10")[0].astype("float32")
EXPORT = inspect.getmodule(deploy.export)


@pytest.fixture(scope="module")
def model():
    return applications.MFResNet20(weights="cifar10")


@pytest.fixture(scope="module")
def expected(model):
    return model.predict(IMAGES, verbose=0)


@pytest.fixture
def in_process(monkeypatch):
    """The writer does its work here: `test_the_file_computes_what_the_model_does` starts it."""

    def run(command, **_):
        writer.main(*command[command.index(writer.__file__) + 1 :])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(EXPORT, "subprocess", types.SimpleNamespace(run=run))


# Each returns what files compute of a batch of images, and of the first one alone.


def run_onnx(path, images):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return [session.run(None, {name: batch})[0] for batch in (images, images[:1])]


def run_litert(path, images):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(str(path))
    index = interpreter.get_input_details()[0]["index"]

    def run(batch):
        interpreter.resize_tensor_input(index, batch.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(index, batch)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

    return [run(batch) for batch in (images, images[:1])]


# In a process that has nothing of mf_zoo.
_ELSEWHERE = """
    import sys
    sys.modules["mf_zoo"] = None
    import numpy as np
    images = np.load("images.npy")
    for path in sys.argv[1:]:
        if path.endswith(".keras"):
            import keras
            run = keras.saving.load_model(path).predict_on_batch
        else:
            import tensorflow as tf
            loaded = tf.saved_model.load(path)
            run = lambda batch: loaded.serve(tf.constant(batch)).numpy()
        np.savez(path + ".npz", run(images), run(images[:1]))
"""


def run_elsewhere(paths, images):
    """What several files compute, which lie in one folder."""
    folder = paths[0].parent
    np.save(folder / "images.npy", images)
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_ELSEWHERE), *(path.name for path in paths)],
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (folder / "images.npy").unlink()
    found = []
    for path in paths:
        outputs = path.with_name(f"{path.name}.npz")
        with np.load(outputs) as arrays:
            found.append(list(arrays.values()))
        outputs.unlink()
    return found


RUNTIMES = {"onnx": run_onnx, "litert": run_litert}


# Each file is written by a process of its own; those that are read elsewhere, by one: the
# SavedModel before Keras is imported.
@pytest.mark.parametrize("formats", [("onnx",), ("litert",), ("saved_model", "keras")])
def test_the_file_computes_what_the_model_does(formats, model, expected, tmp_path):
    paths = [tmp_path / f"model{deploy.FORMATS[format].suffix}" for format in formats]
    checks = list(map(deploy.export, [model] * len(paths), paths, formats))
    found = (
        [RUNTIMES[formats[0]](paths[0], IMAGES)]
        if len(formats) == 1
        else run_elsewhere(paths, IMAGES)
    )
    for (received, first), check in zip(found, checks, strict=True):
        close(received, expected)
        close(first, expected[:1])
        np.testing.assert_array_equal(received.argmax(1), expected.argmax(1))
        # What it reports is the difference on every tenth image.
        difference = np.abs(received - expected)[::10].max()
        assert check.difference == pytest.approx(difference, abs=2e-6)
        assert check.relative_error < 1e-5 and check.agreement == 1
    assert set(tmp_path.iterdir()) == set(paths)


@pytest.mark.parametrize("format", ["onnx", "litert"])
def test_grouped_convolutions_and_another_size(format, tmp_path, in_process):
    network = randomized(small("ResNeXt", input_shape=(24, 40, 3), classifier_activation="softmax"))
    images = IMAGES[:4, :24].repeat(2, axis=2)[:, :, :40]
    path = tmp_path / f"model{deploy.FORMATS[format].suffix}"
    assert deploy.export(network, path, format).difference < 1e-4
    close(RUNTIMES[format](path, images)[0], network.predict(images, verbose=0))


def test_int8_in_litert(model, expected, tmp_path, in_process):
    path = tmp_path / "model.tflite"
    check = deploy.export(model, path, "litert", quantize="int8")
    received, first = run_litert(path, IMAGES)
    np.testing.assert_array_equal(first, received[:1])
    # What it says, worked out anew on the images of the sample.
    error = np.sqrt(((received - expected) ** 2).mean() / (expected**2).mean())
    agreement = (received.argmax(1) == expected.argmax(1)).mean()
    assert check.difference == pytest.approx(np.abs(received - expected).max(), rel=1e-3)
    assert check.relative_error == pytest.approx(error, rel=1e-3) and error < 0.05
    assert check.agreement == agreement >= 0.98
    # A byte for each of its 270,000 weights, and probabilities that have no steps of 1/256.
    assert 270_000 < path.stat().st_size < 330_000
    np.testing.assert_allclose(received.sum(1), 1, atol=1e-6)
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(str(path))
    kernels = [
        tensor["dtype"]
        for tensor in interpreter.get_tensor_details()
        if len(tensor["shape"]) == 4 and len(tensor["quantization_parameters"]["scales"]) > 1
    ]
    assert kernels == [np.int8] * 21  # one scale for each filter


def test_images_for_calibration_set_the_ranges(tmp_path, in_process):
    # Doubles its input. The largest values are in the last of three batches of calibration.
    twice = keras.layers.Conv2D(2, 1, use_bias=False)
    model = keras.Sequential([keras.Input((4, 4, 2)), twice])
    twice.set_weights([2 * np.eye(2)[None, None]])
    inputs = np.random.default_rng(0).uniform(-1, 1, (45, 4, 4, 2)).astype("float32")
    inputs[44, 0, 0] = -2, 6
    path = tmp_path / "model.tflite"
    check = deploy.export(model, path, "litert", quantize="int8", calibration=inputs)
    # Half a step of 8/255 of the input, doubled, and half a step of 16/255 of the output.
    assert 4 / 255 < check.difference <= 16 / 255
    received = run_litert(path, inputs[44:])[0]
    np.testing.assert_allclose(received[0, 0, 0], [-4, 12], atol=16 / 255)  # nothing is beyond


def test_int8_that_computes_something_else_is_not_kept(tmp_path, monkeypatch, in_process):
    monkeypatch.setattr(writer, "run", lambda format, path, images: np.zeros((200, 6, 6, 2)))
    network = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3)])
    with pytest.raises(UserError, match=r"was not kept.*relative error of 1\.$"):
        deploy.export(network, tmp_path / "model.tflite", "litert", quantize="int8")
    assert not list(tmp_path.iterdir())


def test_arguments_of_int8(model, tmp_path, monkeypatch):
    gray = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3)])
    inputs = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    two = keras.Model(inputs, keras.layers.Add()(inputs))
    images = np.zeros((2, 8, 8, 3))
    for network, format, arguments, message in [
        (model, "litert", {"quantize": "int4"}, r"one of \['int8'\]\. Received: quantize='int4'"),
        (model, "onnx", {"quantize": "int8"}, r"'litert'.*Received:.*format='onnx'"),
        (model, "litert", {"calibration": images}, "must come with `quantize`"),
        (gray, "litert", {"quantize": "int8"}, "`calibration` must be given"),
        (two, "litert", {"quantize": "int8", "calibration": images}, "Received: 2 inputs"),
        (
            gray,
            "litert",
            {"quantize": "int8", "calibration": images},
            r"shape \('n', 8, 8, 1\)\. Received: \(2, 8, 8, 3\)",
        ),
    ]:
        path = tmp_path / f"a{deploy.FORMATS[format].suffix}"
        with pytest.raises(ValueError, match=message):
            deploy.export(network, path, format, **arguments)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "ai_edge_quantizer" else find(name)
    )
    with pytest.raises(ImportError, match=r"Received: no ai_edge_quantizer$"):
        deploy.export(model, tmp_path / "a.tflite", "litert", quantize="int8")
    assert not list(tmp_path.iterdir())


def test_without_check(tmp_path):
    inputs = keras.Input((3,))
    two = keras.Model(inputs, [keras.layers.Dense(2)(inputs), keras.layers.Dense(3)(inputs)])
    assert deploy.export(two, tmp_path / "two.keras", "keras") is None
    row = np.ones((1, 3))
    got = keras.saving.load_model(tmp_path / "two.keras").predict_on_batch(row)
    for received, wanted in zip(got, two.predict_on_batch(row), strict=True):
        close(received, wanted)


def _partial_and_kill(source, format, path, *images):
    import os
    import pathlib
    import signal

    place = pathlib.Path(path)
    if format == "saved_model":
        place.mkdir()
        place = place / "saved_model.pb"
    place.write_bytes(b"half of a fil")
    os.kill(os.getpid(), signal.SIGKILL)


def _another_model(source, format, path, images, outputs):
    import pathlib

    import numpy

    pathlib.Path(path).write_bytes(b"a file")
    numpy.save(outputs, numpy.full((20, 10), 0.1))


def _no_room(source, format, path, *images):
    raise OSError(28, "No space left on device", path)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (_partial_and_kill, "'onnx' cannot be written: exit code -9"),
        (_another_model, r"model\.onnx does not compute what the model does.*differ by 0\.\d+"),
        (_no_room, r"'onnx' cannot be written: OSError: \[Errno 28\] No space left on device"),
    ],
)
def test_what_was_there_stays_if_the_new_file_fails(script, message, model, tmp_path, monkeypatch):
    broken = tmp_path / "script" / "writer.py"
    broken.parent.mkdir()
    source = inspect.getsource(script)
    broken.write_text(f"import sys\n{source}\n{script.__name__}(*sys.argv[1:])\n")
    monkeypatch.setattr(writer, "__file__", str(broken))
    path = tmp_path / "model.onnx"
    path.write_text("the old one")
    with pytest.raises(UserError, match=message):
        deploy.export(model, path, "onnx", overwrite=True)
    assert path.read_text() == "the old one"
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "script"}


def test_a_saved_model_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch, in_process):
    path = tmp_path / "model"
    tiny = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    deploy.export(tiny, path, "saved_model")
    before = {file.relative_to(path): file.read_bytes() for file in path.rglob("*.*")}
    with monkeypatch.context() as patch:
        patch.setattr(EXPORT, "subprocess", subprocess)
        patch.setattr(writer, "__file__", str(tmp_path / "no such script"))
        with pytest.raises(UserError, match="No such file or directory"):
            deploy.export(tiny, path, "saved_model", overwrite=True)
    assert before == {file.relative_to(path): file.read_bytes() for file in path.rglob("*.*")}
    larger = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    deploy.export(larger, path, "saved_model", overwrite=True)
    assert {file.name for file in tmp_path.iterdir()} == {"model"}
    image = np.ones((1, 3), "float32")
    close(writer.run("saved_model", str(path), image), outputs(larger, image))


def test_arguments(model, tmp_path, monkeypatch):
    (tmp_path / "there.onnx").write_text("")
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "folder").mkdir()
    for error, path, format, overwrite, message in [
        (ValueError, "a.onnx", "tflite", False, r"one of \['keras', .*Received: format='tflite'"),
        (
            ValueError,
            "a.tflite",
            "onnx",
            False,
            r"must end in '\.onnx'.*Received: path=.*a\.tflite",
        ),
        (
            FileNotFoundError,
            "no/a.onnx",
            "onnx",
            False,
            r"must exist\. Received: path=.*no/a\.onnx",
        ),
        (
            FileExistsError,
            "there.onnx",
            "onnx",
            False,
            r"must be new.*there\.onnx', overwrite=False",
        ),
        (FileExistsError, "folder.onnx", "onnx", True, "an existing file. Received: .*folder.onnx"),
        (FileExistsError, "folder", "saved_model", True, "an existing folder with a SavedModel"),
    ]:
        with pytest.raises(error, match=message):
            deploy.export(model, tmp_path / path, format, overwrite=overwrite)
    channels_first = keras.Sequential(
        [keras.Input((3, 8, 8)), keras.layers.Conv2D(2, 3, data_format="channels_first")]
    )
    with pytest.raises(ValueError, match=r"channels last.*Received: channels first in 'conv2d"):
        deploy.export(channels_first, tmp_path / "a.onnx", "onnx")
    find, absent = importlib.util.find_spec, ("tf2onnx", "onnx", "jax2onnx")
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name in absent else find(name)
    )
    message = (
        "tensorflow and tf2onnx, or torch and onnx, or jax and jax2onnx: "
        r"pip install 'mf_zoo\[export\]'.*Received: no tf2onnx, onnx, jax2onnx$"
    )
    with pytest.raises(ImportError, match=message):
        deploy.export(model, tmp_path / "a.onnx", "onnx")
    assert {file.name for file in tmp_path.iterdir()} == {"there.onnx", "folder.onnx", "folder"}


def test_the_command(tmp_path, capsys, monkeypatch, expected, in_process):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", "MFResNet20", "--format", "keras"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("mfresnet20-cifar10.keras: 1.")
    assert "run by keras on real images" in out
    close(outputs(keras.saving.load_model("mfresnet20-cifar10.keras"), IMAGES), expected)
    assert cli.main(["export", "MFResNet20", "--format", "keras"]) == 2
    assert "must be new" in capsys.readouterr().err
    command = "export MFResNet20 --format keras --output logits.keras --logits"
    assert cli.main(command.split()) == 0
    logits = outputs(keras.saving.load_model("logits.keras"), IMAGES)
    np.testing.assert_allclose(
        np.exp(logits) / np.exp(logits).sum(1, keepdims=True), expected, rtol=1e-3, atol=1e-5
    )
    assert cli.main(["export", "MFResNet20", "--format", "onnx", "--quantize", "int8"]) == 2
    assert "for the format 'litert'" in capsys.readouterr().err
    assert cli.main(["export", "MFResNet110", "--format", "keras"]) == 2
    assert "none are registered" in capsys.readouterr().err


def test_the_command_for_int8(tmp_path, capsys, monkeypatch):
    def export(model, path, format, **arguments):
        assert (format, arguments) == ("litert", {"quantize": "int8", "overwrite": False})
        path.write_bytes(bytes(313_000))
        return deploy.Check(difference=0.1, relative_error=0.0219, agreement=0.995)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(deploy, "export", export)
    assert cli.main(["export", "MFResNet20", "--format", "litert", "--quantize", "int8"]) == 0
    assert capsys.readouterr().out == (
        "mfresnet20-cifar10-int8.tflite: 0.3 MB; run by ai_edge_litert on real images, "
        "relative error 0.022, the same class in 99.5%\n"
    )
