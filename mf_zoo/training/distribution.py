"""Training on several devices, and by several processes, that share each batch.

Every backend does it by its own means: JAX by `keras.distribution.DataParallel`, TensorFlow by
`tf.distribute.MirroredStrategy`, PyTorch by `DistributedDataParallel`. What comes out is the same:
the training that one device would do with the whole batch.
"""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from mf_zoo.errors import UserError
from mf_zoo.layers import synchronize_statistics

# What the messages of collective operations say when a process is gone.
_LOST = re.compile("gloo|nccl|(closed|reset) by peer", re.IGNORECASE)


class Group:
    """The processes that train together, seen from one of them; this one is alone.

    Attributes:
        process: Number of this process.
        processes: How many there are.
        devices: How many devices share a batch, those of all processes.
        metrics_are_local: Whether Keras's metrics are those of this process's part of the images.
    """

    process = 0
    processes = 1
    devices = 1
    metrics_are_local = False

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes the run folder."""
        return self.process == 0

    def scope(self) -> contextlib.AbstractContextManager:
        """The context in which networks are built, loaded, compiled and trained."""
        return contextlib.nullcontext()

    def alone(self) -> contextlib.AbstractContextManager:
        """A context, within that of `scope`, for what one process does and others do not."""
        return contextlib.nullcontext()

    def prepare(self, network: keras.Model) -> None:
        """Lets a compiled network train in the group, with statistics over whole batches."""
        synchronize_statistics(network, self.devices > 1)

    def leave(self) -> None:
        """Ends the group, when its training has ended well."""

    def mean(self, values: np.ndarray) -> np.ndarray:
        """The mean over the processes of numbers that each has measured on its own."""
        return values

    def _broadcast(self, message: bytes) -> bytes:
        """What the main process passes, in all of them."""
        return message

    def from_main(self, function: Callable[[], Any]) -> Any:
        """Calls a function in the main process and returns its result in all of them.

        Args:
            function: A function without arguments whose result JSON can express. If it raises a
                `UserError`, all processes do.
        """
        message = {}
        if self.is_main:
            try:
                message["result"] = function()
            except UserError as error:
                message["error"] = str(error)
        message = json.loads(self._broadcast(json.dumps(message).encode()))
        if "error" in message:
            raise UserError(message["error"])
        return message["result"]


class _JAX(Group):
    def __init__(self) -> None:
        import jax

        if not jax.distributed.is_initialized() and _environment("KERAS_DISTRIBUTION_"):
            keras.distribution.initialize()
        self._distribution = keras.distribution.DataParallel(auto_shard_dataset=False)
        self.process, self.processes = jax.process_index(), jax.process_count()
        self.devices = self._distribution.num_model_replicas

    def scope(self) -> contextlib.AbstractContextManager:
        return self._distribution.scope()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        # Keras's saving creates a variable in passing: in the scope all processes would have to.
        before = keras.distribution.distribution()
        keras.distribution.set_distribution(None)
        try:
            yield
        finally:
            keras.distribution.set_distribution(before)

    def _broadcast(self, message: bytes) -> bytes:
        from jax.experimental import multihost_utils

        if self.processes == 1:
            return message
        size = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
        array = np.frombuffer(message.ljust(size)[:size], "uint8")
        return np.asarray(multihost_utils.broadcast_one_to_all(array)).tobytes()


class _TensorFlow(Group):
    def __init__(self) -> None:
        import tensorflow as tf

        if "TF_CONFIG" in os.environ:
            raise UserError(
                "On TensorFlow one process trains on the devices of one machine; several train "
                "together on JAX or PyTorch. Received: the environment variable TF_CONFIG"
            )
        kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
        names = [device.name for device in tf.config.list_logical_devices(kind)]
        self._strategy = tf.distribute.MirroredStrategy(names)
        self.devices = len(names)

    def scope(self) -> contextlib.AbstractContextManager:
        return self._strategy.scope()


class _Torch(Group):
    metrics_are_local = True

    def __init__(self) -> None:
        import torch
        import torch.distributed as distributed

        self._owned = not distributed.is_initialized()
        if self._owned:
            if not _environment("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
                raise UserError(
                    "On PyTorch there is a process for each device, started by torchrun: torchrun "
                    "--nproc-per-node N -m mf_zoo.cli train ... --distribute data. Received: an "
                    "environment without WORLD_SIZE, RANK, MASTER_ADDR and MASTER_PORT"
                )
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
            distributed.init_process_group()
        self._distributed = distributed
        self.process = distributed.get_rank()
        self.processes = self.devices = distributed.get_world_size()

    def prepare(self, network: keras.Model) -> None:
        super().prepare(network)
        from torch.nn.parallel import DistributedDataParallel

        # The graph of a step never changes: what order the particles have is data. It may leave
        # out weights (times, where all steps are equal).
        replica = DistributedDataParallel(network, static_graph=True)
        network.train_step = _train_step(network, replica)

    def leave(self) -> None:
        if self._owned:
            self._distributed.destroy_process_group()

    def mean(self, values: np.ndarray) -> np.ndarray:
        total = keras.ops.convert_to_tensor(values, "float64")
        self._distributed.all_reduce(total)
        return keras.ops.convert_to_numpy(total) / self.processes

    def _broadcast(self, message: bytes) -> bytes:
        found = [message]
        self._distributed.broadcast_object_list(found)
        return found[0]


def _train_step(network: keras.Model, replica: Any) -> Callable[[Any], dict[str, Any]]:
    """Keras's training step with a forward pass whose gradients are averaged over the processes."""
    import torch

    def train_step(data: Any) -> dict[str, Any]:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y_pred = replica(x, training=True)
        network.zero_grad()
        loss = network.compute_loss(x, y, y_pred, sample_weight, training=True)
        for metric in network.metrics:
            if metric.name == "loss":
                metric.update_state(loss, sample_weight=x.shape[0])
        network.optimizer.scale_loss(loss).backward()
        weights = network.trainable_weights
        gradients = [weight.value.grad for weight in weights]
        with torch.no_grad():
            network.optimizer.apply(gradients, weights)
        return network.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    return train_step


