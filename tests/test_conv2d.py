"""Conv2D against Keras's own, and how its tensors lie in PyTorch's memory."""

import keras
import numpy as np
import pytest
from autodiff import value_and_gradients
from keras import ops

from mf_zoo.layers import Conv2D

BACKEND = keras.config.backend()
SHAPE = (9, 8, 3)


@pytest.mark.parametrize(
    "arguments",
    [
        {"padding": "same"},
        {"padding": "same", "strides": 2},  # on one side alone
        {"strides": (2, 1), "use_bias": False},
        {"dilation_rate": 2, "padding": "same", "activation": "relu"},
        {"groups": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("mixed_bfloat16", 0.02)])
def test_values_and_gradients_are_those_of_keras(arguments, dtype, tolerance):
    if BACKEND != "torch" and "groups" in arguments:
        pytest.skip("GroupedConv2D is for these")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, *SHAPE)).astype("float32")
    direction = ops.convert_to_tensor(rng.normal(size=6), "float32")
    found = []
    for kind in (Conv2D, keras.layers.Conv2D):
        # The gradient of the first kernel goes through that of the layer's input.
        model = keras.Sequential(
            [
                keras.Input(SHAPE),
                keras.layers.Conv2D(3, 1, dtype=dtype),
                kind(6, 3, dtype=dtype, **arguments),
            ]
        )
        values = np.random.default_rng(1)
        model.set_weights([values.normal(size=w.shape) for w in model.weights])
        loss = value_and_gradients(model, x, lambda y: ops.mean(ops.cast(y, "float32") * direction))
        found.append((ops.convert_to_numpy(ops.cast(model(x), "float32")), *loss))
    (our_values, our_loss, ours), (their_values, their_loss, theirs) = found
    assert our_values.shape == their_values.shape
    scale = float(np.abs(their_values).max())
    np.testing.assert_allclose(our_values, their_values, rtol=0, atol=tolerance * scale)
    assert our_loss == pytest.approx(their_loss, abs=tolerance * scale)
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, rtol=0, atol=tolerance * np.abs(their).max())


@pytest.mark.skipif(BACKEND != "torch", reason="where memory has a format")
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3), (0, 3, 1, 2)])
def test_outputs_have_channels_last_in_memory_whatever_the_input(order):
    import torch

    x = torch.rand(2, 8, 8, 8).permute(*order)
    layer = Conv2D(6, 3, padding="same")
    layer.build(x.shape)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        y = layer(x)
    assert y.is_contiguous()
    # Nor is the input kept twice.
    sizes = {tensor.untyped_storage().data_ptr() for tensor in kept if tensor.numel() == x.numel()}
    assert sizes == {x.untyped_storage().data_ptr()}
