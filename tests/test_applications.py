import dataclasses
import inspect
import pickle

import keras
import numpy as np
import pytest
from keras import ops
from networks import outputs, zoo

from mf_zoo import applications, data, weights
from mf_zoo.layers import MeanFieldStage


def stages(model):
    return [layer for layer in model.layers if isinstance(layer, MeanFieldStage)]


def images(count=4):
    return data.sample("cifar10")[0][:count]


def test_it_has_as_many_weighted_layers_as_its_name_says():
    model = applications.ResNet20()
    convolutions = sum(stage.num_particles * 2 for stage in stages(model))
    heads = 2 * 2  # two blocks that change the shape; their projections do not count
    assert convolutions + heads + 1 + 1 == 20


def test_the_twins_agree_at_the_start():
    keras.utils.set_random_seed(3)
    mean_field = applications.MFResNet20()
    keras.utils.set_random_seed(3)
    plain = applications.ResNet20()
    np.testing.assert_array_equal(outputs(mean_field, images()), outputs(plain, images()))
    for stage in stages(mean_field):
        np.testing.assert_allclose(ops.convert_to_numpy(stage.step_sizes()), 1.0)


def test_images_are_normalised_inside():
    model = applications.ResNet20()
    pixels = images()
    np.testing.assert_allclose(
        ops.convert_to_numpy(model(pixels, training=False)), outputs(model, pixels)
    )
    normalization = model.get_layer("normalization")
    got = ops.convert_to_numpy(normalization(pixels.astype("float32")))
    mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2470, 0.2435, 0.2616])
    np.testing.assert_allclose(got, (pixels / 255 - mean) / std, rtol=1e-2, atol=2e-3)


def constants(model):
    layer = model.get_layer("normalization")
    mean, variance = (ops.convert_to_numpy(value).ravel() for value in (layer.mean, layer.variance))
    return [round(float(value), 2) for value in (*mean, *np.sqrt(variance))]


CIFAR10 = [125.31, 122.95, 113.86, 62.99, 62.09, 66.71]


@pytest.mark.once_on_torch
def test_images_are_normalised_by_their_own_dataset():
    model = applications.ResNet20(dataset="cifar100")
    assert model.output_shape == (None, 100)
    # Those of CIFAR-100's training images, as everybody quotes them for 0..1.
    np.testing.assert_allclose(
        np.array(constants(model)) / 255,
        [0.5071, 0.4865, 0.4409, 0.2673, 0.2564, 0.2762],
        atol=2e-4,
    )
    assert constants(applications.MFResNet20()) == CIFAR10
    assert applications.ResNet20(dataset="cifar100", classes=3).output_shape == (None, 3)
    # What is said wins.
    said = applications.ResNet20(dataset="cifar100", normalization=((1, 2, 3), (4, 5, 6)))
    assert constants(said) == [1, 2, 3, 4, 5, 6]


@pytest.mark.once_on_torch
def test_registered_weights_keep_the_constants_that_they_were_trained_with(monkeypatch):
    for arguments in ({}, {"dataset": "cifar100"}):
        model = applications.MFResNet20(weights="cifar100", **arguments)
        assert model.output_shape == (None, 100) and constants(model) == CIFAR10
    record = weights.get("MFResNet20", "cifar100")
    newer = dataclasses.replace(record, mean=(10, 20, 30), std=(1, 2, 3))
    monkeypatch.setattr(weights, "get", lambda *arguments: newer)
    assert constants(applications.MFResNet20(weights="cifar100")) == [10, 20, 30, 1, 2, 3]


@pytest.mark.once_on_torch
def test_images_of_other_channels():
    gray = applications.MFResNet20(input_shape=(28, 28, 1), normalization=((72.9,), (90.0,)))
    assert gray.input_shape == (None, 28, 28, 1) and constants(gray) == [72.9, 90]
    assert outputs(gray, np.full((2, 28, 28, 1), 7)).shape == (2, 10)
    assert gray.count_params() == applications.architecture("ResNet20").parameters(image_channels=1)
    named = applications.ResNet20(dataset="fashion_mnist")
    assert named.input_shape == (None, 28, 28, 1) and constants(named) == pytest.approx(
        [72.93, 90.015], abs=0.01
    )
    # Without a shape: as many channels as numbers.
    five = applications.ResNet20(normalization=(range(5), range(1, 6)), include_top=False)
    assert five.input_shape == (None, 32, 32, 5)


def test_scores_are_probabilities_or_logits():
    keras.utils.set_random_seed(0)
    softmax = applications.ResNet20()
    keras.utils.set_random_seed(0)
    logits = outputs(applications.ResNet20(classifier_activation=None), images())
    expected = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = outputs(softmax, images())
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(probabilities, expected / expected.sum(1, keepdims=True), rtol=1e-4)


def test_without_the_top():
    features = applications.MFResNet20(include_top=False)
    assert features.output_shape == (None, 8, 8, 64)
    maps = outputs(features, images())
    for pooling, reduce in (("avg", np.mean), ("max", np.max)):
        pooled = applications.MFResNet20(include_top=False, pooling=pooling)
        pooled.set_weights(features.get_weights())
        np.testing.assert_allclose(
            outputs(pooled, images()), reduce(maps, (1, 2)), rtol=1e-4, atol=1e-4
        )