def _environment(*names: str) -> bool:
    """Whether the environment has all variables that begin so."""
    return all(any(key.startswith(name) for key in os.environ) for name in names)


_GROUPS = {"jax": _JAX, "tensorflow": _TensorFlow, "torch": _Torch}


@contextlib.contextmanager
def start(kind: str | None) -> Iterator[Group]:
    """Joins the group of processes that train together.

    JAX: all devices of all processes, which `keras.distribution.initialize` connects if its
    environment variables are set (`KERAS_DISTRIBUTION_JOB_ADDRESSES`, `..._NUM_PROCESSES`,
    `..._PROCESS_ID`). PyTorch: the processes that `torchrun` started, with a device each.
    TensorFlow: all GPUs of the machine; without one, all its logical CPU devices.

    Args:
        kind: `"data"`, or `None` for a process that trains on one device, alone.

    Returns:
        A context manager of the `Group`.

    Raises:
        UserError: For another kind, where the environment does not fit, and when another process
            of the group is lost.

    Example:

    ```python
    with distribution.start("data") as group, group.scope():
        model = mf_zoo.applications.MFResNet20()
        model.compile(mf_zoo.optimizers.MeanFieldSGD(0.1), "sparse_categorical_crossentropy")
        group.prepare(model)
        batches = mf_zoo.data.batches(
            images, labels, 128, shuffle=True, divisible_by=group.devices,
            part=(group.process, group.processes),
        )
        model.fit(batches, epochs=10, verbose=2 if group.is_main else 0)
    ```
    """
    if kind is None:
        yield Group()
        return
    if kind != "data":
        raise UserError(f"`distribute` must be 'data' or None. Received: {kind!r}")
    group = _GROUPS[keras.config.backend()]()
    try:
        yield group
    except (RuntimeError, ValueError) as error:
        found = [line for line in str(error).splitlines() if _LOST.search(line)]
        if group.processes == 1 or not found:
            raise
        raise UserError(
            "All processes that train together must stay alive; end those that are left and "
            f"start all again with --resume. Received: {found[0]}"
        ) from error
    group.leave()
