"""Weight files that are not in the package: the cache folder, and downloads into it."""

import contextlib
import http.client
import ipaddress
import os
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mf_zoo import __version__, files
from mf_zoo.weights.files import WeightFileError, verify
from mf_zoo.weights.record import Shard, WeightRecord

URL_VARIABLE = "MF_ZOO_WEIGHTS_URL"
CACHE_VARIABLE = "MF_ZOO_CACHE"
OFFLINE_VARIABLE = "MF_ZOO_OFFLINE"

ATTEMPTS = 3
PAUSE = 1.0  # seconds before the second attempt, twice that before the third
TIMEOUT = 30.0  # seconds without an answer, or without a byte of it
_CHUNK = 1 << 16
_TRANSIENT = (408, 425, 429)  # and every status from 500


_Part = Shard | WeightRecord  # one file, by `file`, `sha256` and `size`


class _Interrupted(Exception):
    """A download failed in a way that another attempt may mend."""


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """The folder that weight files are downloaded into.

    Args:
        cache_dir: The folder; `None` for that of the environment variable `MF_ZOO_CACHE`, else
            `mf_zoo` in the home of Keras (`KERAS_HOME`, else `~/.keras`).

    Returns:
        The folder, which need not exist.
    """
    chosen = cache_dir or os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    home = os.environ.get("KERAS_HOME")
    if not home:
        # Keras's own rule, which it has no public function for.
        user = os.path.expanduser("~")
        home = os.path.join(user if os.access(user, os.W_OK) else "/tmp", ".keras")
    return Path(home) / "mf_zoo"


def fetch(
    record: WeightRecord,
    *,
    base_url: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool | None = None,
    searched: Sequence[Path] = (),
) -> Path:
    """Finds a weight file in the cache, or downloads it into the cache.

    Processes that ask at once wait for the one that downloads. A download that was cut short,
    even by a kill, is kept beside its place as `*.partial`, and the next download resumes it.
    A damaged file in the cache is replaced, and never removed without a replacement. Weights in
    shards are brought shard by shard and the index last, each by these rules.

    Args:
        record: The record of the file.
        base_url: See `mf_zoo.weights.path`.
        cache_dir: See `cache_folder`.
        offline: See `mf_zoo.weights.path`.
        searched: Folders without the file, for the error message.

    Returns:
        Path of the file, whose size and SHA-256 digest are those of the record; of weights in
        shards, that of the index, beside its shards.

    Raises:
        WeightFileError: There is no whole file and none can be had.
    """
    folder = cache_folder(cache_dir)
    for part in record.files:
        _fetch(part, folder / part.file, base_url, offline, searched)
    return folder / record.file


