"""Files: written whole or not at all, read with one clear error, locked against other writers."""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mf_zoo.errors import UserError, one_line, short

LOCK = ".lock"
_LARGEST = 2**28  # bytes of a text; the history of a long training takes some 10 MB


def is_of_the_disk(error: BaseException | None) -> bool:
    """Whether the system refused to read or write; h5py says so in the text of other errors."""
    return getattr(error, "errno", None) is not None or "errno = " in str(error)


@contextlib.contextmanager
def writing(path: Path):
    """Turns a failure to write `path` into a `UserError` that says so."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"Cannot write {path}: {reason}") from error
    except UnicodeEncodeError as error:  # what a file name that is no UTF-8 is read as
        raise UserError(
            f"Cannot write {path}: text must be Unicode, and names of files in it UTF-8. "
            f"Received: {short(error.object[error.start : error.end])}"
        ) from error
    except RuntimeError as error:
        if not is_of_the_disk(error):
            raise
        raise UserError(f"Cannot write {path}: {one_line(error)}") from error


@contextlib.contextmanager
def exclusive(lock: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Lets one process or thread at a time run the body; the lock dies with its holder.

    Args:
        lock: The lock file, in a folder that exists.
        waiting: What to call before it waits for another holder; `None` not to wait.

    Raises:
        TimeoutError: If another one holds the lock and `waiting` is `None`.
        OSError: If the lock file cannot be written.
    """
    import filelock

    held = filelock.FileLock(lock)
    try:
        held.acquire(timeout=0)
    except filelock.Timeout:
        if waiting is None:
            raise
        waiting()
        held.acquire()
    try:
        yield
    finally:
        held.release()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lets one process at a time write to a folder, which is made; the lock dies with its holder.

    Raises:
        UserError: If another process has it.
    """
    with contextlib.ExitStack() as stack:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(exclusive(folder / LOCK))
            except TimeoutError as error:
                raise UserError(
                    f"A folder must be written to by one process at a time. Received: {folder}, "
                    "where another one is at work"
                ) from error
        yield


def is_locked(folder: Path) -> bool:
    """Whether another process is writing to a folder now."""
    if not (folder / LOCK).exists():
        return False
    try:
        with locked(folder):
            return False
    except UserError:
        return True


def write_atomically(path: Path, write: Callable[[Path], None]) -> str:
    """Has `write` fill a file beside `path`, then renames it; returns its SHA-256.

    Whatever happens, `path` is either the old file or the complete new one. After a loss of power
    too: the file reaches the disk before its new name does, and the name before this returns,
    except on Windows, which cannot flush a folder.
    """
    partial = path.with_name(f"partial-{path.name}")
    try:
        with writing(path):
            write(partial)
            with open(partial, "rb+") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            os.replace(partial, path)
            _flush_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return digest


def _flush_folder(folder: Path) -> None:
    """Has the names in a folder reach the disk, where the platform and its file system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
            raise
    finally:
        os.close(descriptor)


def write_json(path: Path, data: Mapping[str, Any]):
    """Writes `data` as JSON, atomically."""
    text = json.dumps(data, indent=2) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _text(path: Path) -> str:
    """The text of a file, with its line ends; one that no writer of ours makes is not read.

    Raises:
        OSError: If it cannot be read, is a pipe or a device, or too large.
        UnicodeDecodeError: If it is not UTF-8.
    """

    def opened(name: str, flags: int) -> int:
        # Without it, opening a pipe waits for a writer.
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    with open(path, newline="", encoding="utf-8", opener=opened) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError("no regular file")
        if found.st_size > _LARGEST:
            raise OSError(f"{found.st_size} bytes, more than {_LARGEST}")
        return file.read()


def read_json(path: Path, kind: str) -> dict[str, Any] | None:
    """Reads a JSON file of ours; `None` if there is no such file.

    Args:
        path: The file.
        kind: What it is, a name of `mf_zoo.schemas.JSON`, which says what must be in it. It may
            hold more, as files of other versions do.

    Returns:
        What it holds, with the default of each setting that an older version left out.

    Raises:
        UserError: If the file cannot be read or holds anything else.
    """
    from mf_zoo import schemas

    try:
        found = json.loads(_text(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{path.name} must be readable JSON: {error}. Received: {path}") from error
    if not isinstance(found, dict):
        raise UserError(
            f"{path} must hold a JSON object. Received: {short(found)}, a {type(found).__name__}"
        )
    return schemas.check_object(kind, found, path)


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
        ValueError: If it is no TOML, or nested too deep.
        OSError: If it cannot be read.
    """
    try:
        return tomllib.loads(_text(path))
    except (ValueError, RecursionError, MemoryError) as error:  # also of UTF-8, and of long numbers
        raise ValueError(f"{path.name} must be TOML: {error}. Received: {path}") from error


def sha256(*paths: Path) -> str:
    """Returns the SHA-256 of a file, or of several one after another, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]], columns: Iterable[str]):
    """Appends rows to a CSV file, which gets its header line with the first row.

    They have reached the disk when it returns.
    """
    columns = list(columns)
    with writing(path), open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())


def drop_rows_after(path: Path, epoch: int):
    """Drops from a CSV file the rows of later epochs, and a row cut short by a kill.

    The first column is the epoch.

    Raises:
        UserError: If the file cannot be read, or a row begins with anything else.
    """
    if not path.exists():
        return
    with _reading_rows(path):
        lines = list(io.StringIO(_text(path), newline=""))
    kept = lines[:1]
    for number, line in enumerate(lines[1:], 2):
        if not line.endswith("\n"):
            continue
        first = line.split(",", 1)[0]
        if not re.fullmatch("[0-9]{1,18}", first):
            raise UserError(
                f"`epoch` in line {number} of {path} must be a whole number from 0. "
                f"Received: {short(first)}"
            )
        if int(first) <= epoch:
            kept.append(line)
    text = "".join(kept)
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], columns: Iterable[str]):
    """Writes a CSV file, atomically."""

    def write(partial: Path) -> None:
        with open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(columns), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)


def read_rows(path: Path, kind: str | None = None, growing: bool = False) -> list[dict[str, str]]:
    """Reads the rows of a CSV file; none if there is no file.

    Args:
        path: The file.
        kind: What it is, a name of `mf_zoo.schemas.TABLES`, which says what its columns must hold:
            each value is then one that its type reads. `None` for any columns.
        growing: Whether the file may be written to now, or its writer may have been killed: a last
            line without an end is left out.

    Raises:
        UserError: If it cannot be read, is no CSV, or holds anything else.
    """
    from mf_zoo import schemas

    with contextlib.suppress(FileNotFoundError), _reading_rows(path):
        lines = list(io.StringIO(_text(path), newline=""))
        if growing and lines and not lines[-1].endswith("\n"):
            lines.pop()
        reader = csv.DictReader(lines)
        rows = list(reader)
        schemas.check_rows(kind, list(reader.fieldnames or ()), rows, path)
        return rows
    return []


@contextlib.contextmanager
def _reading_rows(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError, csv.Error, MemoryError) as error:
        raise UserError(f"{path.name} must be readable CSV: {error}. Received: {path}") from error
