"""Weight files from a cache and from servers that fail in every way."""

import contextlib
import dataclasses
import hashlib
import importlib.util
import os
import pathlib
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import filelock
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_weights import fields, finished_run, measured, rounded
from weight_server import Server, ranges, send, whole

from mf_zoo import weights
from mf_zoo.cli import main
from mf_zoo.weights import WeightFileError, WeightRecord, registry, remote

pytestmark = pytest.mark.once

CONTENT = np.random.default_rng(0).bytes(300_000)


def record_of(content=CONTENT, **changes):
    digest = hashlib.sha256(content).hexdigest()
    return WeightRecord(**fields(sha256=digest, size=len(content), **changes))


RECORD = record_of()


# What a server may answer


def wrong_range(handler):
    content = handler.server.content
    send(handler, content[:10], status=206, Content_Range=f"bytes 0-9/{len(content)}")


def cut(handler):
    """Half of the bytes that were announced."""
    content = handler.server.content
    send(handler, content[: len(content) // 2], len(content))


def short(handler):
    content = handler.server.content
    send(handler, content[: len(content) // 2])


def endless(handler):
    """No announced length, and more bytes than there should be."""
    handler.send_response(200)
    handler.end_headers()
    with contextlib.suppress(OSError):
        for _ in range(1000):
            handler.wfile.write(handler.server.content)


def corrupt(handler):
    content = bytearray(handler.server.content)
    content[len(content) // 3] ^= 1
    send(handler, bytes(content))


def stall(handler):
    """Half of the bytes, and the rest when the test says so."""
    content = handler.server.content
    half = len(content) // 2
    send(handler, content[:half], len(content))
    handler.server.release.wait(30)
    with contextlib.suppress(OSError):
        handler.wfile.write(content[half:])


def silent(handler):
    handler.server.release.wait(30)


def drop(handler):
    handler.wfile.write(b"HTTP/1.0 2")


def status(code):
    return lambda handler: send(handler, b"an error page", status=code)


def redirect(url):
    return lambda handler: send(handler, b"", status=302, Location=url)


@pytest.fixture(autouse=True)
def quick_and_private(monkeypatch):
    """Short waits, and none of the machine's own settings."""
    monkeypatch.setattr(remote, "PAUSE", 0.0)
    monkeypatch.setattr(remote, "TIMEOUT", 5.0)
    for name in (remote.URL_VARIABLE, remote.CACHE_VARIABLE, remote.OFFLINE_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with Server(CONTENT) as running:
        yield running


@pytest.fixture
def empty(tmp_path):
    """A registry without weight files."""
    folder = tmp_path / "registry"
    folder.mkdir()
    return folder


@pytest.fixture
def ask(empty, tmp_path, server):
    """Asks for RECORD, by default from the server."""

    def ask(record=RECORD, **changes):
        settings = {"base_url": server.url, "cache_dir": tmp_path / "cache", **changes}
        return weights.path(record, directory=empty, **settings)

    return ask


def cached(tmp_path):
    """What the cache holds, locks aside."""
    files = (tmp_path / "cache").glob("*")
    return sorted(file.name for file in files if file.suffix != ".lock")


# Where a file is looked for


def test_a_download_lands_in_the_cache_and_is_the_last(ask, server, tmp_path):
    file = ask()
    assert file == tmp_path / "cache" / RECORD.file
    assert file.read_bytes() == CONTENT
    assert server.requests == [("GET", f"/w/{RECORD.file}", None)]
    assert cached(tmp_path) == [RECORD.file]
    assert ask() == ask(base_url=None) == ask(offline=True) == file
    assert len(server.requests) == 1


@pytest.mark.parametrize("folder", [".", registry.LARGE])
def test_a_file_of_the_registry_needs_no_server(ask, empty, server, folder):
    (empty / folder).mkdir(exist_ok=True)
    (empty / folder / RECORD.file).write_bytes(CONTENT)
    assert ask() == empty / folder / RECORD.file
    (empty / folder / RECORD.file).write_bytes(CONTENT[:-1])
    with pytest.raises(WeightFileError, match="truncated"):
        ask()
    assert server.requests == []


def test_the_environment_says_where(empty, tmp_path, server, monkeypatch):
    monkeypatch.setenv("MF_ZOO_WEIGHTS_URL", server.url + "/")
    monkeypatch.setenv("MF_ZOO_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("MF_ZOO_OFFLINE", "1")
    with pytest.raises(WeightFileError, match=r"missing from .*mine; .*switched off \(offline\)"):
        weights.path(RECORD, directory=empty)
    monkeypatch.setenv("MF_ZOO_OFFLINE", "yes")
    with pytest.raises(WeightFileError, match=r"must be 0 or 1\. Received: 'yes'"):
        weights.path(RECORD, directory=empty)
    assert server.requests == []
    monkeypatch.setenv("MF_ZOO_OFFLINE", "0")
    assert weights.path(RECORD, directory=empty) == tmp_path / "mine" / RECORD.file
    assert [path for _, path, _ in server.requests] == [f"/w/{RECORD.file}"]
    # Arguments come before the environment.
    monkeypatch.setenv("MF_ZOO_WEIGHTS_URL", "https://nowhere.invalid")
    other = weights.path(RECORD, directory=empty, base_url=server.url, cache_dir=tmp_path / "b")
    assert other == tmp_path / "b" / RECORD.file


def test_the_cache_is_in_the_home_of_keras(monkeypatch, tmp_path):
    monkeypatch.delenv("KERAS_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert remote.cache_folder() == tmp_path / ".keras" / "mf_zoo"
    monkeypatch.setenv("HOME", str(tmp_path / "absent"))
    assert remote.cache_folder() == pathlib.Path("/tmp/.keras/mf_zoo")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "k"))
    assert remote.cache_folder() == tmp_path / "k" / "mf_zoo"
    # What Keras takes for its home when it is imported with this environment.
    keras_config = runpy.run_path(importlib.util.find_spec("keras.src.backend.config").origin)
    assert remote.cache_folder().parent == pathlib.Path(keras_config["keras_home"]())


def test_without_a_url_the_error_says_where_it_looked_and_what_to_set(ask, empty, tmp_path):
    with pytest.raises(WeightFileError) as error:
        ask(base_url=None)
    for said in (RECORD.file, empty, empty / "large", tmp_path / "cache", "MF_ZOO_WEIGHTS_URL"):
        assert str(said) in str(error.value)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("offline", [False, True])
def test_a_folder_as_url(ask, tmp_path, offline):
    mirror = tmp_path / "a mirror"
    mirror.mkdir()
    with pytest.raises(WeightFileError, match=r"in 1 attempt\. Received: .*No such file"):
        ask(base_url=mirror.as_uri(), offline=offline)
    (mirror / RECORD.file).write_bytes(CONTENT)
    assert ask(base_url=mirror.as_uri(), offline=offline).read_bytes() == CONTENT
    shutil.rmtree(tmp_path / "cache")
    (mirror / RECORD.file).write_bytes(CONTENT[::-1])
    with pytest.raises(WeightFileError, match="its digest is not"):
        ask(base_url=mirror.as_uri(), offline=offline)
    assert cached(tmp_path) == []


@pytest.mark.parametrize(
    "url",
    [
        *(
            "weights",
            pathlib.Path("/data"),
            "ftp://127.0.0.1/w",
            "data:,a",
            "file:w",
            "file://host/w",
        ),
        *("http://example.org/w", "http://127.0.0.1.example.org/w", "http://0.0.0.0/w", "https://"),
        *("https://user:secret@example.org", "https://example.org/w?x=1", "https://[/w"),
    ],
)
def test_other_urls_are_refused(ask, url):
    with pytest.raises(WeightFileError, match=r"base URL .*must be an https"):
        ask(base_url=url)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "[::1]"])
def test_http_is_for_this_machine(host):
    assert remote._base(f"http://{host}:8000/w") == f"http://{host}:8000/w"


def test_http_avoids_proxies(ask, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # where nothing answers
    monkeypatch.delenv("no_proxy", raising=False)
    assert ask().read_bytes() == CONTENT


# What goes wrong on the way


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        ([status(500), status(503)], [None, None, None]),
        ([status(429), drop], [None, None, None]),
        ([cut], [None, "bytes=150000-"]),
        ([cut, whole], [None, "bytes=150000-"]),
        ([cut, wrong_range], [None, "bytes=150000-", None]),
        ([cut, status(416)], [None, "bytes=150000-", None]),
        ([cut, drop], [None, "bytes=150000-", "bytes=150000-"]),
        ([corrupt], [None, None]),
        ([stall], [None, "bytes=150000-"]),
        ([silent], [None, None]),
    ],
    ids=lambda value: "-".join(getattr(answer, "__name__", "") for answer in value if answer),
)
def test_what_another_attempt_mends(ask, server, tmp_path, monkeypatch, answers, asked):
    monkeypatch.setattr(remote, "TIMEOUT", 0.2)
    server.script = list(answers)
    assert ask().read_bytes() == CONTENT
    assert [span for _, _, span in server.requests] == asked
    assert {command for command, _, _ in server.requests} == {"GET"}
    assert cached(tmp_path) == [RECORD.file]


@pytest.mark.parametrize(
    ("answer", "requests", "message"),
    [
        (status(404), 1, r"must be a weight file\. Received: status 404"),
        (status(403), 1, "status 403"),
        (short, 1, r"must have 300000 bytes\. Received: 150000 bytes"),
        (endless, 1, r"must have 300000 bytes\. Received: more"),
        (corrupt, 3, r"in 3 attempts\. Received: a damaged or another file"),
        (status(500), 3, r"in 3 attempts\. Received: status 500"),
        (silent, 3, r"in 3 attempts\. Received: .*timed out"),
    ],
)
def test_what_stays_wrong(ask, server, tmp_path, monkeypatch, answer, requests, message):
    monkeypatch.setattr(remote, "TIMEOUT", 0.2)
    server.answer = answer
    with pytest.raises(WeightFileError, match=message) as error:
        ask()
    assert len(server.requests) == requests
    assert server.url in str(error.value)
    assert cached(tmp_path) == []
    server.release.set()
    server.answer = ranges
    assert ask().read_bytes() == CONTENT


def test_pauses_between_attempts_grow(ask, server, monkeypatch):
    pauses = []
    monkeypatch.setattr(remote, "PAUSE", 1.5)
    monkeypatch.setattr(time, "sleep", pauses.append)
    server.script = [status(500), status(500)]
    ask()
    assert pauses == [1.5, 3.0]


def test_nobody_there(ask, tmp_path):
    with Server(CONTENT) as gone:
        url = gone.url
    with pytest.raises(WeightFileError, match=r"in 3 attempts\. Received: .*refused"):
        ask(base_url=url)
    assert cached(tmp_path) == []


@settings(max_examples=60, deadline=None)
@given(
    content=st.binary(min_size=1, max_size=200),
    answers=st.lists(
        st.sampled_from([ranges, whole, cut, short, corrupt, wrong_range, status(500), drop]),
        min_size=3,
        max_size=3,
    ),
    left=st.none() | st.binary(max_size=250),
    damaged=st.booleans(),
)
def test_a_file_is_whole_or_absent(shared, content, answers, left, damaged):
    """Whatever the server does, and whatever an earlier download left behind."""
    server, folder = shared
    server.content, server.script, server.requests = content, list(answers), []
    record = record_of(content)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    file = folder / record.file
    if left is not None:
        file.with_name(f"{file.name}.partial").write_bytes(left)
    if damaged:
        file.write_bytes(b"damaged" + content)
    try:
        assert remote.fetch(record, base_url=server.url, cache_dir=folder) == file
    except WeightFileError:
        # A damaged file goes when there is a whole one only, and one whole answer is enough.
        assert not damaged or file.read_bytes() == b"damaged" + content
        hopeless = {short, wrong_range} & set(answers)
        assert left is not None or whole not in answers or hopeless
    else:
        assert file.read_bytes() == content
        assert [path.suffix for path in folder.iterdir() if path != file] == [".lock"]
    assert len(server.requests) <= 3


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with Server(CONTENT) as running:
        yield running, tmp_path_factory.mktemp("shared") / "cache"


def test_a_damaged_cache_is_mended_never_emptied(ask, server, tmp_path):
    file = tmp_path / "cache" / RECORD.file
    file.parent.mkdir()
    for damaged in (CONTENT[:-1], CONTENT[::-1]):
        file.write_bytes(damaged)
        for alone in ({"base_url": None}, {"offline": True}):
            with pytest.raises(WeightFileError, match="damaged"):
                ask(**alone)
        server.script = [status(404)]
        with pytest.raises(WeightFileError, match="status 404"):
            ask()
        assert file.read_bytes() == damaged
        assert ask().read_bytes() == CONTENT


# Secure connections


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of this machine that nobody trusts, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    files = (folder / "certificate.pem", folder / "key.pem")
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-out", files[0], "-keyout", files[1]),
        ],
        check=True,
        capture_output=True,
    )
    return files


def test_https(ask, certificate, server, monkeypatch, tmp_path):
    with Server(CONTENT, certificate) as secure:
        with pytest.raises(WeightFileError, match=r"Received: .*CERTIFICATE_VERIFY_FAILED"):
            ask(base_url=secure.url)
        assert secure.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        secure.script = [redirect(f"{server.url}/{RECORD.file}")]
        with pytest.raises(WeightFileError, match=r"must lead to an https.*Received: http://127"):
            ask(base_url=secure.url)
        assert server.requests == [] and cached(tmp_path) == []
        # From https to https, as release pages do, with a query; and from http to https.
        target = f"{secure.url}/elsewhere?signature=1"
        for first in (secure, server):
            first.script = [redirect(target)]
            secure.requests.clear()
            assert ask(base_url=first.url).read_bytes() == CONTENT
            assert secure.requests[-1] == ("GET", "/w/elsewhere?signature=1", None)
            (tmp_path / "cache" / RECORD.file).unlink()


@pytest.mark.parametrize(
    "target", ["http://example.org/w", "ftp://127.0.0.1/w", "file:///etc/hostname"]
)
def test_redirects_that_lead_astray(ask, server, target):
    server.script = [redirect(target)]
    with pytest.raises(WeightFileError, match=rf"{target}|status 302"):
        ask()
    assert len(server.requests) == 1


# The disk


def test_no_room(ask, server, tmp_path):
    record = dataclasses.replace(RECORD, size=10**17)
    with pytest.raises(WeightFileError, match=r"has room.*Received: [\d,]+ bytes are free"):
        ask(record)
    assert server.requests == [] and cached(tmp_path) == []


WORKER = """
import pathlib, sys
from mf_zoo import weights
from mf_zoo.weights import remote

remote.PAUSE = 0.0
limit, record, cache, url = sys.argv[1:]
if limit != "-":
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
record = weights.WeightRecord.from_json(record)
print("asking", flush=True)
try:
    print(weights.path(record, directory="nowhere", cache_dir=cache, base_url=url))
except weights.WeightFileError as error:
    sys.exit(str(error))
"""


def worker(server, cache, limit="-", record=RECORD):
    """A process that asks for a record's weights."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, limit, record.to_json(), str(cache), server.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "asking\n"
    return process


def until(happened):
    end = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_the_disk_fills_up(server, tmp_path):
    _, error = worker(server, tmp_path / "cache", limit="200000").communicate(timeout=30)
    assert f"must be written to the cache {tmp_path / 'cache'}" in error
    assert "MF_ZOO_CACHE" in error and "File too large" in error
    assert len(error.strip().splitlines()) == 1
    assert cached(tmp_path) == [] and len(server.requests) == 1


def test_a_cache_that_is_a_file(ask, tmp_path):
    (tmp_path / "cache").write_text("")
    for folder in (tmp_path / "cache", tmp_path / "cache" / "below"):
        with pytest.raises(WeightFileError, match=r"must be written to the cache.*Received: .*Err"):
            ask(cache_dir=folder)


@contextlib.contextmanager
def unprivileged():
    """A user whom permissions bind, should the tests run as root."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_cache_that_cannot_be_written(server, monkeypatch):
    with tempfile.TemporaryDirectory() as folder:
        cache = pathlib.Path(folder)
        cache.chmod(0o555)
        with (
            unprivileged(),
            pytest.raises(WeightFileError, match=r"must be written .*Permission denied"),
        ):
            remote.fetch(RECORD, base_url=server.url, cache_dir=cache)
        assert list(cache.iterdir()) == [] and server.requests == []
        # A whole file in it needs no writing, and no lock.
        cache.chmod(0o755)
        (cache / RECORD.file).write_bytes(CONTENT)
        cache.chmod(0o555)
        with unprivileged():
            assert remote.fetch(RECORD, cache_dir=cache).read_bytes() == CONTENT
        (cache / RECORD.file).chmod(0)
        with unprivileged(), pytest.raises(WeightFileError, match="must be readable"):
            remote.fetch(RECORD, cache_dir=cache)
        cache.chmod(0o755)


# Several processes


def test_processes_that_ask_at_once_share_one_download(server, tmp_path):
    server.answer = stall
    processes = [worker(server, tmp_path / "cache") for _ in range(4)]
    until(lambda: server.requests)
    time.sleep(0.3)  # for the others to ask as well, if they were to
    assert all(process.poll() is None for process in processes)
    server.release.set()
    file = tmp_path / "cache" / RECORD.file
    for process in processes:
        assert process.communicate(timeout=30) == (f"{file}\n", "")
    assert file.read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_a_killed_download_leaves_nothing_false_and_is_taken_up(server, ask, tmp_path):
    server.script = [stall]
    process = worker(server, tmp_path / "cache")
    partial = tmp_path / "cache" / f"{RECORD.file}.partial"
    until(lambda: partial.exists() and partial.stat().st_size > 0)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    process.communicate()
    assert cached(tmp_path) == [partial.name]
    left = partial.stat().st_size
    assert 0 < left <= len(CONTENT) // 2
    assert ask().read_bytes() == CONTENT
    assert [span for _, _, span in server.requests] == [None, f"bytes={left}-"]
    assert cached(tmp_path) == [RECORD.file]


def test_who_waits_gets_the_file_of_the_one_before(ask, server, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    got = []
    with filelock.FileLock(cache / f"{RECORD.file}.lock"):
        thread = threading.Thread(target=lambda: got.append(ask()))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive() and server.requests == []
        (cache / RECORD.file).write_bytes(CONTENT)
    thread.join(30)
    assert got == [cache / RECORD.file] and server.requests == []


# Weights in several files

SHARDS = [CONTENT, CONTENT[::-1], CONTENT[:1000]]
INDEX = b'{"weight_map": {}}'
STEM = RECORD.stem


def sharded():
    """A record of SHARDS with INDEX, and the files' contents by name."""
    names = [f"{STEM}_{i:05}.weights.h5" for i in range(len(SHARDS))]
    shards = [
        {"file": name, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        for name, content in zip(names, SHARDS, strict=True)
    ]
    index = f"{STEM}.weights.json"
    files = dict(zip([*names, index], [*SHARDS, INDEX], strict=True))
    return record_of(INDEX, file=index, shards=shards), files


def test_shards_are_brought_once_and_taken_up_where_they_were_cut(ask, server, tmp_path):
    record, server.files = sharded()
    server.script = [ranges, cut, *[drop] * 2]
    with pytest.raises(WeightFileError, match=r"_00001\.weights\.h5 could not be fetched"):
        ask(record)
    names = list(server.files)
    assert cached(tmp_path) == [names[0], f"{names[1]}.partial"]
    server.requests.clear()
    file = ask(record)
    assert file == tmp_path / "cache" / record.file
    assert cached(tmp_path) == sorted(names)
    assert {name: (file.parent / name).read_bytes() for name in names} == server.files
    # The first was there, the second in part; the index comes last.
    assert server.requests == [
        ("GET", f"/w/{name}", span)
        for name, span in zip(names[1:], ["bytes=150000-", None, None], strict=True)
    ]
    server.requests.clear()
    assert ask(record) == ask(record, base_url=None) == ask(record, offline=True) == file
    assert server.requests == []


def test_one_damaged_shard_is_mended_alone(ask, server, empty, tmp_path):
    record, server.files = sharded()
    second = ask(record).with_name(record.shards[1].file)
    for damaged in (CONTENT, CONTENT[:-1], None):
        second.write_bytes(damaged) if damaged else second.unlink()
        with pytest.raises(WeightFileError, match=r"_00001\.weights\.h5 .*(damaged|missing)"):
            ask(record, offline=True)
        server.requests.clear()
        ask(record)
        assert [path for _, path, _ in server.requests] == [f"/w/{second.name}"]
        assert second.read_bytes() == SHARDS[1]


def test_processes_share_the_download_of_shards(server, tmp_path):
    record, server.files = sharded()
    server.script = [stall]
    processes = [worker(server, tmp_path / "cache", record=record) for _ in range(2)]
    until(lambda: server.requests)
    server.release.set()
    for process in processes:
        assert process.communicate(timeout=30) == (f"{tmp_path / 'cache' / record.file}\n", "")
    assert [path for _, path, _ in server.requests] == [f"/w/{name}" for name in server.files]


def test_fetch_of_shards(zoo, server, tmp_path, capsys):
    record, server.files = sharded()
    (zoo / f"{STEM}.json").write_text(record.to_json())
    lost = server.files.pop(record.shards[2].file)
    server.script = [ranges, ranges, status(404)]
    assert main(["fetch", "MFResNet20", "--url", server.url]) == 2
    error = capsys.readouterr().err
    assert "00002.weights.h5" in error and len(error.splitlines()) == 1
    server.files[record.shards[2].file] = lost
    assert main(["fetch", "MFResNet20", "--url", server.url]) == 0
    brought = f"MFResNet20 cifar10: {tmp_path / 'cache' / record.file}"
    assert capsys.readouterr().out.splitlines() == [brought]


# Progress


def test_progress_is_shown_on_a_terminal_only(server, tmp_path):
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    for terminal in (True, False):
        cache = tmp_path / str(terminal)
        process = subprocess.run(
            [sys.executable, "-c", WORKER, "-", RECORD.to_json(), cache, server.url],
            stdout=subprocess.PIPE,
            stderr=follower if terminal else subprocess.PIPE,
            text=True,
            check=True,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
        )
        assert process.stdout.split() == ["asking", str(cache / RECORD.file)]
        assert not process.stderr
    os.close(follower)
    shown = b""
    with contextlib.suppress(OSError):  # the end, on Linux
        while part := os.read(leader, 1 << 16):
            shown += part
    os.close(leader)
    assert RECORD.file[:20].encode() in shown and b"300.0/300.0 kB" in shown


# Publishing, the command and the builders


def test_the_limit_suits_the_zoo():
    # ResNet-110 (1.7 million parameters) rides along; ResNeXt-29 (from 4.8 million) does not.
    assert 4 * 1.8e6 < registry.LARGEST_IN_WHEEL < 4 * 4.8e6


@pytest.fixture
def zoo(tmp_path, monkeypatch, server):
    """A registry of two models, whose file the server has for one."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    plain = record_of(b"another", model="ResNet20", file="resnet20-cifar10.weights.h5")
    for record in (RECORD, plain):
        (folder / f"{record.stem}.json").write_text(record.to_json())
    monkeypatch.setattr(registry, "FOLDER", folder)
    (folder / plain.file).write_bytes(b"another")
    monkeypatch.setenv("MF_ZOO_CACHE", str(tmp_path / "cache"))
    return folder


def test_fetch(zoo, server, tmp_path, capsys):
    there = f"ResNet20 cifar10: {zoo / 'resnet20-cifar10.weights.h5'}"
    brought = f"MFResNet20 cifar10: {tmp_path / 'cache' / RECORD.file}"
    assert main(["fetch", "--all"]) == 2
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [there]
    assert "set MF_ZOO_WEIGHTS_URL" in captured.err and len(captured.err.splitlines()) == 1
    assert main(["fetch", "MFResNet20", "--url", server.url, "--offline"]) == 2
    assert "switched off" in capsys.readouterr().err
    assert main(["fetch", "MFResNet20", "--weights", "cifar10", "--url", server.url]) == 0
    assert capsys.readouterr().out.splitlines() == [brought]
    assert main(["fetch", "--all", "--offline"]) == 0
    assert capsys.readouterr().out.splitlines() == [brought, there]
    other = tmp_path / "other"
    assert main(["fetch", "MFResNet20", "--url", server.url, "--cache", str(other)]) == 0
    assert (other / RECORD.file).read_bytes() == CONTENT
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"Either models or --all must be given. Received: []"),
        (["ResNet20", "--all"], "Received: ['ResNet20']"),
        (["ResNet21"], "['MFResNet20', 'ResNet20'] have some. Received: ResNet21"),
        (["ResNet20", "--weights", "cifar100"], "named 'cifar100'"),
        (["--all", "--weights", "cifar100"], "Received: --all"),
        (["MFResNet20", "--url", "ftp://a"], "must be an https://"),
    ],
)
def test_fetch_refuses(zoo, capsys, arguments, message):
    assert main(["fetch", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_a_builder_downloads_its_weights(tmp_path, monkeypatch):
    from mf_zoo import applications

    folder = tmp_path / "zoo"
    folder.mkdir()
    trained = applications.MFResNet20()
    for weight in trained.weights:
        weight.assign(np.random.default_rng(1).uniform(0.1, 1, weight.shape))
    trained.save_weights(tmp_path / "trained.weights.h5")
    content = (tmp_path / "trained.weights.h5").read_bytes()
    record = record_of(content, parameters=trained.count_params())
    (folder / f"{record.stem}.json").write_text(record.to_json())
    monkeypatch.setattr(registry, "FOLDER", folder)
    monkeypatch.setenv("MF_ZOO_CACHE", str(tmp_path / "cache"))
    with pytest.raises(WeightFileError, match="MF_ZOO_WEIGHTS_URL"):
        applications.MFResNet20(weights="cifar10")
    with Server(content) as server:
        monkeypatch.setenv("MF_ZOO_WEIGHTS_URL", server.url)
        server.script = [status(500), cut]
        model = applications.MFResNet20(weights="cifar10")
        assert len(server.requests) == 3
        monkeypatch.setenv("MF_ZOO_OFFLINE", "1")
        again = applications.MFResNet20(weights="cifar10", include_top=False)
        assert len(server.requests) == 3
    for loaded in (model, again):
        names = [layer.name for layer in loaded.layers]
        for layer in (layer for layer in trained.layers if layer.name in names):
            for ours, theirs in zip(
                loaded.get_layer(layer.name).get_weights(), layer.get_weights(), strict=True
            ):
                np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_a_builder_downloads_weights_in_half_precision_and_shards(
    tmp_path, monkeypatch, server, scheme
):
    from mf_zoo import applications

    mirror, zoo = tmp_path / "mirror", tmp_path / "zoo"
    trained = applications.MFResNet20()
    rng = np.random.default_rng(1)
    for weight in trained.weights:
        weight.assign(rng.uniform(0.1, 1, weight.shape))
    record = weights.publish(
        finished_run(tmp_path / "run", trained),
        directory=mirror,
        dtype="float16",
        evaluate=lambda file: measured(8.25),
        max_shard_size=200_000,
    )
    assert len(record.shards) >= 3 and record.total_size < 0.6 * 4 * trained.count_params()
    zoo.mkdir()
    shutil.copy(mirror / f"{record.stem}.json", zoo)
    monkeypatch.setattr(registry, "FOLDER", zoo)
    monkeypatch.setenv("MF_ZOO_CACHE", str(tmp_path / "cache"))
    server.files = {part.file: (mirror / part.file).read_bytes() for part in record.files}
    url = server.url if scheme == "http" else mirror.as_uri()
    monkeypatch.setenv("MF_ZOO_WEIGHTS_URL", url)
    model = applications.MFResNet20(weights="cifar10")
    assert cached(tmp_path) == sorted(server.files)
    assert len(server.requests) == (len(server.files) if scheme == "http" else 0)
    for ours, theirs in zip(model.get_weights(), rounded(trained, "predictions"), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # The same files by their path, as a user's own.
    again = applications.MFResNet20(weights=str(tmp_path / "cache" / record.file))
    assert all(map(np.array_equal, again.get_weights(), model.get_weights()))