def _fetch(
    part: _Part, file: Path, base_url: str | None, offline: bool | None, searched: Sequence[Path]
) -> None:
    """Has one file of a record be at its place in the cache, whole."""
    damage = None
    if os.path.isfile(file):
        try:
            verify(file, part.sha256, part.size)
            return
        except WeightFileError as error:
            damage = error
    base = _base(base_url)
    if base is None or (_is_offline(offline) and not base.startswith("file:")):
        if damage is not None:
            raise damage
        folders = ", ".join(str(folder) for folder in (*searched, file.parent))
        remedy = (
            "downloads are switched off (offline)"
            if base
            else f"to download it, set {URL_VARIABLE} or `base_url` to the https:// or file:// "
            "folder that holds it"
        )
        raise WeightFileError(
            f"The weight file {part.file} is missing from {folders}; {remedy}. "
            f"Received: {file}, which does not exist"
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = file.with_name(f"{file.name}.lock")
        with files.exclusive(lock, lambda: _say_that_we_wait(file)):
            if not _is_whole(file, part):  # Another process may have brought it meanwhile.
                _download(part, f"{base.rstrip('/')}/{part.file}", file)
    except OSError as error:
        raise WeightFileError(
            f"The weight file {part.file} ({part.size:,} bytes) must be written to the cache "
            f"{file.parent}: set {CACHE_VARIABLE} or `cache_dir` to a folder that has room and "
            f"can be written. Received: {error}"
        ) from error


def _base(base_url: str | None) -> str | None:
    """The base URL, checked; `None` if there is none."""
    base = os.environ.get(URL_VARIABLE) if base_url is None else base_url
    if not base:
        return None
    base = str(base)
    try:
        parts = urllib.parse.urlsplit(base)
        known = _may_ask(base) or (
            parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path[:1] == "/"
        )
        plain = not (parts.query or parts.fragment or parts.username or parts.password)
    except ValueError:
        known = plain = False
    if not (known and plain):
        raise WeightFileError(
            "The base URL of weight files must be an https:// or file:/// folder, or http:// on "
            f"this machine, without user name, query and fragment. Received: {base!r}"
        )
    return base


def _may_ask(url: str) -> bool:
    """Whether a URL is https, or http to this machine.

    The digest in the record protects the file on any way, but plain http over a network would
    tell others what is asked for and let them keep it back.
    """
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "https":
        return bool(host)
    if parts.scheme != "http":
        return False
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_offline(offline: bool | None) -> bool:
    if offline is not None:
        return offline
    value = os.environ.get(OFFLINE_VARIABLE, "")
    if value not in ("", "0", "1"):
        raise WeightFileError(f"{OFFLINE_VARIABLE} must be 0 or 1. Received: {value!r}")
    return value == "1"


def _is_whole(file: Path, part: _Part) -> bool:
    try:
        verify(file, part.sha256, part.size)
    except WeightFileError:
        return False
    return True


def _download(part: _Part, url: str, file: Path) -> None:
    """Brings a file to its place, whole or not at all; the caller holds its lock."""
    partial = file.with_name(f"{file.name}.partial")
    disk = shutil.disk_usage(file.parent)
    free = disk.free + _size(partial)
    if free < part.size and disk.total:  # 0 is a disk without a limit
        raise OSError(f"{free:,} bytes are free")
    attempts = 1 if url.startswith("file:") else ATTEMPTS
    failure: object = None
    with _progress(part) as show:
        for attempt in range(attempts):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                _receive(url, partial, part.size, show)
            except _Interrupted as error:
                failure = error
                continue
            except (WeightFileError, OSError):
                partial.unlink(missing_ok=True)
                raise
            # Read back, so that what is checked is what the disk holds.
            if not _is_whole(partial, part):
                partial.unlink()
                failure = f"a damaged or another file, its digest is not {part.sha256}"
                continue
            os.replace(partial, file)
            return
    raise WeightFileError(
        f"The weight file {part.file} could not be fetched from {url} in "
        f"{attempts} attempt{'s' if attempts > 1 else ''}. Received: {failure}"
    )


def _receive(url: str, partial: Path, size: int, show: Callable[[int], None]) -> None:
    """Appends to `partial` what it lacks of the `size` bytes at `url`."""
    done = _size(partial)
    if done == size:
        return
    headers = {"User-Agent": f"mf_zoo/{__version__}"}
    if 0 < done < size:
        headers["Range"] = f"bytes={done}-"
    try:
        response = _opener().open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            partial.unlink(missing_ok=True)
        elif error.code < 500 and error.code not in _TRANSIENT:
            raise WeightFileError(
                f"{url} must be a weight file. Received: status {error.code}, {error.reason}"
            ) from error
        raise _Interrupted(f"status {error.code}, {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(error) from error
    with response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            partial.unlink(missing_ok=True)
            raise _Interrupted(f"another range than {headers.get('Range')}")
        done = done if resumed else 0
        announced = response.headers.get("Content-Length", "")
        if announced.isdigit() and done + int(announced) != size:
            raise WeightFileError(
                f"{url} must have {size} bytes. Received: {done + int(announced)} bytes"
            )
        with partial.open("ab" if resumed else "wb") as file:
            while True:
                show(done)
                try:
                    chunk = response.read1(_CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    raise _Interrupted(f"{error} after {done} of {size} bytes") from error
                if not chunk:
                    break
                done += len(chunk)
                if done > size:
                    raise WeightFileError(f"{url} must have {size} bytes. Received: more")
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    if done < size:
        raise _Interrupted(f"the end after {done} of {size} bytes")


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only, or from http to http on this machine."""

    def redirect_request(self, request, response, code, message, headers, url):
        if not _may_ask(url) or (request.type == "https" and not url.startswith("https:")):
            raise WeightFileError(
                f"{request.full_url} must lead to an https:// address. Received: {url}"
            )
        return super().redirect_request(request, response, code, message, headers, url)


def _opener() -> urllib.request.OpenerDirector:
    # http is for this machine alone and must not go through a proxy, which is another.
    https = {key: url for key, url in urllib.request.getproxies().items() if key == "https"}
    return urllib.request.build_opener(urllib.request.ProxyHandler(https), _Redirects)


@contextlib.contextmanager
def _progress(part: _Part) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, where that is a terminal."""
    if not _on_terminal():
        yield lambda done: None
        return
    # Keras's own bar would write to standard output, among the results of a command.
    from rich import progress
    from rich.console import Console

    bar = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with bar:
        task = bar.add_task(part.file, total=part.size)
        yield lambda done: bar.update(task, completed=done)


def _say_that_we_wait(file: Path) -> None:
    if _on_terminal():
        print(f"Waiting for another process to download {file.name}", file=sys.stderr)


def _on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()
