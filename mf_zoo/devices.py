"""The machine: what the active backend computes on, versions, threads, time."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

# Environment variables of a process that trains on a CPU under glibc, to be set before it starts.
# A step allocates and frees hundreds of megabytes; by default glibc gives large blocks back to the
# system each time and takes them again page by page (`python -m benchmarks.allocator` measures it).
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "16000000000",
    "MALLOC_TOP_PAD_": "268435456",
}


def accelerator() -> str | None:
    """Name of the accelerator that the active backend computes on; `None` for the CPU.

    Example:

    >>> mf_zoo.devices.accelerator()  # 'NVIDIA H100 80GB HBM3', or None
    """
    import keras

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


def is_main() -> bool:
    """Whether this is the main one of processes that train together; true for one alone.

    It can be asked when their group may have ended already.

    Example:

    >>> mf_zoo.devices.is_main()
    True
    """
    import keras

    if keras.config.backend() == "jax":
        import jax

        return jax.process_index() == 0
    return keras.config.backend() != "torch" or os.environ.get("RANK", "0") == "0"


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that matter to a run."""
    import keras

    backend = keras.config.backend()
    found = {"python": platform.python_version()}
    for package in ("mf_zoo", "keras", backend, "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def device(threads: int | None = None) -> str:
    """Describes what the active backend computes on: the accelerator's or the CPU's model.

    Args:
        threads: The number of threads it was limited to.
    """
    found = accelerator()
    if found is not None:
        return found
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = threads or cores
    return f"{model}, {count} thread{'' if count == 1 else 's'}"


def limit_threads(threads: int) -> bool:
    """Limits the threads of the active backend; returns whether that backend lets us.

    Must come before the backend's first computation. JAX sizes its pool by the cores the process
    may run on, so there `taskset` is the way.
    """
    import keras

    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        try:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(min(threads, 2))
        except RuntimeError:
            return False
        return True
    if backend == "torch":
        import torch

        torch.set_num_threads(threads)
        return True
    return False


def now() -> str:
    """Returns the time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def jit_compile() -> bool | str:
    """What to pass as `jit_compile`: Keras's choice, but no XLA on TensorFlow's CPU.

    Example:

    >>> mf_zoo.devices.jit_compile() in (False, "auto")
    True
    """
    import keras

    # Measured on TensorFlow's CPU, ResNet-20: a step takes about twice as long with XLA.
    return False if keras.config.backend() == "tensorflow" and accelerator() is None else "auto"
