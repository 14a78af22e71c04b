"""Small networks of every kind of block, random weights, and comparing outputs."""

import dataclasses

import keras
import numpy as np
import pytest

from mf_zoo import applications
from mf_zoo.applications.architectures import Stem
from mf_zoo.applications.assembly import assemble
from mf_zoo.applications.families import preact_resnet, resnet, resnext
from mf_zoo.layers import stages

# Architectures of 2 or 3 blocks a stage, the entry block included.
SMALL = {
    "basic": resnet.resnet(14),
    "identity shortcuts": dataclasses.replace(resnet.resnet(14), shortcut="identity"),
    "pre-activation": preact_resnet.preact_resnet(14),
    "bottleneck": resnet.bottleneck_resnet(20),
    "pre-activation bottleneck": preact_resnet.bottleneck_resnet(20),
    "ResNeXt": dataclasses.replace(resnext.resnext29(4, 4), filters=(16, 32, 64), stem=Stem(16)),
}
# The kinds as parameters of tests. What is built of layers of Keras alone is tested on one backend.
KINDS = [
    pytest.param(kind, marks=pytest.mark.once_on_torch) if "identity" in kind else kind
    for kind in SMALL
]


def zoo(pattern="*"):
    """The names of this package's own networks, without those that tests register."""
    return [
        name
        for name in applications.list_models(pattern)
        if applications.get(name).__module__ == "mf_zoo.applications"
    ]


def small(kind, **arguments):
    """A network of a few blocks with learned times and logits."""
    shape = (3, 32, 32) if _channels_first() else (32, 32, 3)
    arguments = {"input_shape": shape, "train_times": True, "name": "small", **arguments}
    return assemble(SMALL[kind], **arguments)


def randomized(model, seed=0):
    """The model with random weights, times and statistics."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if variable.dtype.startswith("float"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape) * rng.choice([-1, 1]) * 0.3)
        if "variance" in variable.path:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    for stage in stages(model):
        stage.times.assign(rng.uniform(0, stage.horizon, stage.num_particles))
    return model


def outputs(model, images):
    """What a model computes in inference, without compilation."""
    if _channels_first():
        images = images.transpose(0, 3, 1, 2)
    return keras.ops.convert_to_numpy(model(images.astype("float32"), training=False))


def close(received, expected, tolerance=1e-4):
    """Asserts that two arrays differ by at most `tolerance` of the largest value."""
    assert received.shape == expected.shape
    assert np.abs(received - expected).max() <= tolerance * np.abs(expected).max()


def _channels_first():
    return keras.config.image_data_format() == "channels_first"
