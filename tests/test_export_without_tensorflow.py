"""ONNX files are written by PyTorch and by JAX where no TensorFlow can be imported."""

import importlib.util
import inspect
import subprocess
import types

import pytest
from networks import SMALL, close, randomized, small

from mf_zoo import applications, data, deploy
from mf_zoo.deploy import writer

pytestmark = pytest.mark.once_on_torch

IMAGES = data.sample("cifar10")[0].astype("float32")

# Read by every Python process at its start: such packages cannot be found.
_HIDE = """
from importlib.machinery import PathFinder

find = PathFinder.find_spec


def find_others(cls, name, *rest):
    return None if name.partition(".")[0] in {absent!r} else find(name, *rest)


PathFinder.find_spec = classmethod(find_others)
"""


@pytest.fixture
def hide(tmp_path, monkeypatch):
    """Hides packages from `export` here and from the process that it starts."""

    def hide(*absent):
        folder = tmp_path / "hidden"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(_HIDE.format(absent=absent))
        monkeypatch.setenv("PYTHONPATH", str(folder))
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name in absent else find(name)
        )

    return hide


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_onnx(backend, tmp_path, hide):
    onnxruntime = pytest.importorskip("onnxruntime")
    if backend == "jax":
        pytest.importorskip("jax2onnx", reason="JAX writes ONNX with jax2onnx")
        hide("tensorflow", "tf2onnx", "torch")
    else:
        pytest.importorskip("onnx")
        hide("tensorflow", "tf2onnx", "jax")
    model = applications.MFResNet20(weights="cifar10")
    check = deploy.export(model, tmp_path / "model.onnx", "onnx")
    assert check.difference < 1e-4 and check.agreement == 1
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (inputs,) = session.get_inputs()
    for images in (IMAGES, IMAGES[:1]):  # a batch of any size
        (received,) = session.run(None, {inputs.name: images})
        close(received, model.predict(images, verbose=0))


def test_grouped_convolutions_stay_whole(tmp_path, hide, monkeypatch):
    onnx = pytest.importorskip("onnx")
    hide("tensorflow", "tf2onnx", "jax")

    def run(command, **_):  # here, where PyTorch is the backend
        writer.main(*command[command.index(writer.__file__) + 1 :])
        return subprocess.CompletedProcess(command, 0)

    export = inspect.getmodule(deploy.export)
    monkeypatch.setattr(export, "subprocess", types.SimpleNamespace(run=run))
    network = randomized(small("ResNeXt", input_shape=(24, 40, 3)))
    path = tmp_path / "model.onnx"
    assert deploy.export(network, path, "onnx") is not None
    nodes = [node for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    groups = [part.i for node in nodes for part in node.attribute if part.name == "group"]
    assert groups.count(4) == sum(SMALL["ResNeXt"].blocks)
