"""`mf-zoo predict`: the classes of image files."""

import argparse
import json
import sys
import warnings
from collections.abc import Iterator
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
        "that is missing or cannot be read is named on standard error, the others are "
        "classified, and the exit code is then 2.",
    )
    parser.add_argument("model", metavar="MODEL", help="such as MFResNet20")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="file or folder")
    add_weights_arguments(parser)
    parser.add_argument("--top", type=int, metavar="N", help="classes (default: 5)")
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

    from mf_zoo import data

    # Paths first: what follows imports Keras and loads a network.
    files: list[Path] = []
    unreadable = 0
    for path in options.images:
        try:
            files += data.image_files([path])
        except data.ImageFileError as error:
            unreadable += 1
            _complain("error", error)
    rows: list[dict[str, Any]] = []
    for file, classes in _classify(options, files) if files else ():
        if classes is None:
            unreadable += 1
        elif options.json:
            predictions = [
                {"label": label, "class": name, "probability": score}
                for label, name, score in classes
            ]
            rows.append({"image": str(file), "predictions": predictions})
        else:
            print(file)
            width = max(len(name) for _, name, _ in classes)
            for _, name, score in classes:
                print(f"  {name:{width}}  {100 * score:6.2f} %")
    if options.json:
        print(json.dumps(rows, indent=2))
    return 2 if unreadable else 0


def _classify(
    options: argparse.Namespace, files: list[Path]
) -> Iterator[tuple[Path, list[tuple[int, str, float]] | None]]:
    """The classes of each file, or `None` for one that cannot be read, after saying so."""
    import numpy as np

    from mf_zoo import applications, data

    weights = options.weights or default_weights(options.model, options.dataset)
    model, dataset = load_trained(options.model, weights, options.dataset, "softmax")
    *size, channels = data.get(dataset).image_shape
    known = model.output_shape[-1]
    top = min(5, known) if options.top is None else options.top
    if not 1 <= top <= known:
        raise UserError(f"`--top` must be from 1 to {known}. Received: {top}")
    for start in range(0, len(files), options.batch_size):
        readable, images = [], []
        for file in files[start : start + options.batch_size]:
            try:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always", data.SmallImageWarning)
                    images.append(data.read_image(file, tuple(size), options.resize, channels))
                readable.append(file)
            except data.ImageFileError as error:
                _complain("error", error)
                yield file, None
            for warning in caught:
                _complain("warning", warning.message)
        if readable:
            scores = model.predict_on_batch(np.stack(images))
            with user_errors():
                named = applications.decode_predictions(scores, top, dataset)
            yield from zip(readable, named, strict=True)


def _complain(kind: str, message: Any) -> None:
    print(f"mf-zoo: {kind}: {one_line(message)}", file=sys.stderr)
