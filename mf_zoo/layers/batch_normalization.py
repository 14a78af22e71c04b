"""Keras's BatchNormalization with the fused kernels of TensorFlow and PyTorch in training."""

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="mf_zoo")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization`, trained by one fused kernel on TensorFlow, PyTorch.

    Same arguments, weights and values. Keras composes the training pass of elementary operations,
    each a sweep over the activations; on TensorFlow this layer calls `fused_batch_norm` instead, on
    PyTorch `batch_norm`, which also keep less for the gradient.
    `python -m benchmarks.batch_normalization` measures what that is worth. Elsewhere, in inference,
    and where the kernel does not apply (axis, mask, `synchronized`), it is Keras's own code.

    `synchronized=True` works on PyTorch too, between the processes of `torch.distributed`, whose
    parts of the batch must be of one size. On JAX it changes nothing: there a batch that is divided
    among devices is one array, and its statistics are those of the whole anyway.

    Args:
        synchronized: Whether the statistics are those of a whole batch that devices share.
        **kwargs: The other arguments of `keras.layers.BatchNormalization`.

    Example:

    >>> x = keras.random.normal((8, 4, 4, 3))
    >>> y = BatchNormalization()(x, training=True)  # per channel: mean 0, variance 1
    """

    def __init__(self, synchronized: bool = False, **kwargs: Any):
        super().__init__(**kwargs)  # Keras's own takes it on TensorFlow alone.
        self.synchronized = bool(synchronized)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        kernel = self._kernel(inputs, mask) if training and self.trainable else None
        if kernel is None:
            return super().call(inputs, training=training, mask=mask)
        outputs, *statistics = kernel(self, inputs)
        averages = self.moving_mean, self.moving_variance
        for average, value in zip(averages, statistics, strict=True):
            value = ops.cast(value, average.dtype)
            average.assign(average.value * self.momentum + value * (1.0 - self.momentum))
        return outputs

    def _kernel(self, inputs: Any, mask: Any) -> Callable[..., Any] | None:
        """The function that calls the backend's kernel; `None` where that does not apply."""
        if mask is not None or self.synchronized or self.renorm or len(inputs.shape) != 4:
            return None
        backend, axis = keras.backend.backend(), self.axis % 4
        if backend == "torch" and axis in (1, 3) and math.prod(inputs.shape) > inputs.shape[axis]:
            return _on_torch
        if (
            backend == "tensorflow"
            and axis == 3
            and self.scale
            and self.center
            and self.epsilon > 1e-5
            and keras.backend.standardize_dtype(inputs.dtype) != "float64"
        ):
            return _on_tensorflow
        return None

    def _moments(self, inputs: Any, mask: Any) -> tuple[Any, Any]:
        if not self.synchronized or mask is not None or keras.backend.backend() == "tensorflow":
            return super()._moments(inputs, mask)
        if keras.backend.backend() == "torch":
            return _moments_of_processes(inputs, self._reduction_axes)
        return ops.moments(inputs, axes=self._reduction_axes)


# Both kernels return the unbiased variance; Keras averages the biased one.


def _on_tensorflow(layer: BatchNormalization, inputs: Any) -> tuple[Any, Any, Any]:
    """Outputs, mean and biased variance."""
    # Measured on a CPU, ResNet-20, batch 128: a training step takes 0.77 of the time in float32
    # and 0.64 in mixed_bfloat16 (benchmarks/results/batch_normalization-tensorflow.csv).
    import tensorflow as tf

    outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
        inputs,
        ops.cast(layer.gamma, "float32"),
        ops.cast(layer.beta, "float32"),
        epsilon=layer.epsilon,
        is_training=True,
    )
    count = ops.cast(tf.size(inputs) // tf.shape(inputs)[-1], "float32")
    return outputs, mean, variance * (count - 1) / count


def _on_torch(layer: BatchNormalization, inputs: Any) -> tuple[Any, Any, Any]:
    """Outputs, mean and biased variance."""
    # Measured on a CPU, ResNet-20, batch 128: a training step takes 0.78 of the time in float32
    # (benchmarks/results/batch_normalization-torch.csv).
    import torch

    inputs = ops.convert_to_tensor(inputs)
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    inputs = inputs.movedim(layer.axis, 1)  # a view
    channels = inputs.shape[1]
    mean, variance = torch.zeros((2, channels), dtype=dtype, device=inputs.device)
    outputs = torch.batch_norm(
        inputs,
        layer.gamma.value.to(dtype) if layer.scale else None,
        layer.beta.value.to(dtype) if layer.center else None,
        mean,  # averages with momentum 1: those of this batch
        variance,
        training=True,
        momentum=1.0,
        eps=layer.epsilon,
        cudnn_enabled=torch.backends.cudnn.enabled,
    )
    count = inputs.numel() // channels
    return outputs.movedim(1, layer.axis), mean, variance * ((count - 1) / count)


def _moments_of_processes(inputs: Any, axes: Any) -> tuple[Any, Any]:
    """Mean and variance over the parts of a batch that PyTorch's processes hold."""
    # A branch because Keras has no synchronised moments on PyTorch, and PyTorch's own
    # SyncBatchNorm does not run on the CPU.
    from torch import distributed

    if not distributed.is_initialized():
        return ops.moments(inputs, axes=axes)
    total, processes = _sum_over_processes(), distributed.get_world_size()
    mean = total(ops.mean(inputs, axis=axes, keepdims=True)) / processes
    variance = total(ops.mean(ops.square(inputs - mean), axis=axes)) / processes
    return ops.squeeze(mean, axis=axes), variance


@functools.cache
def _sum_over_processes() -> Callable[[Any], Any]:
    """A function that sums a tensor over PyTorch's processes and passes gradients on."""
    import torch

    def total(tensor: Any) -> Any:
        tensor = tensor.contiguous().clone()
        torch.distributed.all_reduce(tensor)
        return tensor

    class Sum(torch.autograd.Function):
        """Each process's loss depends on all addends, so gradients are summed as well."""

        @staticmethod
        def forward(context: Any, addend: Any) -> Any:
            return total(addend)

        @staticmethod
        def backward(context: Any, gradient: Any) -> Any:
            return total(gradient)

    return Sum.apply
