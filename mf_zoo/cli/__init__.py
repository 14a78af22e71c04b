"""The `mf-zoo` command: a module for each subcommand or family of them."""

import argparse
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Sequence

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
from mf_zoo.training.runs import CONFIG, STATE

_SUBCOMMANDS = (zoo, fetch, predict, evaluate, export, train, tune, campaign, report, demo)


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
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        with _sigterm_as_interrupt():
            code = options.run(options) or 0
            sys.stdout.flush()
            return code
    except UserError as error:
        print(f"mf-zoo: error: {one_line(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of our output went away; nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as error:
        print(f"\nmf-zoo: interrupted{_how_to_resume(options)}", file=sys.stderr)
        return 143 if isinstance(error, _Terminated) else 130


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
    state = read_json(folder / STATE) or {"epoch": 0}
    return (
        f" after epoch {state['epoch']}; resume with: "
        f"mf-zoo train --resume --output {shlex.quote(str(folder))}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mf-zoo", description="Residual networks trained in the mean-field view of depth."
    )
    parser.add_argument("--version", action="version", version=f"mf-zoo {__version__}")
    commands = parser.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")
    for module in _SUBCOMMANDS:
        module.add_parser(commands)
    return parser
