"""Architectures of a user's own package."""

import dataclasses
import importlib
import json
import sys

import keras
import numpy as np
import pytest
from keras import ops
from networks import close

from mf_zoo import applications, chains, convert, data
from mf_zoo.applications import registry
from mf_zoo.cli import main
from mf_zoo.layers import BasicBlock, PreActBasicBlock, stages

PARAMETERS = 11_689_512  # of torchvision's resnet18
MULTIPLY_ADDS = 1_814_073_344  # those of its convolutions and its dense layer: 1.81 G


@pytest.fixture
def own(monkeypatch):
    """A module that registers a ResNet-18, which the registry forgets afterwards."""
    applications.list_models()
    monkeypatch.setattr(registry, "_NETWORKS", dict(registry._NETWORKS))
    monkeypatch.delitem(sys.modules, "own_resnet18", raising=False)
    yield importlib.import_module("own_resnet18")
    del sys.modules["own_resnet18"]


@pytest.mark.once_on_torch
def test_resnet18_of_a_users_package(own):
    architecture = applications.architecture("ResNet18")
    assert applications.get("MFResNet18") is own.MFResNet18 is applications.MFResNet18
    assert architecture.weights(1000, mean_field=False).trained == PARAMETERS
    assert architecture.multiply_adds(classes=1000) == MULTIPLY_ADDS
    assert architecture.particles == (2, 1, 1, 1)

    images = np.stack([np.tile(image, (7, 7, 1)) for image in data.sample("cifar10")[0][:2]])
    for build, mean_field in ((own.ResNet18, False), (own.MFResNet18, True)):
        model = build(classes=1000)
        assert model.input_shape == (None, 224, 224, 3)
        assert model.count_params() == architecture.parameters(1000)
        trained = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
        assert trained == PARAMETERS + 5 * mean_field
        assert applications.multiply_adds(model) == MULTIPLY_ADDS
        assert [stage.output.shape[1:] for stage in stages(model)] == (
            architecture.stage_shapes((224, 224, 3))
        )
        assert stages(model)[0].template().momentum == 0.95
        scores = ops.convert_to_numpy(model(images.astype("float32"), training=False))
        np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)
        assert scores.shape == (2, 1000)


@pytest.mark.once_on_torch
def test_resnet18_computes_what_pytorchs_does(own):
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("pytorchcv.models.resnet")
    torch.manual_seed(0)
    peer = models.resnet18(num_classes=7)
    x = np.random.default_rng(0).uniform(0, 1, (2, 64, 96, 3)).astype("float32")
    batch = torch.tensor(x.transpose(0, 3, 1, 2))
    with torch.no_grad():
        for part in peer.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.momentum = None
        peer.features.final_pool = torch.nn.AdaptiveAvgPool2d(1)  # for another size
        peer.train()(batch)
        expected = peer.eval()(batch).numpy()
    arrays = {
        name.replace("init_block.conv.", "init_block."): array
        for name, array in peer.state_dict().items()
    }
    model = own.ResNet18(input_shape=(64, 96, 3), classes=7, classifier_activation=None)
    convert.from_torch(arrays, model, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    close(ops.convert_to_numpy(model(255 * x, training=False)), expected)


@pytest.mark.once
def test_the_command_knows_registered_networks(own, capsys):
    assert main(["list", "*resnet18", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["mean_field"]) for row in found] == [
        ("MFResNet18", True),
        ("ResNet18", False),
    ]
    assert main(["info", "MFResNet18"]) == 0
    text = capsys.readouterr().out
    assert "for an image of 224 x 224 pixels" in text and "2 x BasicBlock, 56 x 56 x 64" in text
    assert main(["info", "ResNet18", "--input-size", "64", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["stages"][3]["shape"] == [2, 2, 512]


def _tiny(**changes):
    return applications.Architecture(
        **{
            "name": "Own",
            "title": "own network",
            "source": "nobody",
            "block": chains.BASIC,
            "filters": (4, 8),
            "blocks": (1, 2),
            "stem": applications.Stem(4),
            **changes,
        }
    )


@pytest.mark.once_on_torch
def test_a_residual_function_of_ones_own(own):
    """Layers without a chain are built all the same, and layers that have one are counted."""

    class Scaled(keras.layers.Layer):
        preactivation, expansion = False, 2

        def __init__(self, filters, strides=1, momentum=0.9, epsilon=1e-3, **kwargs):
            super().__init__(**kwargs)
            self.arguments = {"filters": filters, "strides": strides}
            self.convolution = keras.layers.Conv2D(2 * filters, 3, strides, padding="same")

        def build(self, shape):
            self.convolution.build(shape)

        def call(self, x):
            return self.convolution(x)

        def get_config(self):
            return {**super().get_config(), **self.arguments}

    build, _ = applications.register(_tiny(block=Scaled, blocks=(2, 2)))
    model = build(input_shape=(8, 8, 3))
    assert [stage.output.shape[1:] for stage in stages(model)] == [(8, 8, 8), (4, 4, 16)]
    assert applications.list_models()[-1] == "Own"  # nobody knows how large it is
    with pytest.raises(ValueError, match=r"has one as its `kind`.*Received: block=Scaled"):
        build.architecture.parameters()
    for block in (BasicBlock, PreActBasicBlock):
        same = _tiny(block=block)
        assert same.multiply_adds() == dataclasses.replace(same, block=block.kind).multiply_adds()
        assert same.preactivation is (block is PreActBasicBlock)


@pytest.mark.once
def test_names_are_taken_once(own):
    again = applications.register(applications.architecture("ResNet18"))
    assert again[1].architecture == own.ResNet18.architecture
    assert applications.get("ResNet18") is again[1]
    other = dataclasses.replace(applications.architecture("ResNet18"), title="another")
    with pytest.raises(ValueError, match=r"MFResNet18 is ResNet-18 already\. Received: .*another"):
        applications.register(other)
    assert applications.architecture("ResNet18").title == "ResNet-18"


@pytest.mark.once
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "ResNet-18"}, "Python name. Received: name='ResNet-18'"),
        ({"blocks": (2,)}, r"a number for each stage. Received: filters=\(4, 8\), blocks=\(2,\)"),
        ({"blocks": (1, 1)}, r"keeps the shape.*Received: blocks=\(1, 1\), of which \(1, 0\)"),
        ({"filters": ()}, r"`filters` must be positive integers.*Received: filters=\(\)"),
        ({"blocks": (2, 0)}, r"`blocks` must be positive integers"),
    ],
)
def test_what_is_no_architecture(changes, message):
    with pytest.raises(ValueError, match=message):
        _tiny(**changes)
