"""A sample of `tests.faults`, and what a run does with a damaged checkpoint."""

import errno
import os
import pathlib
import shutil
import subprocess
import sys

import h5py
import keras
import keras_tuner
import pytest
from run_folders import assert_same_run, small_search
from tiny_zoo import train

from mf_zoo import files, tuning
from mf_zoo.errors import UserError
from mf_zoo.training import RECIPES, callbacks, runs

pytestmark = pytest.mark.once_on_torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECIPE = RECIPES["quick"].replace(epochs=3, warmup_epochs=1.0, batch_size=16)
OPTIONS = {"recipe": RECIPE, "seed": 3, "limit": 32, "verbose": 0}


@pytest.fixture(scope="module")
def whole(cifar10_dir, tmp_path_factory):
    """A run that was let alone."""
    folder = tmp_path_factory.mktemp("faults") / "whole"
    train("Tiny", data_dir=cifar10_dir, output=folder, **OPTIONS)
    return folder


def _stopped(whole, folder):
    """A copy of the run as if killed before its result was written."""
    shutil.copytree(whole, folder)
    (folder / runs.RESULT).unlink()
    (folder / runs.WEIGHTS).unlink()
    return folder, folder / "checkpoint-0003.keras"


@pytest.mark.parametrize("damage", ["missing", "cut", "no zip", "empty network"])
def test_a_damaged_checkpoint_falls_back(damage, whole, cifar10_dir, tmp_path, capsys):
    folder, newest = _stopped(whole, tmp_path / "run")
    if damage == "missing":
        newest.unlink()
    elif damage == "cut":
        newest.write_bytes(newest.read_bytes()[:-100])
    else:  # its digest is right: only loading it tells
        newest.write_bytes(b"PK" if damage == "no zip" else b"")
        state = files.read_json(folder / runs.STATE, "state")
        state["sha256"] = files.sha256(newest)
        files.write_json(folder / runs.STATE, state)
    train("Tiny", data_dir=cifar10_dir, output=folder, resume=True, **OPTIONS)
    said = capsys.readouterr().err
    assert said.count("warning:") == 1
    assert "epoch 3 is repeated from the one before" in said
    assert_same_run(whole, folder)


def test_lost_rows_are_named(whole, cifar10_dir, tmp_path, capsys):
    folder, _ = _stopped(whole, tmp_path / "run")
    history = folder / runs.HISTORY
    lines = history.read_text().splitlines(keepends=True)
    history.write_text("".join(lines[:2] + lines[3:]))
    train("Tiny", data_dir=cifar10_dir, output=folder, resume=True, **OPTIONS)
    assert "has lost the rows of epochs 2;" in capsys.readouterr().err


def test_a_clock_that_jumps_back(whole, cifar10_dir, tmp_path, monkeypatch):
    clock = iter(range(10**6, 0, -1000))
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: float(next(clock)))
    train("Tiny", data_dir=cifar10_dir, output=tmp_path / "run", **OPTIONS)
    assert_same_run(whole, tmp_path / "run")


def test_a_loss_that_is_no_number_names_the_last_checkpoint(cifar10_dir, tmp_path, monkeypatch):
    before = callbacks.History.on_epoch_end

    def diverge(self, epoch, logs=None):
        before(self, epoch, {**logs, "loss": float("nan")} if epoch == 1 else logs)

    monkeypatch.setattr(callbacks.History, "on_epoch_end", diverge)
    with pytest.raises(UserError, match=r"checkpoint is .*checkpoint-0001\.keras, of epoch 1;"):
        train("Tiny", data_dir=cifar10_dir, output=tmp_path / "run", **OPTIONS)
    assert files.read_json(tmp_path / "run" / runs.STATE, "state")["epoch"] == 1


def test_a_file_and_its_name_are_flushed_in_order(tmp_path, monkeypatch):
    if os.name != "posix":
        pytest.skip("a folder cannot be flushed on Windows")
    calls, fsync, replace = [], os.fsync, os.replace

    def flush(descriptor):
        calls.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def rename(source, target):
        calls.append("rename")
        replace(source, target)

    if not os.path.exists("/proc/self/fd"):
        pytest.skip("needs /proc to know what is flushed")
    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", rename)
    files.append_rows(tmp_path / "history.csv", [{"epoch": 1}], ["epoch"])
    files.write_json(tmp_path / "state.json", {})
    assert calls == ["history.csv", "partial-state.json", "rename", tmp_path.name]


def test_what_hdf5_says_of_a_failing_disk_is_one_error(tmp_path):
    def write(partial):
        h5py.File(partial, "w").close()
        raise RuntimeError("Can't decrement id ref count (file write failed:\n errno = 5)")

    with pytest.raises(UserError, match=r"Cannot write .*a\.h5: Can't decrement .*errno = 5"):
        files.write_atomically(tmp_path / "a.h5", write)
    assert not list(tmp_path.iterdir())


def test_a_sample_of_kills():
    if shutil.which("strace") is None:
        pytest.skip("needs strace, which finds the calls that write")
    command = [
        "-m",
        "tests.faults",
        "--cases",
        "15",
        "--only",
        "training",
        "publishing",
        "download",
    ]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failures, seed 0" in done.stdout


def test_a_write_that_fails_unsaid_is_found(whole, cifar10_dir, tmp_path, monkeypatch):
    # As HDF5 does with a write that fails while an array is closed: it leaves zeros.
    save = keras.Model.save_weights

    def save_and_lose(model, path):
        save(model, path)
        with h5py.File(path, "r+") as file:
            found = []
            file.visititems(lambda _, x: found.append(x) if isinstance(x, h5py.Dataset) else None)
            next(x for x in found if x[()].any())[...] = 0

    folder, _ = _stopped(whole, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "save_weights", save_and_lose)
        with pytest.raises(
            UserError, match=r"Cannot write .*final\.weights\.h5: what is read back"
        ):
            train("Tiny", data_dir=cifar10_dir, output=folder, resume=True, **OPTIONS)
    assert not (folder / runs.WEIGHTS).exists() and not (folder / runs.RESULT).exists()
    train("Tiny", data_dir=cifar10_dir, output=folder, resume=True, **OPTIONS)
    assert_same_run(whole, folder)


@pytest.mark.parametrize(
    ("owner", "write"),
    [
        (keras.Model, "save_weights"),  # the checkpoint of a trial
        (keras_tuner.src.utils, "save_json"),  # its build config, after the training
        (os, "fsync"),  # its trial.json, by the oracle
    ],
    ids=["checkpoint", "build config", "trial"],
)
def test_a_disk_that_fails_in_a_trial_ends_the_search(cifar10_dir, tmp_path, owner, write):
    evaluate = keras.Model.evaluate

    def no_room(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def evaluate_and_fill(model, *args, **kwargs):  # what a trial measures last
        patch.setattr(owner, write, no_room)
        return evaluate(model, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.Model, "evaluate", evaluate_and_fill)
        if write == "save_weights":
            patch.setattr(owner, write, no_room)
        with pytest.raises(UserError, match=r"A trial must be able to .*No space left on device"):
            tuning.tune(small_search(), tmp_path, data_dir=cifar10_dir)
    tuning.tune(small_search(), tmp_path, data_dir=cifar10_dir, resume=True)
    rows = files.read_rows(tmp_path / "trials.csv")
    assert [row["status"] for row in rows] == ["COMPLETED", "COMPLETED"]
