"""Gradients of a Keras layer on whichever backend is active."""

import keras
import numpy as np
from keras import ops


def value_and_gradients(layer, inputs, loss_of, training=True):
    """`(loss, [d loss / d v for v in layer.trainable_variables])` as NumPy; state is updated."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = loss_of(layer(inputs, training=training))
        gradients = tape.gradient(loss, [v.value for v in layer.trainable_variables])
    elif backend == "jax":
        import jax

        def stateless(trainable, frozen):
            outputs, frozen = layer.stateless_call(trainable, frozen, inputs, training=training)
            return loss_of(outputs), frozen

        frozen = [v.value for v in layer.non_trainable_variables]
        (loss, frozen), gradients = jax.value_and_grad(stateless, has_aux=True)(
            [v.value for v in layer.trainable_variables], frozen
        )
        for variable, value in zip(layer.non_trainable_variables, frozen, strict=True):
            variable.assign(value)
    else:
        for variable in layer.trainable_variables:
            variable.value.grad = None
        loss = loss_of(layer(inputs, training=training))
        loss.backward()
        gradients = [v.value.grad for v in layer.trainable_variables]
    return float(ops.convert_to_numpy(loss)), [
        np.zeros(v.shape, "float32") if g is None else ops.convert_to_numpy(g)
        for g, v in zip(gradients, layer.trainable_variables, strict=True)
    ]
