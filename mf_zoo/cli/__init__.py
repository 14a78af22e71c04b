"""The `mf-zoo` command: a module for each subcommand or family of them.

No module here imports Keras, NumPy or another large package before a subcommand needs it, so that
the command answers at once where it can.
"""

import argparse
import contextlib
import errno
import os
import re
import shlex
import signal
import sys
from collections.abc import Collection, Sequence
from typing import Any

from mf_zoo import __version__
from mf_zoo.cli import (
    campaign,
    demo,
    evaluate,
    export,
    fetch,
    predict,
    report,
    train,
    tune,
    zoo,
)
from mf_zoo.errors import UserError, one_line
from mf_zoo.files import read_json
from mf_zoo.training.runs import CONFIG, RUNGS, STATE

_SUBCOMMANDS = (zoo, fetch, predict, evaluate, export, train, tune, campaign, report, demo)

# Flags that have another name than the argument of the function that the subcommand calls.
_FLAG_OF = {"name": "dataset", "path": "output"}


class _Terminated(KeyboardInterrupt):
    """SIGTERM."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the `mf-zoo` command.

    Args:
        arguments: The command line without the program's name; `sys.argv` by default.

    Returns:
        The exit code: 0; 2 for bad usage or input (one line on standard error says what);
        130 or 143 after SIGINT or SIGTERM. Anything else is a traceback and 1.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    options.command_line = shlex.join(["mf-zoo", *arguments])
    if sys.stdout is None:  # closed by whoever started the command: nobody reads what it prints
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    elif hasattr(sys.stdout, "reconfigure"):
        # A file name need not be text that standard output can show.
        sys.stdout.reconfigure(errors="backslashreplace")

    # Here, for help and errors of arguments need neither.
    from mf_zoo import plugins, quiet

    modules = [*options.imports, *getattr(options, "more_imports", [])]
    try:
        with _sigterm_as_interrupt(), quiet.libraries(), plugins.handed_on(modules):
            plugins.load_entry_points()
            plugins.load(modules)
            code = options.run(options) or 0
            sys.stdout.flush()
            return code
    except UserError as error:
        text = one_line(error)
        print(f"mf-zoo: error: {in_flags(text, options.flags)}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of our output went away; nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        # Where files of ours are written it is a `UserError`: this is the output itself.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"mf-zoo: error: Cannot write the output: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"\nmf-zoo: interrupted{_how_to_resume(options)}", file=sys.stderr)
        return 143 if isinstance(error, _Terminated) else 130


def in_flags(text: str, flags: Collection[str]) -> str:
    """Names the flags of a subcommand in a message that names arguments of a Python function.

    Args:
        text: The message, with arguments in backticks, or followed by `=` where it says what was
            received.
        flags: The flags that there are, such as `"--output"`. Other names stay as they are.

    Example:

    >>> in_flags("Give `overwrite=True` or another `path`. Received: path='a'", ["--path"])
    "Give `overwrite=True` or another `--path`. Received: --path='a'"
    """

    def flag(name: str) -> str | None:
        for known in (name, _FLAG_OF.get(name, name)):
            if (named := f"--{known.replace('_', '-')}") in flags:
                return named
        return None

    def argument(match: re.Match[str]) -> str:
        named, value = flag(match["name"]), match["value"]
        if named is None:
            return match[0]
        return f"`{named}`" if value in (None, "True") else f"`{named} {value}`"

    text = re.sub(r"`(?P<name>[a-z][a-z0-9_]*)(?:=(?P<value>\w+))?`", argument, text)
    said, before, received = text.partition("Received: ")
    received = re.sub(
        r"(?<![\w`./-])([a-z][a-z0-9_]*)(?==)", lambda match: flag(match[1]) or match[0], received
    )
    return said + before + received


@contextlib.contextmanager
def _sigterm_as_interrupt():
    def terminate(number, frame):
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # Not the main thread, where signals do not arrive.
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _how_to_resume(options: argparse.Namespace) -> str:
    folder = getattr(options, "output", None)
    if options.subcommand == "tune":
        return tune.how_to_resume(options)
    if folder is None or not (folder / CONFIG).exists():
        return ""
    try:
        states = [read_json(path / STATE, "state") for path in (folder, *folder.glob(f"{RUNGS}/*"))]
    except UserError:  # resuming will say so
        return ""
    epoch = max(state["epoch"] if state else 0 for state in states)
    return (
        f" after epoch {epoch}; resume with: "
        f"mf-zoo train --resume --output {shlex.quote(str(folder))}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mf-zoo",
        description="Residual networks trained in the mean-field view of depth.",
        epilog="Log lines of TensorFlow and other libraries are left out; the environment variable "
        "TF_CPP_MIN_LOG_LEVEL=0 shows them.",
    )
    parser.add_argument("--version", action="version", version=f"mf-zoo {__version__}")
    _add_import(parser, dest="imports", default=[])
    commands = parser.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")
    for module in _SUBCOMMANDS:
        module.add_parser(commands)
    for command in commands.choices.values():
        _add_import(command, dest="more_imports", default=argparse.SUPPRESS)
        if command.get_default("flags") is None:
            flags = re.findall(r"--[a-z][a-z-]*", command.format_usage())
            command.set_defaults(flags=frozenset(flags))
    return parser


def _add_import(parser: argparse.ArgumentParser, **options: Any) -> None:
    parser.add_argument(
        "--import",
        action="append",
        metavar="MODULE",
        help="import a module that registers networks, datasets or rules; may be repeated",
        **options,
    )
