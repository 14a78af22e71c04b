"""Small networks of every kind of block, random weights, and comparing outputs."""

import keras
import numpy as np

from mf_zoo.applications import network
from mf_zoo.layers import stages

# Architectures of 2 or 3 blocks a stage, the first at its head.
SMALL = {
    "basic": network.resnet(14),
    "pre-activation": network.preact_resnet(14),
    "bottleneck": network.bottleneck_resnet(20, preactivation=False),
    "pre-activation bottleneck": network.bottleneck_resnet(20, preactivation=True),
    "ResNeXt": network.Architecture(
        **{**vars(network.resnext29(4, 4)), "filters": (16, 32, 64), "stem_filters": 16}
    ),
}


def small(kind, **arguments):
    """A network of a few blocks with learned times and logits."""
    shape = (3, 32, 32) if _channels_first() else (32, 32, 3)
    arguments = {"input_shape": shape, "train_times": True, "name": "small", **arguments}
    return network.network(SMALL[kind], **arguments)


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
