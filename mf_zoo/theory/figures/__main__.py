"""Draws the pictures of the theory.

python -m mf_zoo.theory.figures --output figures/

A picture is a module here with a function `draw(figure, inputs)`, which draws into an empty figure
and returns the numbers that it drew, a row each. They are written to `<picture>.png` and
`<picture>.csv`; `figures.json` says of each what it was made from. The first paragraph of the
module's docstring is its caption.
"""

import argparse
import importlib
import inspect
import re
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mf_zoo import files
from mf_zoo.cli import in_flags
from mf_zoo.errors import UserError, one_line
from mf_zoo.theory.figures import inputs as sources

PICTURES = (
    "adjoint",
    "gradient_gap",
    "minima",
    "lesions",
    "shuffles",
    "path_lengths",
    "limits",
    "smoothness",
    "stages",
)
RECORDS = "figures.json"
COMMAND = "python -m mf_zoo.theory.figures"
SEED = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: The command line without the program's name; `sys.argv` by default.

    Returns:
        The exit code: 0; 1 if a picture failed, the others having been drawn; 2 for bad usage or
        input (one line on standard error says what); 130 after SIGINT.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    from mf_zoo import quiet

    try:
        with quiet.libraries():
            return _run(options)
    except UserError as error:
        text = in_flags(one_line(error), re.findall(r"--[a-z-]+", parser.format_usage()))
        print(f"{COMMAND}: error: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{COMMAND}: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description="Draw the pictures of the mean-field theory."
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to write <picture>.png, <picture>.csv and figures.json to",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=PICTURES,
        metavar="NAME",
        help=f"pictures to draw, of {', '.join(PICTURES)} (default: all)",
    )
    sources.add_arguments(parser)
    return parser


def _run(options: argparse.Namespace) -> int:
    from mf_zoo.visualize import pictures

    pictures.new_figure()  # No matplotlib? Better now than after hours.
    inputs = sources.load(options.data_dir, options.images, options.train_images, options.network)
    with files.writing(options.output):
        options.output.mkdir(parents=True, exist_ok=True)
    records = files.read_json(options.output / RECORDS, "figures") or {}

    import keras

    from mf_zoo import devices

    about = {
        **inputs.about,
        "backend": keras.config.backend(),
        "versions": devices.versions(),
        "device": devices.device(),
    }
    failed = []
    for name in [name for name in PICTURES if name in (options.only or PICTURES)]:
        keras.utils.set_random_seed(SEED)  # whatever was drawn before
        begin = time.perf_counter()
        try:
            caption = _draw(name, inputs, options.output)
        except Exception as error:
            failed.append(name)
            if not isinstance(error, UserError):
                traceback.print_exc()
            print(f"{COMMAND}: {name} failed: {one_line(error)}", file=sys.stderr, flush=True)
            continue
        seconds = round(time.perf_counter() - begin, 1)
        print(f"{name:<12} {seconds:7.1f} s  {caption}", flush=True)
        records[name] = {"caption": caption, "seconds": seconds, **about, "date": devices.now()}
        files.write_json(options.output / RECORDS, records)
    return 1 if failed else 0


def _draw(name: str, inputs: sources.Inputs, folder: Path) -> str:
    """Draws one picture and writes its two files; returns its caption."""
    from mf_zoo.visualize import pictures

    module = importlib.import_module(f"mf_zoo.theory.figures.{name}")
    figure = pictures.new_figure()
    rows = module.draw(figure, inputs)
    _check_rows(name, rows)
    pictures.save(figure, folder / f"{name}.png")
    files.write_rows(folder / f"{name}.csv", rows, list(rows[0]))
    caption = (inspect.getdoc(module) or name).partition("\n\n")[0]
    return " ".join(caption.split()).rstrip(".")


def _check_rows(name: str, rows: Sequence[dict[str, Any]]) -> None:
    if not rows or any(list(row) != list(rows[0]) for row in rows):
        raise ValueError(
            f"`draw` of {name} must return rows, one or more, that all have the same keys. "
            f"Received: rows with the keys {sorted({tuple(row) for row in rows})}"
        )


if __name__ == "__main__":
    sys.exit(main())
