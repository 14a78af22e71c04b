"""Networks as files that Keras, onnxruntime, LiteRT and TensorFlow run."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from mf_zoo import data
from mf_zoo.deploy import writer
from mf_zoo.deploy.fold import HALF_PRECISION, fold
from mf_zoo.errors import UserError
from mf_zoo.files import write_atomically, writing

# Largest difference from the model at which a file is right, relative to the largest output.
TOLERANCE = 1e-4


class Format(NamedTuple):
    """A format of files.

    Attributes:
        suffix: What their names end in; empty where it is a folder.
        writers: Packages that write them.
        runtime: Package that runs them.
    """

    suffix: str
    writers: tuple[str, ...]
    runtime: str


FORMATS = {
    "keras": Format(".keras", (), "keras"),
    "onnx": Format(".onnx", ("tensorflow", "tf2onnx"), "onnxruntime"),
    "litert": Format(".tflite", ("tensorflow",), "ai_edge_litert"),
    "saved_model": Format("", ("tensorflow",), "tensorflow"),
}


def export(
    model: keras.Model,
    path: str | os.PathLike,
    format: str,
    *,
    overwrite: bool = False,
    check: bool = True,
) -> float | None:
    """Folds a model and writes it as a file that needs neither mf_zoo nor, but for one, Keras.

    Inputs and outputs are those of the model: the normalisation of images is inside, and the batch
    may be of any size. The file is written beside `path`, run on 20 real images of
    `mf_zoo.data.sample`, compared with `model`, and only then renamed. All but `"keras"` is written
    in another process, on the TensorFlow backend and the CPU, whatever the backend here.

    Args:
        model: What `mf_zoo.deploy.fold` takes.
        path: File to write, or folder for `"saved_model"`. Names end in `.keras`, `.onnx` or
            `.tflite`; the folder around it must exist.
        format: `"keras"` (the folded model, for `keras.saving.load_model`), `"onnx"` (onnxruntime
            and others), `"litert"` (LiteRT, formerly TensorFlow Lite) or `"saved_model"`
            (TensorFlow: `loaded = tf.saved_model.load(path)`, then `loaded.serve(images)`).
        overwrite: Whether an existing file, or folder with a SavedModel, may be replaced.
        check: Whether to run the file and compare. That takes the runtime of the format, and a
            model from one batch of RGB images to one tensor; else there is no check.

    Returns:
        The largest absolute difference between the outputs of file and model; `None` without check.

    Raises:
        ValueError: For an unknown format, a name that does not fit it, and a model that `fold` does
            not take, or that has channels first where TensorFlow is to write it.
        ImportError: If a package that writes the format is missing.
        FileNotFoundError: If the folder around `path` does not exist.
        FileExistsError: If `path` exists and may not be replaced.
        UserError: If the file cannot be written, or its outputs differ from those of the model by
            more than 1e-4 of the largest. Nothing is left at `path` then that was not there before.

    Example:

    >>> model = mf_zoo.applications.MFResNet20(weights="cifar10")
    >>> mf_zoo.deploy.export(model, "mfresnet20.onnx", "onnx") < 1e-4  # the largest difference
    True
    """
    path = Path(path)
    _check_arguments(path, format, overwrite)
    # On TensorFlow Keras compiles a grouped convolution by XLA, which tf2onnx cannot convert and
    # which is slow on the CPU; LiteRT has a kernel for it.
    split_groups = {"keras": None, "litert": False}.get(format, True)
    plain = fold(model, split_groups)
    _check_layout(plain, format)
    images = _images(model) if check and _installed(FORMATS[format].runtime) else None
    difference = None

    def write(partial: Path) -> None:
        nonlocal difference
        outputs = _write(plain, format, partial, images)
        if outputs is not None:
            # Half precision is not what is to be found out.
            half = any(part.dtype_policy.name in HALF_PRECISION for part in model._flatten_layers())
            expected = (plain if half else model).predict(images, verbose=0)
            difference = float(np.abs(outputs - expected).max())
            if not difference <= TOLERANCE * np.abs(expected).max():
                raise UserError(
                    f"{path.name} does not compute what the model does and was not kept: "
                    f"outputs of up to {np.abs(expected).max():.3g} differ by {difference:.3g}."
                )

    (_write_folder if format == "saved_model" else write_atomically)(path, write)
    return difference


def _check_arguments(path: Path, format: str, overwrite: bool) -> None:
    if format not in FORMATS:
        raise ValueError(f"`format` must be one of {list(FORMATS)}. Received: format={format!r}")
    suffix, writers, _ = FORMATS[format]
    if suffix and path.suffix != suffix:
        raise ValueError(
            f"`path` must end in {suffix!r} for the format {format!r}. Received: path={str(path)!r}"
        )
    missing = [package for package in writers if not _installed(package)]
    if missing:
        raise ImportError(
            f"Writing the format {format!r} needs the packages {', '.join(writers)}: "
            f"pip install 'mf_zoo[export]'. Received: no {', '.join(missing)}"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The folder of `path` must exist. Received: path={str(path)!r}")
    if path.exists():
        ours = (path / "saved_model.pb").is_file() if format == "saved_model" else path.is_file()
        if not (overwrite and ours):
            kind = "folder with a SavedModel" if format == "saved_model" else "file"
            raise FileExistsError(
                f"`path` must be new, or with `overwrite` an existing {kind}. "
                f"Received: path={str(path)!r}, overwrite={overwrite}"
            )


def _check_layout(plain: keras.Model, format: str) -> None:
    """Raises ValueError for channels first, which TensorFlow's CPU cannot convolve."""
    for layer in plain._flatten_layers():
        if format != "keras" and getattr(layer, "data_format", None) == "channels_first":
            raise ValueError(
                f"The format {format!r} needs a model with channels last: build it anew under "
                '`keras.config.set_image_data_format("channels_last")` and load its weights. '
                f"Received: channels first in {layer.name!r}"
            )


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _images(model: keras.Model) -> np.ndarray | None:
    """Real images in the shape that a model takes; `None` where it takes something else."""
    if len(model.inputs) != 1 or len(model.outputs) != 1 or len(model.inputs[0].shape) != 4:
        return None
    _, *shape = model.inputs[0].shape
    channels_first = shape[0] == 3 and shape[-1] != 3
    rows, columns = (side or 32 for side in (shape[1:] if channels_first else shape[:-1]))
    if shape[0 if channels_first else -1] != 3:
        return None
    images = data.sample("cifar10")[0][::10].astype("float32")
    if (rows, columns) != images.shape[1:3]:
        images = ops.convert_to_numpy(
            ops.image.resize(images, (rows, columns), data_format="channels_last")
        )
    if channels_first:
        images = images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images, dtype=model.inputs[0].dtype)


