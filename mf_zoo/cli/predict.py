"""`mf-zoo predict`: the classes of image files."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mf_zoo.cli.common import (
    add_weights_arguments,
    default_weights,
    load_trained,
)
from mf_zoo.errors import UserError, one_line, user_errors


def add_parser(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "predict",
        help="classify image files",
        description="Classify image files of any kind and size, and all those in folders. A file "
        "that cannot be read is named on standard error, and the exit code is then 2.",
    )
    parser.add_argument("model", metavar="MODEL", help="such as MFResNet20")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="file or folder")
    add_weights_arguments(parser)
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes (default: 5)")
    parser.add_argument(
        "--resize",
        choices=("crop", "pad", "stretch"),
        default="crop",
        help="how images that are not square are made so (default: crop)",
    )
    parser.add_argument("--batch-size", type=int, default=100, metavar="N")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_predict)


def _predict(options: argparse.Namespace) -> int:
    if options.batch_size < 1:
        raise UserError(f"`--batch-size` must be 1 or more. Received: {options.batch_size}")

    import numpy as np

    from mf_zoo import applications, data

    with user_errors():
        files = data.image_files(options.images)
    weights = options.weights or default_weights(options.model, options.dataset)
    model, dataset = load_trained(options.model, weights, options.dataset, "softmax")
    if not 1 <= options.top <= model.output_shape[-1]:
        raise UserError(
            f"`--top` must be from 1 to {model.output_shape[-1]}. Received: {options.top}"
        )
    found: list[dict[str, Any]] = []
    unreadable = 0
    for start in range(0, len(files), options.batch_size):
        readable, images = [], []
        for file in files[start : start + options.batch_size]:
            try:
                images.append(data.read_image(file, resize=options.resize))
                readable.append(file)
            except data.ImageFileError as error:
                unreadable += 1
                print(f"mf-zoo: error: {one_line(error)}", file=sys.stderr)
        if not readable:
            continue
        scores = model.predict_on_batch(np.stack(images))
        for file, classes in zip(
            readable, applications.decode_predictions(scores, options.top, dataset), strict=True
        ):
            if options.json:
                found.append(
                    {
                        "image": str(file),
                        "predictions": [
                            {"label": label, "class": name, "probability": score}
                            for label, name, score in classes
                        ],
                    }
                )
            else:
                print(file)
                width = max(len(name) for _, name, _ in classes)
                for _, name, score in classes:
                    print(f"  {name:{width}}  {100 * score:6.2f} %")
    if options.json:
        print(json.dumps(found, indent=2))
    return 2 if unreadable else 0
