"""The compiled function gives what the model gives, for a batch of any size."""

import keras
import numpy as np
import pytest
from networks import close, randomized, small

from mf_zoo import data, deploy

IMAGES = data.sample("cifar10")[0][:5]


def test_the_function_computes_what_the_model_does():
    model = randomized(small("ResNeXt"))
    function = deploy.inference(model)
    expected = model.predict_on_batch(IMAGES)
    for batch in (slice(0, 1), slice(0, 5)):
        received = function(IMAGES[batch])  # as they are: uint8
        assert type(received) is np.ndarray and received.dtype == "float32"
        close(received, expected[batch])
    randomized(model, seed=1)
    assert not np.allclose(model.predict_on_batch(IMAGES), expected, rtol=1e-2)
    close(function(IMAGES), expected)  # it has the weights of when it was made


@pytest.mark.once
def test_what_has_no_fixed_shape_or_several_outputs_is_refused():
    any_size = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(2, 3)])
    inputs = keras.Input((3,))
    two = keras.Model(inputs, [keras.layers.Dense(2)(inputs), keras.layers.Dense(3)(inputs)])
    for model in (any_size, two):
        with pytest.raises(ValueError, match=r"one input, of a shape that is fixed.*Received: inp"):
            deploy.inference(model)