def test_other_shapes_and_input_tensors():
    assert applications.ResNet20(input_shape=(48, 64, 3)).output_shape == (None, 10)
    anything = applications.ResNet20(input_shape=(None, None, 3))
    assert outputs(anything, np.zeros((1, 40, 24, 3))).shape == (1, 10)
    inputs = keras.Input((32, 32, 3))
    darker = applications.ResNet20(input_tensor=keras.layers.Rescaling(0.5)(inputs))
    direct = applications.ResNet20()
    direct.set_weights(darker.get_weights())
    np.testing.assert_allclose(
        outputs(darker, images()),
        outputs(direct, images() * 0.5),
        rtol=1e-4,
        atol=1e-6,
    )


def test_mean_field_arguments_reach_the_stages():
    model = applications.MFResNet20(
        quadrature="midpoint",
        horizon=1.0,
        initial_times="random",
        reorder=False,
        integrator="heun",
    )
    assert not any(stage.remat for stage in stages(model))
    for name in ("MFPreActResNet110", "ResNet20"):
        for remat in (True, 4, "sqrt"):
            assert {stage.remat for stage in stages(applications.get(name)(remat=remat))} == {remat}
    for stage in stages(model):
        assert stage.horizon == 1.0 and stage.times.trainable and not stage.reorder
        assert stage.get_config()["integrator"] == "heun"
        assert float(ops.convert_to_numpy(ops.sum(stage.step_sizes()))) == pytest.approx(1.0)
        grid = (np.arange(stage.num_particles) + 0.5) / stage.num_particles
        assert not np.allclose(ops.convert_to_numpy(stage.times.value), grid)
    assert not any(stage.times.trainable for stage in stages(applications.ResNet20()))


def test_save_and_load(tmp_path):
    model = applications.MFResNet20(classes=3)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(outputs(loaded, images()), outputs(model, images()))
    model.save_weights(tmp_path / "model.weights.h5")
    again = applications.MFResNet20(classes=3, weights=tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(outputs(again, images()), outputs(model, images()))
    with pytest.raises(Exception, match=r"model\.weights\.h5"):
        applications.MFPreActResNet110(classes=3, weights=str(tmp_path / "model.weights.h5"))


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="TensorFlow's CPU convolves channels last only"
)
def test_channels_first_gives_the_same():
    last = applications.MFResNet20()
    keras.config.set_image_data_format("channels_first")
    try:
        first = applications.MFResNet20()
        assert first.input_shape == (None, 3, 32, 32)
        first.set_weights(last.get_weights())
        got = outputs(first, images())
    finally:
        keras.config.set_image_data_format("channels_last")
    np.testing.assert_allclose(got, outputs(last, images()), rtol=1e-3, atol=1e-5)


def test_under_mixed_precision_scores_are_float32_and_close():
    model = applications.MFResNet20()
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = applications.MFResNet20()
    finally:
        keras.config.set_dtype_policy(before)
    mixed.set_weights(model.get_weights())
    got = outputs(mixed, images())
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, outputs(model, images()), atol=0.05)


def test_signature_is_that_of_keras_applications():
    theirs = list(inspect.signature(keras.applications.ResNet50).parameters)
    for name in zoo():
        ours = list(inspect.signature(applications.get(name)).parameters)
        assert ours[: len(theirs)] == theirs
        assert f"applications.{name}()" in applications.get(name).__doc__
        assert ("quadrature" in ours) is applications.network(name).mean_field


@pytest.mark.once_on_torch
def test_builders_are_known_by_name():
    for name in zoo():
        builder = getattr(applications, name)
        assert builder is applications.get(name) is applications.network(name).builder
        assert builder.__name__ == name and pickle.loads(pickle.dumps(builder)) is builder
    with pytest.raises(TypeError, match="quadrature"):
        applications.ResNet20(quadrature="midpoint")
    with pytest.raises(AttributeError, match="no attribute 'ResNet21'"):
        applications.ResNet21  # noqa: B018
    namespace = {}
    exec("from mf_zoo.applications import *", namespace)
    assert set(zoo()) | {"list_models", "multiply_adds", "Architecture"} <= set(namespace)
    assert dir(applications) == applications.__all__ == sorted(applications.__all__)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: applications.get("ResNet21"), "MFResNet20.*Received: 'ResNet21'"),
        (lambda: applications.ResNet20(pooling="mean"), "Received: pooling='mean'"),
        (lambda: applications.ResNet20(classes=0), "positive integer. Received: classes=0"),
        (
            lambda: applications.ResNet20(input_shape=(32, 32, 4)),
            r"\(rows, cols, 3\).*Received: input_shape=\(32, 32, 4\)",
        ),
        (
            lambda: applications.ResNet20(normalization=((1.0,), (0.0,))),
            r"deviations above 0. Received: normalization=\(\(1.0,\), \(0.0,\)\)",
        ),
        (
            lambda: applications.ResNet20(normalization=((1.0, 2.0), (1.0,))),
            "as many numbers each",
        ),
        (
            lambda: applications.ResNet20(dataset="cifar10", normalization=((1.0,), (1.0,))),
            r"images of 'cifar10' have 3 channels.*Received: mean=\(1.0,\)",
        ),
        (lambda: applications.ResNet20(dataset="cifar11"), "cifar11"),
        (
            lambda: applications.MFResNet56(weights="cifar10"),
            "for it. Weights of that name are registered for MFResNet20 and ResNet20. Train some "
            "with `mf-zoo train MFResNet56 --dataset cifar10 .*Received: 'cifar10'",
        ),
        (lambda: applications.ResNet20(weights="imagenet"), "Received: 'imagenet'"),
        (lambda: applications.ResNet20(weights="no/such.weights.h5"), "no/such.weights.h5"),
    ],
)
def test_wrong_arguments_name_the_right_ones(call, message):
    with pytest.raises((ValueError, OSError, RuntimeError), match=message):
        call()
