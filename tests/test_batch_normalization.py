"""BatchNormalization against Keras's own and against its definition in NumPy."""

import keras
import numpy as np
import pytest
from autodiff import value_and_gradients
from keras import layers, ops

from mf_zoo.layers import BatchNormalization

BACKEND = keras.config.backend()
FUSED = pytest.mark.skipif(BACKEND == "jax", reason="JAX has no such kernel")
SHAPE = (6, 5, 4)


def images(batch=8, shape=SHAPE):
    return (np.random.default_rng(0).normal(size=(batch, *shape)) * 2 + 1).astype("float32")


def randomize(layer):
    rng = np.random.default_rng(1)
    for weight in layer.weights:
        value = rng.normal(size=weight.shape) * 0.3
        positive = weight.path.endswith(("gamma", "variance"))
        weight.assign(0.5 + np.abs(value) if positive else value)


def squares(outputs):
    outputs = ops.cast(outputs, "float32")
    weights = np.random.default_rng(7).normal(size=tuple(outputs.shape[1:]))
    weights = ops.convert_to_tensor(weights, "float32")
    return ops.mean(ops.square(outputs) * weights) + ops.mean(outputs * weights)


def scaled(kind, **arguments):
    """The layer after one that scales its input, whose gradient tells the input's."""
    model = keras.Sequential(
        [
            keras.Input(SHAPE),
            layers.EinsumDense("nhwc,hwc->nhwc", SHAPE, dtype=arguments.get("dtype")),
            kind(**arguments),
        ]
    )
    randomize(model)
    return model


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16", "float64"])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"axis": 1}, {"scale": False}, {"center": False, "axis": -3}, {"axis": 2}],
    ids=str,
)
def test_values_gradients_and_statistics_are_those_of_keras(dtype, arguments):
    arguments = {"momentum": 0.8, "epsilon": 1e-3, "dtype": dtype, **arguments}
    ours, theirs = (
        scaled(BatchNormalization, **arguments),
        scaled(layers.BatchNormalization, **arguments),
    )
    x = images()
    coarse = {"mixed_bfloat16": 0.03, "mixed_float16": 0.004}.get(dtype, 0)
    got, want = (model(x, training=False) for model in (ours, theirs))
    np.testing.assert_array_equal(
        *(ops.convert_to_numpy(ops.cast(y, "float64")) for y in (got, want))
    )
    for _ in range(2):  # the second starts from the first one's statistics
        got, want = (value_and_gradients(model, x, squares) for model in (ours, theirs))
        assert got[0] == pytest.approx(want[0], rel=1e-4 + coarse)
        assert len(got[1]) == len(want[1])
        for a, b in zip(got[1], want[1], strict=True):
            assert np.abs(b).max() > 1e-3
            np.testing.assert_allclose(a, b, rtol=0, atol=(1e-4 + coarse) * np.abs(b).max())
        for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=1e-5 + coarse / 10, atol=1e-5)
    assert ours(x, training=True).dtype == theirs(x, training=True).dtype


@FUSED
@pytest.mark.parametrize("axis", [-1, 1])
def test_the_kernel_keeps_the_digits_of_values_far_from_zero(axis):
    if BACKEND == "tensorflow" and axis == 1:
        pytest.skip("TensorFlow's kernel wants channels last on the CPU")
    # Mean of squares less square of mean, as Keras computes it, leaves one digit of float32.
    x = 1000 + images(64)
    layer = BatchNormalization(axis=axis, epsilon=1e-3, momentum=0.5)
    y = ops.convert_to_numpy(layer(x, training=True))
    others = (0, 1, 2) if axis == -1 else (0, 2, 3)
    mean, variance = (f(x.astype("float64"), axis=others, keepdims=True) for f in (np.mean, np.var))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + 1e-3), rtol=0, atol=2e-3)
    np.testing.assert_allclose(
        ops.convert_to_numpy(layer.moving_variance), 0.5 + 0.5 * variance.ravel(), rtol=1e-3
    )


def test_one_value_of_each_channel_has_no_variance():
    x = images(1, (1, 1, 4))
    layer = BatchNormalization(momentum=0.5)
    y = layer(x, training=True)
    np.testing.assert_allclose(ops.convert_to_numpy(y), 0, atol=1e-6)
    np.testing.assert_allclose(ops.convert_to_numpy(layer.moving_mean), x.ravel() / 2, rtol=1e-6)
    np.testing.assert_allclose(ops.convert_to_numpy(layer.moving_variance), 0.5, rtol=1e-6)


def test_without_state_it_returns_the_statistics_that_it_would_keep():
    x, layer = images(), BatchNormalization(momentum=0.8)
    layer.build(x.shape)
    randomize(layer)
    trained, kept = (
        [variable.value for variable in part]
        for part in (layer.trainable_variables, layer.non_trainable_variables)
    )
    before = [np.array(value) for value in layer.get_weights()]
    outputs, statistics = layer.stateless_call(trained, kept, x, training=True)
    for value, old in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(outputs), ops.convert_to_numpy(layer(x, training=True))
    )
    for value, variable in zip(statistics, layer.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(value), ops.convert_to_numpy(variable.value)
        )


def test_a_frozen_layer_uses_and_keeps_its_statistics():
    x, layer = images(), BatchNormalization()
    layer.build(x.shape)
    randomize(layer)
    layer.trainable = False
    before = [np.array(value) for value in layer.get_weights()]
    np.testing.assert_array_equal(
        ops.convert_to_numpy(layer(x, training=True)),
        ops.convert_to_numpy(layer(x, training=False)),
    )
    for value, old in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)
