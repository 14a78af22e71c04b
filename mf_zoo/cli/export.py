"""`mf-zoo export`: a trained network as a file for other runtimes."""

import argparse
from pathlib import Path
from typing import Any

from mf_zoo.cli.common import add_weights_arguments, default_weights, load_trained
from mf_zoo.errors import user_errors

# Of `mf_zoo.deploy.FORMATS`, which would import Keras.
_SUFFIXES = {"keras": ".keras", "onnx": ".onnx", "litert": ".tflite", "saved_model": ""}


def add_parser(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "export",
        help="write a trained network as a file for other runtimes",
        description="Fold a trained network into plain layers, write it as a file that needs "
        "nothing of mf_zoo, run that file on real images and compare.",
    )
    parser.add_argument("model", metavar="MODEL", help="such as MFResNet20")
    parser.add_argument(
        "--format",
        choices=_SUFFIXES,
        required=True,
        help="keras (Keras alone loads it), onnx (onnxruntime), litert (LiteRT) or saved_model "
        "(a folder for TensorFlow)",
    )
    parser.add_argument(
        "--quantize",
        choices=["int8"],
        help="with litert: integers of 8 bits, for a quarter of the size",
    )
    add_weights_arguments(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="default: MODEL-WEIGHTS or MODEL-WEIGHTS-int8, with the right ending",
    )
    parser.add_argument("--logits", action="store_true", help="scores instead of probabilities")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> None:
    from mf_zoo import deploy

    weights = options.weights or default_weights(options.model, options.dataset)
    activation = None if options.logits else "softmax"
    model, _ = load_trained(options.model, weights, options.dataset, activation)
    # Of a file or a run folder the name says which it is.
    stem = Path(weights).name.removesuffix(".weights.h5").removesuffix(".weights.json")
    suffix = f"-{options.quantize}" if options.quantize else ""
    default = Path(f"{options.model.lower()}-{stem}{suffix}{_SUFFIXES[options.format]}")
    output = options.output or default
    with user_errors():
        check = deploy.export(
            model, output, options.format, quantize=options.quantize, overwrite=options.overwrite
        )
    runtime = deploy.FORMATS[options.format].runtime
    if check is None:
        checked = f"not checked: no {runtime} is installed"
    elif options.quantize:
        checked = (
            f"run by {runtime} on real images, relative error {check.relative_error:.3f}, "
            f"the same class in {check.agreement:.1%}"
        )
    else:
        checked = (
            f"run by {runtime} on real images, outputs differ by at most {check.difference:.1e}"
        )
    size = sum(part.stat().st_size for part in (output, *output.rglob("*")) if part.is_file())
    print(f"{output}: {size / 1e6:.1f} MB; {checked}")
