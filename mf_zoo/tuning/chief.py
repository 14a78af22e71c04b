"""A search by several processes: a chief hands out the trials, workers run them."""

import contextlib
import ipaddress
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from mf_zoo.errors import UserError, user_errors
from mf_zoo.training import runs
from mf_zoo.tuning.folder import load_data, make_tuner, read_search
from mf_zoo.tuning.hypermodel import MeanFieldHyperModel
from mf_zoo.tuning.settings import SearchSettings

_NO_PROXY = "no_grpc_proxy"  # read by gRPC, in this spelling
_PATIENCE = 60.0  # seconds that a worker waits for its chief to appear


def work(
    output: str | Path,
    *,
    worker: str,
    tuner_id: str | None = None,
    data_dir: str | Path | None = None,
    threads: int | None = None,
    verbose: str | int = 0,
) -> None:
    """Runs trials for the chief of a search until there are none left.

    The settings are those in the search's folder, which chief and workers share: Hyperband resumes
    from checkpoints that another worker wrote.

    Args:
        output: The folder that the chief writes.
        worker: `"HOST:PORT"` of the chief.
        tuner_id: Name of this worker, unlike all others; `None` for one made of the machine's name
            and the process's number. A worker that was killed and is started again under its name
            runs its trial again at once. Under another name it does so after `worker_timeout`.
        data_dir: Where `mf_zoo.data.load` finds the dataset here; `None` for where the chief
            was told to look.
        threads: Limit for the threads of the backend (TensorFlow, PyTorch).
        verbose: Of `keras.Model.fit` in a trial.

    Raises:
        UserError: If there is no chief, or it goes away.
    """
    import grpc

    worker = check_address("worker", worker)
    name = f"{socket.gethostname()}-{os.getpid()}".replace("chief", "")
    name = name if tuner_id is None else tuner_id
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or "chief" in name:
        raise UserError(
            "`tuner_id` must be made of letters, digits, '_', '.' and '-', and not contain "
            f"'chief'. Received: {tuner_id!r}"
        )
    folder = Path(output)
    if (folder / runs.RESULT).exists():
        raise UserError(f"The search in {folder} is finished: see {folder / runs.RESULT}")
    with grpc.insecure_channel(worker) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_PATIENCE)
        except grpc.FutureTimeoutError as error:
            raise UserError(
                f"No chief answers within {_PATIENCE:g} s. Received: {worker}"
            ) from error
    config = read_search(folder)
    with user_errors():
        settings = SearchSettings.from_dict(config)
        hypermodel = MeanFieldHyperModel.from_settings(settings)
    hypermodel.normalization = runs.normalization(config)
    training, validation = load_data(settings, data_dir or config["data_dir"], threads)
    with environment(worker, name):
        one = make_tuner(folder, settings, hypermodel, heartbeat=config["worker_timeout"] / 4)
        if (folder / runs.RESULT).exists():  # The others have ended the search in the meantime.
            return
        try:
            one.search(
                *training,
                validation_data=validation,
                epochs=settings.recipe.epochs,
                verbose=verbose,
            )
        except grpc.RpcError as error:
            for _ in range(50):  # The chief writes it when it has closed the port.
                if (folder / runs.RESULT).exists():
                    return
                time.sleep(0.1)
            raise UserError(
                f"The chief at {worker} does not answer any more. Received: {error.code().name}, "
                f"{error.details()}"
            ) from error


def check_address(name: str, address: str) -> str:
    """Checks `HOST:PORT`; returns it, a bare port or `:PORT` with the loopback address."""
    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536 or " " in host:
        raise UserError(f"`{name}` must be HOST:PORT. Received: {address!r}")
    return f"{host or '127.0.0.1'}:{port}"


def check_chief(address: str, allow_remote: bool) -> str:
    """Checks the address that a chief is to listen at.

    Args:
        address: `HOST:PORT`, a bare port, or `:PORT`.
        allow_remote: Whether it may be one that other machines reach.

    Returns:
        `HOST:PORT`.

    Raises:
        UserError: For another address.
    """
    address = check_address("chief", address)
    if not allow_remote and not is_loopback(address):
        raise UserError(
            "The port of a search is neither encrypted nor protected, so `chief` must be an "
            "address of this machine alone, such as 127.0.0.1, unless you allow remote workers "
            f"(`allow_remote`, --allow-remote). Received: chief={address!r}"
        )
    return address


def is_loopback(address: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        found = socket.getaddrinfo(host, None)
    except OSError as error:
        raise UserError(f"`chief` must be a known host: {error}. Received: {host!r}") from error
    return all(ipaddress.ip_address(one[4][0].partition("%")[0]).is_loopback for one in found)


@contextlib.contextmanager
def environment(address: str, tuner_id: str) -> Iterator[None]:
    """What keras-tuner reads of the environment, for a while."""
    host, _, port = address.rpartition(":")
    values = {
        "KERASTUNER_ORACLE_IP": host,
        "KERASTUNER_ORACLE_PORT": port,
        "KERASTUNER_TUNER_ID": tuner_id,
    }
    if is_loopback(address):  # gRPC goes through a proxy of the environment, to there too.
        exceptions = os.environ.get(_NO_PROXY) or os.environ.get("no_proxy") or ""
        values[_NO_PROXY] = f"{exceptions},{host.strip('[]')}".strip(",")
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def as_chief(address: str | None) -> Iterator[None]:
    """Makes this process the chief at an address for a while; `None` leaves it as it is.

    Raises:
        UserError: If the machine cannot listen there.
    """
    if address is None:
        yield
        return
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # gRPC would share the port with another chief of the same user and say nothing.
    with socket.socket(family) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host.strip("[]"), int(port)))
        except OSError as error:
            raise UserError(
                f"`chief` must be an address that this machine can listen at: {error.strerror}. "
                f"Received: {address!r}"
            ) from error
    with environment(address, "chief"):
        yield
