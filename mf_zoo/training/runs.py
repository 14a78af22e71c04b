"""The run folder: what it holds, and writing to it so that a kill leaves it whole."""

import contextlib
import csv
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

CONFIG = "config.json"
STATE = "state.json"
RESULT = "result.json"
HISTORY = "history.csv"
TIMES = "times.csv"
WEIGHTS = "final.weights.h5"
TENSORBOARD = "tensorboard"
LOCK = ".lock"


class RunError(Exception):
    """A run cannot go on for a reason outside the program: bad input, or no room to write."""


@contextlib.contextmanager
def writing(path: Path):
    """Turns the failure to write `path` into a `RunError` that says so."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(f"Cannot write {path}: {reason}") from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lets one process at a time write to a folder, which is made; the lock dies with its holder.

    Raises:
        RunError: If another process has it.
    """
    import filelock

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise RunError(
                f"A folder must be written to by one process at a time. Received: {folder}, where "
                "another one is at work"
            ) from error
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether another process is writing to a folder now."""
    if not (folder / LOCK).exists():
        return False
    try:
        with locked(folder):
            return False
    except RunError:
        return True


def write_atomically(path: Path, write: Callable[[Path], None]) -> str:
    """Has `write` fill a file beside `path`, then renames it; returns its SHA-256.

    Whatever happens, `path` is either the old file or the complete new one.
    """
    partial = path.with_name(f"partial-{path.name}")
    try:
        with writing(path):
            write(partial)
            with open(partial, "rb+") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return digest


def write_json(path: Path, data: Mapping[str, Any]):
    """Writes `data` as JSON, atomically."""
    text = json.dumps(data, indent=2) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> dict[str, Any] | None:
    """Reads a JSON file of the run folder; `None` if there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(
            f"A run's {path.name} must be readable JSON: {error}. Received: {path}"
        ) from error


def sha256(*paths: Path) -> str:
    """Returns the SHA-256 of a file, or of several one after another, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]], columns: Iterable[str]):
    """Appends rows to a CSV file, which gets its header line with the first row."""
    columns = list(columns)
    with writing(path), open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows(rows)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], columns: Iterable[str]):
    """Writes a CSV file, atomically."""

    def write(partial: Path) -> None:
        with open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(columns), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Reads the rows of a CSV file; none if there is no file."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def drop_rows_after(path: Path, epoch: int):
    """Drops from a CSV file the rows of later epochs, and a row cut short by a kill."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = lines[:1] + [
        line for line in lines[1:] if line.endswith("\n") and int(line.split(",", 1)[0]) <= epoch
    ]
    text = "".join(kept)
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def now() -> str:
    """Returns the time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that matter to a run."""
    import keras

    backend = keras.config.backend()
    found = {"python": platform.python_version()}
    for package in ("mf_zoo", "keras", backend, "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def device(threads: int | None = None) -> str:
    """Describes what the active backend computes on: the accelerator's or the CPU's model.

    Args:
        threads: The number of threads it was limited to.
    """
    from mf_zoo.devices import accelerator

    found = accelerator()
    if found is not None:
        return found
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = threads or cores
    return f"{model}, {count} thread{'' if count == 1 else 's'}"


def limit_threads(threads: int) -> bool:
    """Limits the threads of the active backend; returns whether that backend lets us.

    Must come before the backend's first computation. JAX sizes its pool by the cores the process
    may run on, so there `taskset` is the way.
    """
    import keras

    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        try:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(min(threads, 2))
        except RuntimeError:
            return False
        return True
    if backend == "torch":
        import torch

        torch.set_num_threads(threads)
        return True
    return False
