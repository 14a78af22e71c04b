"""Log lines of other libraries, kept off standard error: TensorFlow, absl, JAX, oneDNN, CUDA.

C++ libraries write them to the file descriptor itself, some while they are being imported and
before they read any environment variable. So standard error is held back while such a library is
imported, and what is no log line is written afterwards.
"""

import contextlib
import importlib.abc
import importlib.machinery
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

# TensorFlow reads it. At 0 a user wants to see every line.
LEVEL = "TF_CPP_MIN_LOG_LEVEL"

# Packages that write log lines while they are imported.
_NOISY = frozenset(
    {
        "ai_edge_litert",
        "array_record",
        "grain",
        "jax",
        "keras",
        "keras_tuner",
        "onnxruntime",
        "tensorflow",
        "tensorflow_datasets",
        "tf2onnx",
        "torch",
    }
)

# Fatal messages (F) are none of them.
_LOG_LINE = re.compile(
    rb"""
    [IWE]\d{4}\ \S+\s+\d+\ \S+:\d+\]                            # absl, glog
    | WARNING:\ All\ log\ messages\ before\ absl
    | \d{4}-\d\d-\d\d\ [\d:.,]+:\ [IWE]\ \S+:\d+\]               # TensorFlow
    | To\ enable\ the\ following\ instructions:.*TensorFlow
    | (?:\x1b\[[\d;]*m)?\d{4}-\d\d-\d\d\ [\d:.,]+\ \[[IWE]:onnxruntime:
    | (?:INFO|WARNING):\ .*(?:TensorFlow\ Lite|LiteRT|delegate)
    """,
    re.VERBOSE,
)


def without_log_lines(text: bytes) -> bytes:
    """The text without the lines that are log messages of a C++ library.

    Args:
        text: What a library wrote to standard error.

    Returns:
        The other lines, in their order.

    Example:

    >>> mf_zoo.quiet.without_log_lines(b"I0000 00:00:1.5  42 stub.cc:31] No GPU\\nmine\\n")
    b'mine\\n'
    """
    return b"".join(
        line for line in text.splitlines(keepends=True) if not _LOG_LINE.match(line.lstrip())
    )


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Holds standard error back, the descriptor itself; then writes what is no log line.

    If the body raises an exception, all is written.
    """
    with contextlib.ExitStack() as stack:
        try:
            saved = os.dup(2)
            stack.callback(os.close, saved)
            held = stack.enter_context(tempfile.TemporaryFile(buffering=0))
        except OSError:  # It is closed, or no file can be made.
            yield
            return
        _flush()
        os.dup2(held.fileno(), 2)
        keep = without_log_lines
        try:
            yield
        except Exception:
            keep = bytes
            raise
        finally:
            _flush()
            os.dup2(saved, 2)
            held.seek(0)
            with open(os.dup(2), "wb") as file:
                file.write(keep(held.read()))


def _flush() -> None:
    if sys.stderr is not None:
        with contextlib.suppress(ValueError):  # It is closed.
            sys.stderr.flush()


class _Loader(importlib.abc.Loader):
    """Executes a module with standard error held back."""

    def __init__(self, loader: Any, lock: list[str]):
        self.loader = loader
        self.importing = lock

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # From here on the module has no sign of us, for some ask their loader for data.
        module.__spec__.loader = module.__loader__ = self.loader
        first = not self.importing
        self.importing.append(module.__name__)
        try:
            with held_back() if first else contextlib.nullcontext():
                self.loader.exec_module(module)
        finally:
            self.importing.remove(module.__name__)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds noisy packages as the other finders do, and has them imported by `_Loader`."""

    def __init__(self) -> None:
        self.importing: list[str] = []

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in _NOISY:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader, self.importing)
                return spec
        return None


@contextlib.contextmanager
def libraries() -> Iterator[None]:
    """Keeps log lines of other libraries off standard error; exceptions and fatal messages come.

    Messages of Python's `logging` up to warnings are switched off as well. With the environment
    variable `TF_CPP_MIN_LOG_LEVEL=0`, everything is left as it is.

    Example:

    >>> with mf_zoo.quiet.libraries():
    ...     import keras
    """
    level, logged = os.environ.get(LEVEL), logging.root.manager.disable
    if level == "0":
        yield
        return
    finder = _Finder()
    os.environ[LEVEL] = "3"
    logging.disable(logging.WARNING)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.meta_path.remove(finder)
        logging.disable(logged)
        if level is None:
            os.environ.pop(LEVEL, None)
        else:
            os.environ[LEVEL] = level
