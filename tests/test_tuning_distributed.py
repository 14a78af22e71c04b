"""A search by a chief and workers, some of which are lost."""

import csv
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import keras_tuner
import pytest

from mf_zoo import cli
from mf_zoo.errors import UserError
from mf_zoo.tuning import SearchSettings, chief, oracles, tune, work

pytestmark = pytest.mark.once_on_torch

HERE = pathlib.Path(__file__).parent
TIMEOUT = 10.0


# --- The oracle, by a clock of our own -------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

    monkeypatch.setattr(oracles.time, "monotonic", lambda: Clock.now)
    return Clock


def _oracle(folder, trials=3, kind=oracles.RandomSearchOracle, **arguments):
    given = keras_tuner.HyperParameters()
    given.Float("x", 0.0, 1.0)
    oracle = kind("val_accuracy", seed=1, hyperparameters=given, **arguments)
    oracle.max_trials = trials
    oracle._set_project_dir(str(folder), "search")  # as a tuner does
    oracle.worker_timeout = TIMEOUT
    oracle.verbose = 0
    return oracle


def _end(oracle, trial, accuracy=0.5):
    oracle.update_trial(trial.trial_id, {"val_accuracy": accuracy})
    trial.status = "COMPLETED"
    oracle.end_trial(trial)


def test_the_trial_of_a_lost_worker_is_run_by_another(tmp_path, clock, capsys):
    oracle = _oracle(tmp_path, trials=2)
    lost = oracle.create_trial("a")
    clock.now += TIMEOUT - 1
    other = oracle.create_trial("b")
    assert other.trial_id != lost.trial_id
    _end(oracle, other)
    # All trials are given out: `b` is not sent home while one of them may need it.
    assert oracle.create_trial("b").status == "IDLE"
    clock.now += 2
    oracle.update_trial(lost.trial_id, {"val_accuracy": 0.9})  # reported, but never ended
    again = oracle.create_trial("b")
    assert (again.trial_id, again.status) == (lost.trial_id, "RUNNING")
    assert not again.metrics.exists("val_accuracy")
    assert again.hyperparameters.values == lost.hyperparameters.values
    assert "trial 0: b takes it over from a, not heard of for 10 s" in capsys.readouterr().out
    assert oracle.tuner_ids == {"b"}
    _end(oracle, again)
    assert oracle.create_trial("b").status == "STOPPED"
    assert not oracle.tuner_ids and not oracle.ongoing_trials
    assert oracle.end_order == ["1", "0"]


def test_a_worker_that_gives_signs_of_life_keeps_its_trial(tmp_path, clock):
    oracle = _oracle(tmp_path, trials=1)
    trial = oracle.create_trial("a")
    for _ in range(5):
        clock.now += TIMEOUT - 1
        oracle.get_trial(trial.trial_id)
        assert oracle.create_trial("b").status == "IDLE"
        assert oracle.tuner_ids == {"a", "b"}
    _end(oracle, trial)
    assert oracle.create_trial("b").status == "STOPPED"
    # `a` may still ask; if it never does the chief need not wait for it.
    assert oracle.tuner_ids == {"a"}
    clock.now += TIMEOUT + 1
    assert oracle.tuner_ids == set()


def test_a_worker_that_starts_again_under_its_name_goes_on_at_once(tmp_path, clock):
    oracle = _oracle(tmp_path)
    trial = oracle.create_trial("a")
    clock.now += 1
    assert oracle.create_trial("a").trial_id == trial.trial_id
    assert oracle.create_trial("b").trial_id != trial.trial_id


def test_a_trial_ends_once(tmp_path, clock):
    """A worker that was only slow ends a trial that another one was given."""
    ended = []
    oracle = _oracle(tmp_path, trials=1)
    oracle.on_trial_end = lambda _, trial: ended.append(trial.trial_id)
    slow = oracle.create_trial("a")
    clock.now += TIMEOUT + 1
    again = oracle.create_trial("b")
    assert again.trial_id == slow.trial_id
    _end(oracle, slow, 0.75)
    _end(oracle, again, 0.75)
    assert oracle.end_order == ended == ["0"]
    assert oracle.trials["0"].score == 0.75
    assert oracle.create_trial("b").status == oracle.create_trial("a").status == "STOPPED"


def test_a_chief_that_was_killed_hands_the_trials_out_again(tmp_path, clock):
    oracle = _oracle(tmp_path)
    first, second = oracle.create_trial("a"), oracle.create_trial("b")
    _end(oracle, first)
    oracle = _oracle(tmp_path)
    oracle.reload()
    assert oracle.create_trial("c").trial_id == second.trial_id
    assert oracle.create_trial("d").trial_id == "2"
    # `b`, which has been at work all the while, ends its trial all the same; then `c` does.
    for _ in range(2):
        _end(oracle, second)
        assert oracle.end_order == ["0", "1"]
        assert set(oracle.ongoing_trials) == {"d"}
    # And if nobody has been given the trial yet, nobody is.
    oracle = _oracle(tmp_path)
    oracle.reload()
    third = oracle.trials["2"]
    _end(oracle, third)
    assert oracle.create_trial("c").status == "STOPPED"
    assert oracle.end_order == ["0", "1", "2"] and third.status == "COMPLETED"


