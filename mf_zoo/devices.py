"""What the active backend computes on."""

import keras


def accelerator() -> str | None:
    """Name of the accelerator that the active backend computes on; `None` for the CPU.

    Example:

    >>> mf_zoo.devices.accelerator()  # 'NVIDIA H100 80GB HBM3', or None
    """
    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        for gpu in tf.config.list_physical_devices("GPU"):
            return tf.config.experimental.get_device_details(gpu).get("device_name", "GPU")
        return "TPU" if tf.config.list_physical_devices("TPU") else None
    if backend == "jax":
        import jax

        found = jax.devices()[0]
        return None if found.platform == "cpu" else found.device_kind
    if backend == "torch":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return None
