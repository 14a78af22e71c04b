"""Grouped convolution against Keras's own and against a loop over groups in NumPy."""

import keras
import numpy as np
import pytest
from autodiff import value_and_gradients
from keras import ops

from mf_zoo.layers import GroupedConv2D, MeanFieldStage, ResNeXtBlock
from mf_zoo.layers.grouped_conv2d import _merged

BACKEND = keras.config.backend()


def numpy_grouped(x, kernel, groups, strides, padding):
    """Cross-correlation group by group, by definition, channels last, odd kernels."""
    size = kernel.shape[0]
    if padding == "same":  # as TensorFlow pads
        total = [max((-(-n // strides) - 1) * strides + size - n, 0) for n in x.shape[1:3]]
        x = np.pad(x, [(0, 0), *((t // 2, t - t // 2) for t in total), (0, 0)])
    rows, columns = ((n - size) // strides + 1 for n in x.shape[1:3])
    depth, filters = x.shape[-1] // groups, kernel.shape[-1] // groups
    y = np.zeros((len(x), rows, columns, kernel.shape[-1]))
    for group in range(groups):
        for i in range(rows):
            for j in range(columns):
                window = x[
                    :,
                    i * strides : i * strides + size,
                    j * strides : j * strides + size,
                    group * depth : (group + 1) * depth,
                ]
                part = kernel[..., group * filters : (group + 1) * filters]
                y[:, i, j, group * filters : (group + 1) * filters] = np.tensordot(window, part, 3)
    return y


@pytest.mark.parametrize(
    ("channels", "filters", "groups", "strides", "padding"),
    [
        (32, 64, 8, 1, "same"),  # merged by fours: two convolutions
        (32, 32, 16, 2, "valid"),
        (12, 24, 6, 2, "same"),  # all groups in one convolution
        (64, 32, 2, 1, "valid"),  # wide groups: none merged
    ],
)
def test_values_are_those_of_the_definition(channels, filters, groups, strides, padding):
    rng = np.random.default_rng(channels + groups)
    x = rng.normal(size=(2, 7, 6, channels)).astype("float32")
    layer = GroupedConv2D(
        filters, 3, groups=groups, strides=strides, padding=padding, bias_initializer="ones"
    )
    layer.build(x.shape)
    kernel = rng.normal(size=layer.kernel.shape).astype("float32")
    layer.kernel.assign(kernel)
    assert kernel.shape == (3, 3, channels // groups, filters)
    expected = 1 + numpy_grouped(x, kernel, groups, strides, padding)
    np.testing.assert_allclose(ops.convert_to_numpy(layer(x)), expected, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_keras_own_layer():
    rng = np.random.default_rng(7)
    x = rng.normal(size=(2, 5, 5, 4)).astype("float32")
    direction = rng.normal(size=(2, 5, 5, 36)).astype("float32")
    found = []
    for kind in (GroupedConv2D, keras.layers.Conv2D):
        # The gradient of the first kernel goes through that of the grouped layer's input.
        model = keras.Sequential(
            [
                keras.Input(x.shape[1:]),
                keras.layers.Conv2D(24, 1),
                kind(36, 3, groups=12, padding="same", dilation_rate=2),
            ]
        )
        values = np.random.default_rng(8)
        model.set_weights([values.normal(size=w.shape) for w in model.weights])
        found.append(value_and_gradients(model, x, lambda y: ops.sum(ops.multiply(y, direction))))
    (our_loss, ours), (their_loss, theirs) = found
    assert our_loss == pytest.approx(their_loss, rel=1e-4)
    assert len(ours) == 4
    for our, their in zip(ours, theirs, strict=True):
        assert np.abs(their).max() > 1
        np.testing.assert_allclose(our, their, rtol=1e-3, atol=1e-3)


def test_the_fewest_groups_are_merged_that_are_wide_enough():
    assert [_merged(32, width) for width in (1, 3, 4, 8, 16, 64)] == [16, 8, 4, 2, 1, 1]
    assert _merged(6, 2) == 6  # 12 channels: all there are
    assert _merged(6, 4) == 6  # 4 groups would do but do not divide 6
    assert _merged(9, 8) == 3


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow's CPU convolves channels last only")
def test_channels_first():
    x = np.random.default_rng(1).normal(size=(2, 6, 6, 32)).astype("float32")
    last = GroupedConv2D(32, 3, groups=8, strides=2)
    expected = ops.convert_to_numpy(last(x))
    first = GroupedConv2D(32, 3, groups=8, strides=2, data_format="channels_first")
    first.build((None, 32, 6, 6))
    first.kernel.assign(last.kernel)
    got = ops.convert_to_numpy(first(x.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(got.transpose(0, 2, 3, 1), expected, rtol=1e-4, atol=1e-5)


def test_in_a_model_of_any_size_saved_and_loaded(tmp_path):
    block = ResNeXtBlock(16, cardinality=8, width=4)
    model = keras.Sequential(
        [keras.Input((None, None, 64)), MeanFieldStage(block, 2, activation="relu")]
    )
    x = np.random.default_rng(2).normal(size=(3, 9, 7, 64)).astype("float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    expected = model.predict(x, verbose=0)
    assert expected.shape == x.shape and np.abs(expected - np.maximum(x, 0)).max() > 0.1
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)


def test_mixed_precision_keeps_a_float32_kernel():
    layer = GroupedConv2D(32, 3, groups=8, dtype="mixed_bfloat16")
    x = np.random.default_rng(3).normal(size=(2, 6, 6, 32)).astype("float32")
    got = layer(x)
    assert keras.backend.standardize_dtype(got.dtype) == "bfloat16"
    assert layer.kernel.dtype == "float32"
    expected = numpy_grouped(x, ops.convert_to_numpy(layer.kernel), 8, 1, "valid")
    np.testing.assert_allclose(
        ops.convert_to_numpy(ops.cast(got, "float32")), expected, rtol=0.05, atol=0.05
    )
