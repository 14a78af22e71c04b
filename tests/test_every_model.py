"""What every network of the zoo can do, as Keras tests its own applications.

What depends on the kind of block alone is tested on small networks, on each backend; what others
count, on all mean-field networks, once. test_convert.py runs their plain twins.
"""

import keras
import numpy as np
import pytest
from keras import ops
from networks import KINDS, SMALL, small, zoo

from mf_zoo import applications, chains, data
from mf_zoo.layers import stages

# Trainable parameters for 10 classes without times. ResNets of basic blocks: He et al.'s networks
# with projection shortcuts; ResNet-164, ResNeXt: as PyTorch implementations count them (the papers
# round, to 1.7 M, 34.4 M and 68.1 M).
PARAMETERS = {
    "ResNet20": 272_474,
    "ResNet32": 466_906,
    "ResNet44": 661_338,
    "ResNet56": 855_770,
    "ResNet110": 1_730_714,
    "PreActResNet110": 1_730_522,
    "ResNet164": 1_703_258,
    "PostActResNet164": 1_704_154,  # the number that is often quoted for ResNet-164
    "ResNeXt29_32x4d": 4_775_754,
    "ResNeXt29_8x64d": 34_426_698,
    "ResNeXt29_16x64d": 68_155_210,
}


def parameters(model):
    times = {id(stage.times) for stage in stages(model)}
    return sum(
        int(np.prod(weight.shape)) for weight in model.trainable_weights if id(weight) not in times
    )


@pytest.fixture(scope="module", params=zoo("MF*"))
def network(request):
    """The name of a network, and the network as it is by default, one after the other."""
    keras.utils.set_random_seed(0)
    return request.param, applications.get(request.param)()


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    """A kind of block, and a small network of it."""
    return request.param, small(request.param)


@pytest.mark.once
def test_parameters(network):
    name, model = network
    assert model.name == name.lower()
    architecture = applications.architecture(name)
    assert parameters(model) == architecture.weights().trained - sum(architecture.particles)
    assert model.count_params() == architecture.parameters()
    assert applications.multiply_adds(model) == architecture.multiply_adds()
    if architecture.name in PARAMETERS:
        assert parameters(model) == PARAMETERS[architecture.name]
    assert all(stage.times.trainable for stage in stages(model))
    particles = tuple(stage.num_particles for stage in stages(model))
    assert particles == architecture.particles
    assert model.output_shape == (None, 10) and model.input_shape == (None, 32, 32, 3)


@pytest.mark.once
def test_every_published_count_is_compared():
    assert {f"MF{name}" for name in PARAMETERS} <= set(applications.list_models())


@pytest.mark.once
def test_activation_after_each_step(kind):
    name, model = kind
    expected = "linear" if SMALL[name].preactivation else "relu"
    assert {stage.activation.__name__ for stage in stages(model)} == {expected}


@pytest.mark.once
def test_the_two_resnets_of_164_layers():
    assert applications.architecture("PostActResNet164").block is chains.BOTTLENECK
    assert applications.architecture("ResNet164").block is chains.PREACT_BOTTLENECK
    with pytest.raises(TypeError, match="preactivation"):
        applications.ResNet164(preactivation=False)


@pytest.mark.once_on_torch
def test_counts_of_other_images_and_tops(kind):
    """Those of the architecture, which needs no Keras, are those of the network."""
    name, _ = kind
    architecture = SMALL[name]
    for shape, classes in (((24, 40, 3), 7), ((33, 17, 1), 100), ((16, 16, 5), None)):
        normalization = ((1.0,) * shape[-1], (2.0,) * shape[-1])
        top = {"include_top": False} if classes is None else {"classes": classes}
        model = small(name, input_shape=shape, normalization=normalization, **top)
        counted = architecture.weights(classes, image_channels=shape[-1])
        trained = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
        assert counted == (trained, model.count_params() - trained)
        assert architecture.parameters(classes, image_channels=shape[-1]) == sum(counted)
        assert architecture.multiply_adds(shape, classes) == applications.multiply_adds(model)
        outputs = [stage.output.shape[1:] for stage in stages(model)]
        assert architecture.stage_shapes(shape) == outputs


def test_the_body_of_any_size_takes_the_same_weights(kind):
    name, model = kind
    channels = SMALL[name].channels[-1]
    body = small(name, include_top=False, input_shape=(None, None, 3))
    assert body.output_shape == (None, None, None, channels)
    assert [weight.shape for weight in body.weights] == [
        weight.shape for weight in model.weights[:-2]
    ]
    for side, expected in ((16, 4), (33, 9), (224, 56)):
        shape = body.compute_output_shape((2, side, side, 3))
        assert shape == (2, expected, expected, channels)


# One of each kind: twins and depths share this code.
@pytest.mark.once
@pytest.mark.parametrize(
    "name", ["MFResNet20", "MFPreActResNet110", "MFResNet164", "MFResNeXt29_32x4d"]
)
def test_weight_files_load_into_another_size(name, tmp_path):
    build = applications.get(name)
    model = build()
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    inputs = keras.Input((16, 16, 3))
    darker = build(weights=path, input_tensor=keras.layers.Rescaling(0.5)(inputs))
    for ours, theirs in zip(darker.weights, model.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    # An input tensor is where the network starts: as images half as bright.
    small = build(weights=path, input_shape=(16, 16, 3))
    image = data.sample("cifar10")[0][:1, :16, :16].astype("float32")
    expected = logits(small, image / 2)
    np.testing.assert_allclose(
        logits(darker, image), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()
    )


def logits(model, images):
    """Scores before the softmax, which random weights in deep networks saturate."""
    inner = keras.Model(model.inputs[0], model.get_layer("predictions").output)
    return ops.convert_to_numpy(inner(images, training=False))


@pytest.mark.once
def test_scores(network):
    _, model = network
    images = data.sample("cifar10")[0][:2].astype("float32")
    scores = ops.convert_to_numpy(model(images, training=False))
    assert scores.shape == (2, 10) and scores.dtype == np.float32
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)
    first, second = before = logits(model, images)
    np.testing.assert_array_equal(before.argmax(1), scores.argmax(1))
    assert np.abs(first - second).max() > 1e-3 * np.abs(before).max()  # the image matters


@pytest.mark.once
def test_configuration(kind):
    _, model = kind
    again = type(model).from_config(model.get_config())
    assert again.get_config() == model.get_config()
    assert [w.shape for w in again.weights] == [w.shape for w in model.weights]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("name", ["basic", "pre-activation", "ResNeXt"])
def test_mixed_precision(name, policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = small(name, include_top=False, input_shape=(16, 16, 3))
        head = small(name, classes=3, classifier_activation="softmax")
    finally:
        keras.config.set_dtype_policy(before)
    assert {variable.dtype for variable in model.variables} <= {"float32"}
    assert model.output.dtype == policy.removeprefix("mixed_")
    assert head.output.dtype == "float32"
    for stage in stages(model):  # times and steps keep all their digits
        assert ops.dtype(stage.step_sizes()) == "float32"


@pytest.mark.skipif(
    keras.config.backend() == "tensorflow", reason="TensorFlow's CPU convolves channels last only"
)
def test_channels_first(kind):
    name, model = kind
    keras.config.set_image_data_format("channels_first")
    try:
        first = small(name)
    finally:
        keras.config.set_image_data_format("channels_last")
    assert [w.shape for w in first.weights] == [w.shape for w in model.weights]
    assert first.get_layer("avg_pool").input.shape == (None, SMALL[name].channels[-1], 8, 8)
