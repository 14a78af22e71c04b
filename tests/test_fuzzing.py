"""A sample of the fuzzing; `python -m tests.fuzzing` runs all of it."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from mf_zoo.errors import UserError
from tests import fuzzing

pytestmark = pytest.mark.once

# Of what starts quickly; the others are read through Keras or TensorFlow.
_CASES = {
    "weight record": 3000,
    "recipe": 300,
    "recipe value": 1000,
    "campaign": 150,
    "run state": 1000,
    "run config": 300,
    "run result": 500,
    "run history": 500,
    "search": 500,
    "tuner state": 300,
    "weights": 250,
    "weight index": 300,
    "npz data": 300,
    "picture": 250,
    "plugin names": 300,
}


@pytest.fixture(scope="module")
def counts():
    """What came of a sample of each input, in a process of its own."""
    code = (
        "import json, sys\n"
        "from tests import fuzzing\n"
        "fuzzing.preload()\n"
        f"cases = {_CASES!r}\n"
        "rows = [fuzzing.fuzz(r, m, cases[r.name], 1) for r, m, _ in fuzzing.plan(1)"
        " if r.name in cases]\n"
        "print(json.dumps(rows))\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": "torch"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    *failed, rows = process.stdout.splitlines()
    return failed, json.loads(rows)


def test_each_case_is_accepted_or_refused_with_one_clear_error(counts):
    failed, rows = counts
    assert not failed, "\n".join(failed)
    assert {row["input"] for row in rows} == set(_CASES)
    for row in rows:
        assert row["refused"] + row["accepted"] == row["cases"] > 0, row
    # Neither is every case refused, for then only the first check would be seen.
    accepted = {row["input"] for row in rows if row["accepted"] >= row["cases"] // 100}
    assert accepted >= {"weight record", "recipe", "run state", "weights", "picture"}


def test_the_same_seed_makes_the_same_cases(tmp_path):
    for reader, method, _ in fuzzing.plan(1):
        if reader.name not in ("weight record", "recipe", "weights", "npz data", "picture"):
            continue
        examples = reader.make(tmp_path)
        first, again, other = (
            [fuzzing._case(reader, method, seed, k, examples) for k in range(20)]
            for seed in (5, 5, 6)
        )
        assert first == again != other


def _reader(read):
    return fuzzing.Reader("made up", 1, lambda folder: [b"valid"], read, None)


@pytest.mark.parametrize(
    ("read", "what"),
    [
        (lambda folder, data: {}[data], "KeyError"),
        (lambda folder, data: open("/etc/hostname").close(), "open /etc/hostname"),
        (lambda folder, data: exec("1 + 1"), "exec of <string>"),
        (lambda folder, data: subprocess.run(["true"]), r"subprocess\.Popen"),
        (lambda folder, data: os.kill(os.getpid(), signal.SIGSEGV), "died of signal 11"),
        (lambda folder, data: np.ones(1 << 30), "MemoryError"),
    ],
)
def test_what_a_case_must_not_do_is_noticed(read, what, capfd):
    first = []

    def after_warming_up(folder, data):
        first.append(data)
        return read(folder, data) if len(first) > 1 else None

    row = fuzzing.fuzz(_reader(after_warming_up), "mutation", 2, 0)
    assert row["failures"] > 0

    assert re.search(
        f"FAILED --seed 0 --only 'made up:mutation' --number .*{what}", capfd.readouterr().out
    )


def test_errors_of_ours_are_refusals_and_a_case_can_be_made_again(capfd):
    def read(folder, data):
        if len(data) % 2:
            raise UserError("An even number of bytes. Received: an odd one")
        raise RuntimeError(data)

    reader = _reader(read)
    row = fuzzing.fuzz(reader, "mutation", 40, 0)
    assert row["accepted"] == 0 and 0 < row["refused"] < 40 > row["failures"] > 0
    number = int(capfd.readouterr().out.split("--number ")[1].split(":")[0])
    again = fuzzing.fuzz(dataclasses.replace(reader), "mutation", 1, 0, first=number)
    assert again["failures"] == 1


def test_a_search_whose_state_lacks_a_value(tmp_path):
    reader = next(reader for reader in fuzzing.READERS if reader.name == "tuner state")
    number, oracle = (example := reader.make(tmp_path)[0])[:1], json.loads(example[1:])
    del oracle["display"]["trial_start"]
    with pytest.raises(UserError, match=r"must be whole.*KeyError: 'trial_start'"):
        reader.read(tmp_path, number + json.dumps(oracle).encode())
