"""What every network of the zoo can do, as Keras tests its own applications."""

import keras
import numpy as np
import pytest
from keras import ops

from mf_zoo import applications, data
from mf_zoo.layers import stages

BACKEND = keras.config.backend()
# Twins differ in `train_times` alone: both are built where that is fast.
NAMES = applications.list_models("*" if BACKEND == "tensorflow" else "MF*")
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
    "ResNeXt29_32x4d": 4_775_754,
    "ResNeXt29_8x64d": 34_426_698,
    "ResNeXt29_16x64d": 68_155_210,
}


def parameters(model):
    times = {id(stage.times) for stage in stages(model)}
    return sum(
        int(np.prod(weight.shape)) for weight in model.trainable_weights if id(weight) not in times
    )


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    """Each network as it is by default, one after the other."""
    keras.utils.set_random_seed(0)
    return applications.get(request.param)()


@pytest.fixture
def build(model):
    name = next(name for name in NAMES if name.lower() == model.name)
    return applications.get(name)


def test_parameters(model, build):
    name = build.__name__
    assert parameters(model) == PARAMETERS[name.removeprefix("MF")]
    trained = {stage.times.trainable for stage in stages(model)}
    assert trained == {name.startswith("MF")}
    assert model.output_shape == (None, 10) and model.input_shape == (None, 32, 32, 3)


@pytest.mark.once
def test_post_activation_variant():
    model = applications.ResNet164(preactivation=False)
    assert parameters(model) == 1_704_154  # the number that is often quoted for ResNet-164
    assert parameters(applications.MFResNet164(preactivation=False)) == 1_704_154
    assert all(stage.activation is keras.activations.relu for stage in stages(model))
    with pytest.raises(ValueError, match=r"preactivation=True.*Received: weights='cifar10'"):
        applications.ResNet164(preactivation=False, weights="cifar10")


def test_the_body_of_any_size_takes_the_same_weights(model, build):
    channels = applications.architecture(build.__name__).channels[-1]
    body = build(include_top=False, input_shape=(None, None, 3))
    assert body.output_shape == (None, None, None, channels)
    assert [weight.shape for weight in body.weights] == [
        weight.shape for weight in model.weights[:-2]
    ]
    for side, expected in ((16, 4), (33, 9), (224, 56)):
        shape = body.compute_output_shape((2, side, side, 3))
        assert shape == (2, expected, expected, channels)
    if model.name.startswith("mf"):  # twins share this code
        pooled = build(include_top=False, pooling="max", input_shape=(48, 64, 3))
        assert pooled.output_shape == (None, channels)
        assert pooled.count_params() == body.count_params()


# Twins share this code, and the files of large ResNeXts have hundreds of megabytes.
@pytest.mark.once
@pytest.mark.parametrize("name", [f"MF{n}" for n, count in PARAMETERS.items() if count < 5e6])
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
def test_scores(model):
    images = data.sample("cifar10")[0][:2].astype("float32")
    scores = ops.convert_to_numpy(model(images, training=False))
    assert scores.shape == (2, 10) and scores.dtype == np.float32
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)
    first, second = before = logits(model, images)
    np.testing.assert_array_equal(before.argmax(1), scores.argmax(1))
    assert np.abs(first - second).max() > 1e-3 * np.abs(before).max()  # the image matters


@pytest.mark.once
def test_configuration(model):
    again = type(model).from_config(model.get_config())
    assert again.get_config() == model.get_config()
    assert [w.shape for w in again.weights] == [w.shape for w in model.weights]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("name", ["MFResNet20", "MFPreActResNet110", "MFResNeXt29_32x4d"])
def test_mixed_precision(name, policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = applications.get(name)(include_top=False, input_shape=(16, 16, 3))
        head = applications.get(name)(classes=3)
    finally:
        keras.config.set_dtype_policy(before)
    assert {variable.dtype for variable in model.variables} <= {"float32"}
    assert model.output.dtype == policy.removeprefix("mixed_")
    assert head.output.dtype == "float32"
    for stage in stages(model):  # times and steps keep all their digits
        assert ops.dtype(stage.step_sizes()) == "float32"


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow's CPU convolves channels last only")
def test_channels_first(model, build):
    keras.config.set_image_data_format("channels_first")
    try:
        first = build()
        assert first.input_shape == (None, 3, 32, 32)
        assert [w.shape for w in first.weights] == [w.shape for w in model.weights]
        body = build(include_top=False)
        channels = applications.architecture(build.__name__).channels[-1]
        assert body.output_shape == (None, channels, 8, 8)
    finally:
        keras.config.set_image_data_format("channels_last")
