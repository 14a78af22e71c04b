"""Networks as files that Keras, onnxruntime, LiteRT and TensorFlow run."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from mf_zoo import data, with_parent
from mf_zoo.deploy import writer
from mf_zoo.deploy.fold import HALF_PRECISION, fold
from mf_zoo.errors import UserError
from mf_zoo.files import write_atomically, writing

# Largest difference from the model at which a file is right, relative to the largest output.
TOLERANCE = 1e-4
# The same for int8, of `Check.relative_error`: 0.02 for MFResNet20 on CIFAR-10 and 0.08 on
# CIFAR-100. Outputs that have nothing to do with those of the model have 1 or more.
INT8_TOLERANCE = 0.2
QUANTIZATIONS = ("int8",)
# Packages that int8 takes: one quantizes, the other runs the model on the images for calibration.
_QUANTIZERS = ("ai_edge_quantizer", "ai_edge_litert")


class Format(NamedTuple):
    """A format of files.

    Attributes:
        suffix: What their names end in; empty where it is a folder.
        writers: Keras backends that write them, the preferred one first, and the packages that
            each takes; empty where any backend does.
        runtime: Package that runs them.
    """

    suffix: str
    writers: dict[str, tuple[str, ...]]
    runtime: str


FORMATS = {
    "keras": Format(".keras", {}, "keras"),
    # TensorFlow first: its file is the simplest. PyTorch's and JAX's transpose around convolutions,
    # which not every runtime takes out again.
    "onnx": Format(
        ".onnx",
        {
            "tensorflow": ("tensorflow", "tf2onnx"),
            "torch": ("torch", "onnx"),
            "jax": ("jax", "jax2onnx"),
        },
        "onnxruntime",
    ),
    "litert": Format(".tflite", {"tensorflow": ("tensorflow",)}, "ai_edge_litert"),
    "saved_model": Format("", {"tensorflow": ("tensorflow",)}, "tensorflow"),
}


class Check(NamedTuple):
    """How the outputs of a file differ from those of the model, on real images.

    Attributes:
        difference: The largest absolute difference.
        relative_error: The root mean square of the differences, divided by that of the outputs.
        agreement: The share of images for which the same output is the largest.
    """

    difference: float
    relative_error: float
    agreement: float


def export(
    model: keras.Model,
    path: str | os.PathLike,
    format: str,
    *,
    quantize: str | None = None,
    calibration: Any = None,
    overwrite: bool = False,
    check: bool = True,
) -> Check | None:
    """Folds a model and writes it as a file that needs neither mf_zoo nor, but for one, Keras.

    Inputs and outputs are those of the model: the normalisation of images is inside, and the batch
    may be of any size. The file is written beside `path`, run on real images of
    `mf_zoo.data.sample`, compared with `model`, and only then renamed.

    All but `"keras"` is written in another process on the CPU, on the first backend that has what
    it takes, whatever the backend here: TensorFlow, or for `"onnx"` else PyTorch (with the package
    onnx) or JAX (with jax2onnx).

    `quantize="int8"` computes with integers of 8 bits, convolutions included: a quarter of the
    size. Weights are rounded by output channel. The ranges of all activations are those found on
    images for calibration. Inputs, outputs and softmax stay float32. The LiteRT quantizer
    (ai-edge-quantizer) does this.

    Args:
        model: What `mf_zoo.deploy.fold` takes.
        path: File to write, or folder for `"saved_model"`. Names end in `.keras`, `.onnx` or
            `.tflite`; the folder around it must exist.
        format: `"keras"` (the folded model, for `keras.saving.load_model`), `"onnx"` (onnxruntime
            and others), `"litert"` (LiteRT, formerly TensorFlow Lite) or `"saved_model"`
            (TensorFlow: `loaded = tf.saved_model.load(path)`, then `loaded.serve(images)`).
        quantize: `"int8"`, for `"litert"` only, or `None` for float32.
        calibration: Inputs of the model, `(n, ...)`, a few hundred as they come in use, for
            `quantize` and for its check. `None`: the 200 images of `mf_zoo.data.sample`, which suit
            a model of RGB images with values 0..255.
        overwrite: Whether an existing file, or folder with a SavedModel, may be replaced.
        check: Whether to run the file and compare. That takes the runtime of the format, and a
            model from one batch of RGB images (or of `calibration`) to one tensor; else there is
            no check.

    Returns:
        How the outputs of file and model differ, as a `Check`, on 20 images, or with `quantize` on
        those for calibration; `None` without check.

    Raises:
        ValueError: For an unknown format, a name that does not fit it, a model that `fold` does
            not take, or that has channels first where TensorFlow is to write it, a `quantize` that
            the format does not have, and a `calibration` that does not fit.
        ImportError: If a package that writes the format is missing.
        FileNotFoundError: If the folder around `path` does not exist.
        FileExistsError: If `path` exists and may not be replaced.
        UserError: If the file cannot be written, or its outputs differ from those of the model by
            more than 1e-4 of the largest, or with `quantize` by a `relative_error` of more than
            0.2. Nothing is left at `path` then that was not there before.

    Example:

    >>> model = mf_zoo.applications.MFResNet20(weights="cifar10")
    >>> mf_zoo.deploy.export(model, "mfresnet20.onnx", "onnx").difference < 1e-4
    True
    """
    path = Path(path)
    _check_arguments(path, format, quantize, calibration, overwrite)
    writer_backend = _writer_backend(format, quantize)
    # On TensorFlow Keras compiles a grouped convolution by XLA, which tf2onnx cannot convert and
    # which is slow on the CPU; LiteRT has a kernel for it, and so has ONNX.
    split_groups = {
        "keras": None,
        "litert": False,
        "onnx": writer_backend == "tensorflow",
    }.get(format, True)
    plain = fold(model, split_groups)
    if writer_backend == "tensorflow":
        _check_layout(plain, format)
    calibration = _calibration(model, calibration) if quantize else None
    images = None
    if check and _installed(FORMATS[format].runtime) and len(model.outputs) == 1:
        images = calibration if quantize else _images(model, 20)
    found = None

    def write(partial: Path) -> None:
        nonlocal found
        outputs = _write(plain, format, partial, writer_backend, images, calibration)
        if outputs is not None:
            # Half precision is not what is to be found out.
            half = any(part.dtype_policy.name in HALF_PRECISION for part in model._flatten_layers())
            expected = (plain if half else model).predict(images, verbose=0)
            found = _compare(outputs, expected)
            if quantize:
                right = found.relative_error <= INT8_TOLERANCE
            else:
                right = found.difference <= TOLERANCE * np.abs(expected).max()
            if not right:
                raise UserError(
                    f"{path.name} does not compute what the model does and was not kept: outputs "
                    f"of up to {np.abs(expected).max():.3g} differ by {found.difference:.3g}, "
                    f"with a relative error of {found.relative_error:.3g}."
                )

    (_write_folder if format == "saved_model" else write_atomically)(path, write)
    return found


def _compare(outputs: np.ndarray, expected: np.ndarray) -> Check:
    differences = outputs.astype("float64") - expected
    best, best_expected = (array.reshape(len(array), -1).argmax(1) for array in (outputs, expected))
    return Check(
        difference=float(np.abs(differences).max()),
        relative_error=float(np.linalg.norm(differences) / np.linalg.norm(expected)),
        agreement=float(np.mean(best == best_expected)),
    )


def _check_arguments(
    path: Path, format: str, quantize: str | None, calibration: Any, overwrite: bool
) -> None:
    if format not in FORMATS:
        raise ValueError(f"`format` must be one of {list(FORMATS)}. Received: format={format!r}")
    if quantize is not None and (quantize not in QUANTIZATIONS or format != "litert"):
        raise ValueError(
            f"`quantize` must be None, or for the format 'litert' one of {list(QUANTIZATIONS)}. "
            f"Received: quantize={quantize!r}, format={format!r}"
        )
    if calibration is not None and quantize is None:
        raise ValueError("`calibration` must come with `quantize`. Received: quantize=None")
    suffix = FORMATS[format].suffix
    if suffix and path.suffix != suffix:
        raise ValueError(
            f"`path` must end in {suffix!r} for the format {format!r}. Received: path={str(path)!r}"
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


def _writer_backend(format: str, quantize: str | None) -> str:
    """The backend on which a file is written.

    Raises:
        ImportError: If there is none that has the packages it takes.
    """
    also = _QUANTIZERS if quantize else ()
    choices = FORMATS[format].writers or {keras.config.backend(): ()}
    for backend, packages in choices.items():
        if all(map(_installed, packages + also)):
            return backend
    wanted = ", or ".join(" and ".join(packages + also) for packages in choices.values())
    named = dict.fromkeys(name for packages in choices.values() for name in packages + also)
    raise ImportError(
        f"Writing the format {format!r} needs the packages {wanted}: "
        "pip install 'mf_zoo[export]' brings those for TensorFlow. "
        f"Received: no {', '.join(name for name in named if not _installed(name))}"
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


def _images(model: keras.Model, count: int) -> np.ndarray | None:
    """Real images in the shape that a model takes; `None` where it takes something else."""
    if len(model.inputs) != 1 or len(model.outputs) != 1 or len(model.inputs[0].shape) != 4:
        return None
    _, *shape = model.inputs[0].shape
    channels_first = shape[0] == 3 and shape[-1] != 3
    rows, columns = (side or 32 for side in (shape[1:] if channels_first else shape[:-1]))
    if shape[0 if channels_first else -1] != 3:
        return None
    images = data.sample("cifar10")[0]
    images = images[:: len(images) // count].astype("float32")
    if (rows, columns) != images.shape[1:3]:
        images = ops.convert_to_numpy(
            ops.image.resize(images, (rows, columns), data_format="channels_last")
        )
    if channels_first:
        images = images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images, dtype=model.inputs[0].dtype)


def _calibration(model: keras.Model, given: Any) -> np.ndarray:
    """The inputs for calibration: those given, or real images."""
    if given is None:
        images = _images(model, 200)
        if images is None:
            raise ValueError(
                "`calibration` must be given for a model that does not take one batch of RGB "
                f"images to one tensor. Received: inputs {model.inputs}"
            )
        return images
    if len(model.inputs) != 1:
        raise ValueError(
            f"`quantize` needs a model with one input. Received: {len(model.inputs)} inputs"
        )
    expected = model.inputs[0].shape
    given = np.ascontiguousarray(given, dtype=model.inputs[0].dtype)
    fits = given.ndim == len(expected) and all(
        size in (None, side) for size, side in zip(expected[1:], given.shape[1:], strict=True)
    )
    if not fits or not len(given):
        raise ValueError(
            f"`calibration` must have the shape {('n', *expected[1:])}. Received: {given.shape}"
        )
    return given


def _write(
    plain: keras.Model,
    format: str,
    path: Path,
    backend: str,
    images: np.ndarray | None,
    calibration: np.ndarray | None,
) -> np.ndarray | None:
    """Writes a folded model to `path` in another process; what the file computes of images."""
    with tempfile.TemporaryDirectory() as scratch:
        source, inputs, outputs = (Path(scratch) / n for n in ("m.keras", "in.npy", "out.npy"))
        plain.save(source)
        command = [
            sys.executable,
            "-P",
            with_parent.__file__,
            writer.__file__,
            source,
            format,
            path,
        ]
        if images is not None:
            np.save(inputs, images)
            command += [inputs, outputs]
        if calibration is not None:
            if images is None:
                command += ["", ""]
            np.save(Path(scratch) / "calibration.npy", calibration)
            command.append(Path(scratch) / "calibration.npy")
        environment = {
            **os.environ,
            "KERAS_BACKEND": backend,
            "CUDA_VISIBLE_DEVICES": "-1",
            "JAX_PLATFORMS": "cpu",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        # Our end of the pipe closes when this process ends, and then the writer ends too.
        theirs, ours = os.pipe()
        try:
            done = subprocess.run(
                list(map(str, command)),
                env=environment,
                stdin=theirs,
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            os.close(theirs)
            os.close(ours)
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
