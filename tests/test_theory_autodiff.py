"""Derivatives on the active backend, and models cut at their stages."""

import keras
import numpy as np
import pytest
from keras import ops

import mf_zoo
from mf_zoo.theory import autodiff, segments


def test_vjp_of_a_matrix():
    matrix = np.arange(6, dtype="float32").reshape(2, 3)
    x = ops.convert_to_tensor([1.0, -1.0, 2.0])
    value, (product, unused) = autodiff.vjp(
        lambda x, unused: ops.matmul(matrix, x), [x, ops.ones((2,))], np.array([1.0, 10.0])
    )
    np.testing.assert_allclose(ops.convert_to_numpy(value), matrix @ [1, -1, 2])
    np.testing.assert_allclose(ops.convert_to_numpy(product), [30, 41, 52])
    np.testing.assert_array_equal(ops.convert_to_numpy(unused), [0, 0])


def test_a_cotangent_that_depends_on_the_value_is_no_part_of_the_derivative():
    """`d/dx |x^2|^2 / 2 = 2 x^3`: the cotangent is the value itself, held constant."""
    _, (slope,) = autodiff.vjp(lambda x: x * x, [ops.convert_to_tensor([3.0])], lambda value: value)
    assert float(slope[0]) == 54.0


def test_nothing_depends_on_the_inputs():
    _, (slope,) = autodiff.vjp(lambda x: ops.ones((2,)), [ops.ones((3,))])
    np.testing.assert_array_equal(ops.convert_to_numpy(slope), [0, 0, 0])


def test_variables_of_a_layer_and_no_change_of_statistics():
    layer = keras.layers.BatchNormalization(epsilon=0.0)
    x = ops.convert_to_tensor(np.array([[1.0], [3.0], [8.0]], "float32"))
    layer.build(x.shape)
    before = layer.get_weights()
    _, (gamma, beta) = autodiff.variables_vjp(
        lambda: ops.sum(layer(x, training=True) * ops.convert_to_tensor([[1.0], [0.0], [2.0]])),
        layer.trainable_variables,
    )
    normal = (np.array([1.0, 3.0, 8.0]) - 4) / np.std([1.0, 3.0, 8.0])
    np.testing.assert_allclose(float(gamma[0]), normal[0] + 2 * normal[2], rtol=1e-5)
    np.testing.assert_allclose(float(beta[0]), 3.0, rtol=1e-6)
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    "name",
    ["MFResNet20", pytest.param("PreActResNet110", marks=pytest.mark.once_on_torch)],
)
def test_the_parts_of_a_network_make_the_network(name):
    model = getattr(mf_zoo.applications, name)(weights=None)
    parts = segments.cut(model)
    assert [stage.name for stage in parts.stages] == ["stage1", "stage2", "stage3"]
    images, _ = mf_zoo.data.sample("cifar10")
    x = z = ops.convert_to_tensor(images[:2].astype("float32"))
    for piece, stage in zip(parts.pieces, parts.stages, strict=False):
        z = stage(piece(z), training=False)
    z = parts.pieces[-1](z)
    expected = ops.convert_to_numpy(model(x, training=False))
    np.testing.assert_allclose(ops.convert_to_numpy(z), expected, atol=1e-6)
    assert sum(len(part.weights) for part in (*parts.pieces, *parts.stages)) == len(model.weights)


def _stage():
    return mf_zoo.layers.MeanFieldStage(keras.layers.Dense(3), 2)


def test_a_stage_at_either_end_of_a_model():
    inputs = keras.Input((3,))
    stage = _stage()
    model = keras.Model(inputs, stage(inputs))
    parts = segments.cut(model)
    assert parts.stages == [stage]
    x = ops.ones((1, 3))
    np.testing.assert_array_equal(
        ops.convert_to_numpy(parts.pieces[1](stage(parts.pieces[0](x)))),
        ops.convert_to_numpy(model(x)),
    )


def test_models_that_are_no_chain():
    inputs = keras.Input((3,))
    first, second = _stage(), _stage()
    beside = keras.Model(inputs, keras.layers.Add()([first(inputs), second(inputs)]), name="beside")
    with pytest.raises(ValueError, match=r"one after another.*Received: model='beside'"):
        segments.cut(beside)
    around = keras.Model(inputs, keras.layers.Add()([inputs, first(inputs)]), name="around")
    with pytest.raises(ValueError, match=r"one after another.*Received: model='around'"):
        segments.cut(around)
    twice = keras.Model(inputs, first(first(inputs)), name="twice")
    with pytest.raises(ValueError, match=r"each of its stages once.*Received: model='twice'"):
        segments.cut(twice)
    with pytest.raises(ValueError, match=r"must have a MeanFieldStage\. Received: model='none'"):
        segments.cut(keras.Sequential([keras.layers.Dense(1)], name="none"))
