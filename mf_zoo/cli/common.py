"""What the subcommands share."""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

from mf_zoo.training.runs import RunError


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error).split())


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--dataset`, `--data-dir` and `--threads`."""
    parser.add_argument("--dataset", help="cifar10 (default) or cifar100")
    parser.add_argument(
        "--data-dir", type=Path, metavar="D", help="folder of an .npz or tensorflow-datasets"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="limit the backend's threads")


@contextlib.contextmanager
def input_errors() -> Iterator[None]:
    """Complaints about what the user asked for end the command with one line and code 2."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        raise RunError(str(error)) from error
