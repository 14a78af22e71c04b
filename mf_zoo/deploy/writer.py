"""Writes a plain Keras model in another format, and runs the file: a script.

    python writer.py MODEL.keras FORMAT PATH [IMAGES.npy OUTPUTS.npy]

It runs in a process of its own, for writing needs the TensorFlow backend whatever the caller's, and
converters print to the process's own standard error. It imports nothing of mf_zoo, so it shows as
well that the files need nothing of it.
"""

import shutil
import sys
from typing import Any

import numpy as np


def write(source: str, format: str, path: str) -> None:
    """Writes the model of a `.keras` file to `path`."""
    if format == "keras":
        shutil.copyfile(source, path)
        return
    import keras

    model = keras.saving.load_model(source, compile=False)
    # Without it, ONNX export wants a model that has been called.
    signature = keras.tree.map_structure(
        lambda x: keras.InputSpec(shape=x.shape, dtype=x.dtype, name=x.name), model.input
    )
    keras_format = "tf_saved_model" if format == "saved_model" else format
    model.export(path, format=keras_format, verbose=False, input_signature=[signature])


def run(format: str, path: str, images: np.ndarray) -> Any:
    """What the model of the file computes, run by the runtime of its format."""
    if format == "keras":
        import keras

        return keras.saving.load_model(path, compile=False).predict(images, verbose=0)
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (outputs,) = session.run(None, {session.get_inputs()[0].name: images})
        return outputs
    if format == "litert":
        from ai_edge_litert.interpreter import Interpreter

        runner = Interpreter(path).get_signature_runner()
        (name,) = runner.get_input_details()
        (outputs,) = runner(**{name: images}).values()
        return outputs
    import tensorflow as tf

    loaded = tf.saved_model.load(path)  # kept: its functions do not keep its variables alive
    return loaded.serve(images).numpy()


def main(source: str, format: str, path: str, images: str = "", outputs: str = "") -> None:
    """The script."""
    write(source, format, path)
    if images:
        np.save(outputs, run(format, path, np.load(images)))


if __name__ == "__main__":
    main(*sys.argv[1:])
