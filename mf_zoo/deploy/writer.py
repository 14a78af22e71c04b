"""Writes a plain Keras model in another format, and runs the file: a script.

    python writer.py MODEL.keras FORMAT PATH [IMAGES.npy OUTPUTS.npy [CALIBRATION.npy]]

With images for calibration the file is quantized to int8. It runs in a process of its own, for
writing may need another backend than the caller's, and converters print to the process's own
standard error. It imports nothing of mf_zoo, so it shows as well that the files need nothing of
it.
"""

import os
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

    model = keras.saving.load_model(source, compile=False, safe_mode=True)
    # Without it, ONNX export wants a model that has been called.
    signature = keras.tree.map_structure(
        lambda x: keras.InputSpec(shape=x.shape, dtype=x.dtype, name=x.name), model.input
    )
    keras_format = "tf_saved_model" if format == "saved_model" else format
    model.export(path, format=keras_format, verbose=False, input_signature=[signature])


def quantize(path: str, images: np.ndarray) -> None:
    """Quantizes a LiteRT file to int8 in its place, with ranges of activations found on images."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import Quantizer

    quantizer = Quantizer(path)
    quantizer.add_static_config(".*", "*", activation_num_bits=8, weight_num_bits=8)
    for kept in ("INPUT", "OUTPUT", "SOFTMAX"):  # in int8 probabilities have steps of 1/256
        quantizer.update_quantization_recipe(".*", kept, algorithm_key="no_quantize")
    ((signature, names),) = Interpreter(path).get_signature_list().items()
    (name,) = names["inputs"]
    # Batch by batch: a calibration keeps all activations of its batch. Within one the quantizer
    # takes the smallest and largest value; over several it would take a moving average.
    threads = os.cpu_count() or 1
    ranges: dict[str, Any] = {}
    for start in range(0, len(images), 20):
        batch = {name: images[start : start + 20]}
        for tensor, new in quantizer.calibrate({signature: [batch]}, num_threads=threads).items():
            old = ranges.get(tensor, new)
            ranges[tensor] = {
                "min": np.minimum(old["min"], new["min"]),
                "max": np.maximum(old["max"], new["max"]),
            }
    result = quantizer.quantize(ranges, enable_progress_report=False)
    with open(path, "wb") as file:
        file.write(result.quantized_model)


def run(format: str, path: str, images: np.ndarray) -> Any:
    """What the model of the file computes, run by the runtime of its format."""
    if format == "keras":
        import keras

        return keras.saving.load_model(path, compile=False, safe_mode=True).predict(
            images, verbose=0
        )
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


def main(
    source: str, format: str, path: str, images: str = "", outputs: str = "", calibration: str = ""
) -> None:
    """The script."""
    write(source, format, path)
    if calibration:
        quantize(path, np.load(calibration))
    if images:
        np.save(outputs, run(format, path, np.load(images)))


if __name__ == "__main__":
    main(*sys.argv[1:])
