"""A process that another one has started ends with it."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.once_on_torch

_PARENT = """
import importlib, pathlib, sys
import keras
from mf_zoo.deploy import writer

writer.__file__ = sys.argv[1]
model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(2)])
export = importlib.import_module("mf_zoo.deploy.export")
export._write(model, "keras", pathlib.Path("model.keras"), keras.config.backend(), None, None)
"""
_WRITER = """
import os, pathlib, sys, time

assert sys.argv[2] == "keras" and "mf_zoo" not in sys.modules
beside = pathlib.Path("pid.part")
beside.write_text(str(os.getpid()))
beside.rename("pid")
time.sleep(300)
"""


def test_the_writer_of_an_export_ends_with_its_killed_parent(tmp_path):
    script = tmp_path / "writer.py"
    script.write_text(_WRITER)
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, script], cwd=tmp_path)
    try:
        _wait(lambda: (tmp_path / "pid").exists() or parent.poll() is not None)
        writer = int((tmp_path / "pid").read_text())
        assert _runs(writer)
    finally:
        parent.kill()
        parent.wait()
    _wait(lambda: not _runs(writer))
    assert not _runs(writer)


def _wait(condition):
    until = time.monotonic() + 120
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)


def _runs(pid):
    """Whether a process is there and no zombie, which nobody may wait for here."""
    try:
        os.kill(pid, 0)
        return ") Z " not in pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