def _write(
    plain: keras.Model, format: str, path: Path, images: np.ndarray | None
) -> np.ndarray | None:
    """Writes a folded model to `path` in another process; what the file computes of images."""
    with tempfile.TemporaryDirectory() as scratch:
        source, inputs, outputs = (Path(scratch) / n for n in ("m.keras", "in.npy", "out.npy"))
        plain.save(source)
        command = [sys.executable, "-P", writer.__file__, source, format, path]
        if images is not None:
            np.save(inputs, images)
            command += [inputs, outputs]
        environment = {
            **os.environ,
            "KERAS_BACKEND": keras.config.backend() if format == "keras" else "tensorflow",
            "CUDA_VISIBLE_DEVICES": "-1",
            "JAX_PLATFORMS": "cpu",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        done = subprocess.run(
            list(map(str, command)), env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise UserError(f"The format {format!r} cannot be written: {lines[-1]}")
        return None if images is None else np.load(outputs)


def _write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """As `write_atomically`, for a folder: an existing one is moved aside and back on failure."""
    partial, former = (path.with_name(f"{kind}-{path.name}") for kind in ("partial", "former"))
    try:
        with writing(path):
            shutil.rmtree(partial, ignore_errors=True)
            write(partial)
            if not path.exists():
                partial.rename(path)
                return
            path.rename(former)
            try:
                partial.rename(path)
            except OSError:
                former.rename(path)
                raise
            shutil.rmtree(former, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