def test_without_a_timeout_nobody_is_lost(tmp_path, clock):
    oracle = _oracle(tmp_path, trials=1)
    oracle.worker_timeout = None
    oracle.create_trial("a")
    clock.now += 1e9
    assert oracle.create_trial("b").status == "IDLE"


# --- Addresses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, address, loopback",
    [
        ("127.0.0.1:80", "127.0.0.1:80", True),
        ("localhost:8080", "localhost:8080", True),
        (":8080", "127.0.0.1:8080", True),
        ("8080", "127.0.0.1:8080", True),
        ("[::1]:8080", "[::1]:8080", True),
        ("0.0.0.0:8080", "0.0.0.0:8080", False),
        ("[::]:8080", "[::]:8080", False),
        ("192.0.2.1:8080", "192.0.2.1:8080", False),
    ],
)
def test_addresses(given, address, loopback, tmp_path):
    assert chief.check_address("chief", given) == address
    if not loopback:
        with pytest.raises(
            UserError, match=r"neither encrypted nor protected.*--allow-remote.*Rec"
        ):
            tune(SearchSettings("MFResNet20"), tmp_path / "a", chief=given)
        assert not (tmp_path / "a").exists()
    assert chief.is_loopback(address) == loopback


def test_the_environment_is_as_before(monkeypatch):
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "mine")
    monkeypatch.setenv("no_proxy", "example.org")
    before = dict(os.environ)
    with chief.environment("127.0.0.1:90", "chief"):
        assert os.environ["KERASTUNER_ORACLE_IP"] == "127.0.0.1"
        assert os.environ["KERASTUNER_ORACLE_PORT"] == "90"
        assert os.environ["KERASTUNER_TUNER_ID"] == "chief"
        assert os.environ[chief._NO_PROXY] == "example.org,127.0.0.1"
    assert dict(os.environ) == before


def test_a_port_that_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"can listen at: .*in use\. Received: '{address}'"):
            tune(SearchSettings("MFResNet20"), tmp_path / "a", chief=address)


def test_a_worker_without_a_chief(tmp_path, monkeypatch):
    monkeypatch.setattr(chief, "_PATIENCE", 0.1)
    with pytest.raises(UserError, match=r"No chief answers.*Received: 127\.0\.0\.1:9"):
        work(tmp_path, worker="127.0.0.1:9")
    (tmp_path / "result.json").touch()
    with pytest.raises(UserError, match=r"is finished: see .*result\.json"):
        work(tmp_path, worker="127.0.0.1:9")


# --- Processes -------------------------------------------------------------------------------


def _start(folder, name, signal_name, when, *arguments):
    with open(folder / f"{name}.log", "w") as log:
        return subprocess.Popen(
            [sys.executable, HERE / "tiny_zoo.py", signal_name, when, *map(str, arguments)],
            stdout=log,
            stderr=log,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )


def test_a_search_survives_a_worker_killed_in_mid_trial(cifar10_dir, tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    folder = tmp_path / "search"
    settings = [
        *("tune", "Tiny", "--tuner", "random", "--max-trials", "2", "--epochs", "2"),
        *("--seed", "5", "--holdout", "40", "--limit", "64", "--set", "batch_size=8"),
        *("--search", "momentum", "--search", "horizon", "--data-dir", str(cifar10_dir)),
    ]
    as_chief = ("--chief", address, "--worker-timeout", "3", "--output", folder)
    worker = ("tune", "--worker", address, "--output", folder, "--tuner-id")
    processes = [
        _start(tmp_path, "chief", "-", "", *settings, *as_chief),
        # Dies in the second epoch of its first trial.
        _start(tmp_path, "doomed", "SIGKILL", "1.1", *worker, "doomed"),
        _start(tmp_path, "steady", "-", "", *worker, "steady"),
    ]
    try:
        codes = [process.wait(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    logs = {path.stem: path.read_text() for path in tmp_path.glob("*.log")}
    assert codes == [0, -signal.SIGKILL, 0], logs
    assert "steady takes it over from doomed, not heard of for 3 s" in logs["chief"]
    rows = _rows(folder)
    assert [(row["trial"], row["status"]) for row in rows] == [
        ("0", "COMPLETED"),
        ("1", "COMPLETED"),
    ]
    result = json.loads((folder / "result.json").read_text())
    assert result["completed"] == 2
    assert result["val_error"] == min(float(row["val_error"]) for row in rows)

    # The same search by one process finds the same: values and measures have come through whole.
    assert cli.main([*settings, "--output", str(tmp_path / "alone")]) == 0
    assert rows == _rows(tmp_path / "alone")


def _rows(folder):
    with open(folder / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
