"""A network as a compiled function of images, for one image at a time."""

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from mf_zoo.deploy.fold import fold


def inference(model: keras.Model) -> Callable[[Any], np.ndarray]:
    """Folds a model and makes it a compiled function, without what `predict` does around it.

    `model.predict` makes an iterator and calls callbacks for every batch, and on PyTorch Keras's
    Python code of each layer runs for every batch. This function does neither: it is a
    `tf.function`, a `jax.jit` or a frozen trace of `torch.jit` of the model that
    `mf_zoo.deploy.fold` gives. It keeps the weights of now: what becomes of the model later does
    not change it.

    Args:
        model: What `fold` takes, from one input of a shape that is fixed but for the batch to one
            output.

    Returns:
        A function from an array-like `(batch, ...)` of the shape that the model takes, such as
        images with values 0..255, to a NumPy array of its outputs in inference. On JAX it is
        compiled anew for each size of the batch.

    Raises:
        ValueError: For a model that `fold` does not take, of several inputs or outputs, or of an
            input whose shape is not fixed.

    Example:

    >>> classify = mf_zoo.deploy.inference(mf_zoo.applications.MFResNet20(weights="cifar10"))
    >>> images, labels = mf_zoo.data.sample("cifar10")
    >>> classify(images[:1]).shape
    (1, 10)
    """
    plain = fold(model)
    if len(plain.inputs) != 1 or len(plain.outputs) != 1 or None in plain.inputs[0].shape[1:]:
        raise ValueError(
            "`model` must have one input, of a shape that is fixed but for the batch, and one "
            f"output. Received: inputs {plain.inputs}, outputs {plain.outputs}"
        )
    shape, dtype = plain.inputs[0].shape, plain.inputs[0].dtype
    function = _compiled(plain, shape, dtype)
    return lambda inputs: ops.convert_to_numpy(function(np.asarray(inputs, dtype)))


def _compiled(plain: keras.Model, shape: tuple, dtype: str) -> Callable[[np.ndarray], Any]:
    """A function from a NumPy array to a tensor of the active backend."""
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        # For a batch of any size: else it would be traced anew for each.
        signature = [tf.TensorSpec(shape, dtype)]
        return tf.function(lambda inputs: plain(inputs, training=False), input_signature=signature)
    if keras.config.backend() == "jax":
        import jax

        return jax.jit(lambda inputs: plain(inputs, training=False))
    import torch

    # A trace runs none of Keras's Python code, which takes most of the time of one image: see
    # benchmarks/results/single_image-torch.csv. The graph of torch.export was slower, and holds for
    # one size of the batch.
    example = ops.convert_to_tensor(np.zeros((2, *shape[1:]), dtype))
    plain.eval()
    with torch.no_grad(), warnings.catch_warnings():
        # Sizes of tensors in the code of layers are constants: the shape of the input is fixed.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.freeze(torch.jit.trace(plain, example))

    def run(inputs: np.ndarray) -> Any:
        with torch.inference_mode():
            return traced(ops.convert_to_tensor(inputs))

    return run
