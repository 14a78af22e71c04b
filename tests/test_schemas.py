"""Files of ours with wrong content: read right, or one error that says what and where."""

import csv
import io
import json
import os
import pathlib
import re
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from schemas_examples import RESULTS, examples

from mf_zoo import cli, data, files, schemas
from mf_zoo.data.loading import load
from mf_zoo.errors import UserError
from mf_zoo.training.recipes import parse_override

pytestmark = pytest.mark.once

EXAMPLES = {example.kind: example for example in examples()}
_JSON = [kind for kind in EXAMPLES if kind in schemas.JSON]
_TABLES = [kind for kind in EXAMPLES if kind in schemas.TABLES]
_HUGE = 10**400
_WRONG = (None, [], {}, "", "x", -1, -0.5, True, _HUGE, float("nan"), float("inf"), [None], [[]])


def _refused_or_read(example, content, tmp_path):
    """The message of the one error; `None` if the file is read."""
    path = tmp_path / example.name
    path.write_bytes(content)
    try:
        example.read(path)
    except (UserError, ValueError) as error:  # ValueError becomes UserError at the command
        message = str(error)
        assert path.name in message or path.stem in message, message
        assert "Received" in message, message
        return message
    return None


def _places(values, before=()):
    """Ways to all values in JSON."""
    items = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in items:
        yield (*before, key)
        if isinstance(value, (dict, list)):
            yield from _places(value, (*before, key))


def _changed(values, place, value):
    copy = json.loads(json.dumps(values))
    part = copy
    for key in place[:-1]:
        part = part[key]
    if value is ...:
        del part[place[-1]]
    else:
        part[place[-1]] = value
    return copy


def test_every_kind_has_an_example_that_is_read(tmp_path):
    assert {*schemas.JSON, *schemas.TABLES} <= EXAMPLES.keys()
    for example in EXAMPLES.values():
        assert _refused_or_read(example, example.content, tmp_path) is None, example.kind


@pytest.mark.parametrize("kind", _JSON)
def test_every_value_replaced_by_every_wrong_one(kind, tmp_path):
    """Nothing but the one error, and what is read can be used: it is written and read again."""
    example = EXAMPLES[kind]
    values = json.loads(example.content)
    refused = 0
    for place in _places(values):
        for wrong in (*_WRONG, ...):
            content = json.dumps(_changed(values, place, wrong)).encode()
            refused += _refused_or_read(example, content, tmp_path) is not None
    assert refused > 0


@pytest.mark.parametrize("kind", [kind for kind in EXAMPLES if kind != "weights"])
def test_what_is_no_text_or_cut_short(kind, tmp_path):
    example = EXAMPLES[kind]
    for content in (b"\xff\xfe", example.content + b"\xff"):
        assert _refused_or_read(example, content, tmp_path)
    if kind in schemas.TABLES:
        assert re.search(
            "field larger", _refused_or_read(example, b"a\n" + b"x" * 131_073, tmp_path)
        )
        head, _, rest = example.content.partition(b"\n")
        row = rest.splitlines()[0]
        message = _refused_or_read(example, head + b"\n" + row.rpartition(b",")[0], tmp_path)
        assert "Line 2 of" in message
        assert "Line 2 of" in _refused_or_read(example, head + b"\n" + row + b",1", tmp_path)
        columns = head.split(b",")
        twice = b",".join([*columns[:-1], columns[0]]) + b"\n"
        assert "different names" in _refused_or_read(example, twice, tmp_path)
        return
    assert _refused_or_read(example, example.content[: len(example.content) // 2], tmp_path)
    nested = b"[" * 100_000 if example.name.endswith(".json") else b"a = " + b"[" * 100_000
    assert _refused_or_read(example, nested, tmp_path)


@pytest.mark.parametrize("kind", _TABLES)
def test_every_column_with_every_wrong_value(kind, tmp_path):
    example = EXAMPLES[kind]
    reader = csv.DictReader(io.StringIO(example.content.decode()))
    row = next(reader)
    for column in reader.fieldnames:
        wrong = []
        for text in ("-1", "x", "1e999", "9" * 400, "nan", "1_0", " 1", "\uff11"):
            out = io.StringIO()
            writer = csv.DictWriter(out, reader.fieldnames, lineterminator="\n")
            writer.writeheader()
            writer.writerow({**row, column: text})
            if message := _refused_or_read(example, out.getvalue().encode(), tmp_path):
                assert f"`{column}` in line 2 of" in message or "finished run" in message
                wrong.append(text)
        if column in ("epoch", "order_swaps", "particle", "rank"):
            assert {"-1", "x", "1_0", "\uff11"} <= set(wrong), column


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("state", {"epoch": _HUGE}, r"`epoch` in .*state\.json must be less.*Received: 1000"),
        ("state", {"epoch": True}, r"`epoch` in .* must be a valid integer\. Received: True"),
        ("state", {"epoch": ...}, r"`epoch` in .* must be there\. Received: \{"),
        ("state", {"checkpoint": "../a"}, r"file in its folder\. Received: '\.\./a'"),
        ("result", {"file": "/etc/passwd"}, r"file in its folder\. Received: '/etc/passwd'"),
        ("result", {"test_error": float("nan")}, r"`test_error` in .* finite.*Received: nan"),
        ("config", {"seed": -1}, r"config\.json must hold settings.*Received: seed=-1"),
        ("config", {"recipe": "a.toml"}, r"`recipe` in .* dictionary\. Received: 'a\.toml'"),
        ("config", {"recipe": {"horizon": _HUGE}}, r"`horizon` must be of type float"),
        ("config", {"recipe": {"epochs": _HUGE}}, r"`epochs` must be at most 9999999\."),
        ("config", {"recipe": {"a": 1}}, r"A recipe's values are.*Received: 'a'"),
        ("trial", {"score": "1"}, r"`score` in .* must be a valid number\. Received: '1'"),
    ],
)
def test_messages(kind, change, message, tmp_path):
    example = EXAMPLES[kind]
    values = json.loads(example.content)
    for key, value in change.items():
        values = _changed(values, (key,), value)
    received = _refused_or_read(example, json.dumps(values).encode(), tmp_path)
    assert re.search(message, received), received
    assert len(received) < 700


def test_settings_that_an_older_file_leaves_out_have_their_defaults(tmp_path):
    example = EXAMPLES["config"]
    path = tmp_path / "config.json"
    path.write_bytes(example.content)
    assert "until" not in json.loads(example.content)
    config = files.read_json(path, "config")
    assert config["until"] is None and config["recipe"]["integrator"] == "euler"


def test_a_last_line_that_is_being_written_is_left_out(tmp_path):
    path = tmp_path / "history.csv"
    content = EXAMPLES["history"].content
    path.write_bytes(content[:-2])
    whole = files.read_rows(path, "history", growing=True)
    assert len(whole) == content.count(b"\n") - 2
    files.drop_rows_after(path, 10**6)
    assert files.read_rows(path, "history") == whole
    path.write_bytes(b"epoch,loss\nx,1\n")
    with pytest.raises(UserError, match=r"`epoch` in line 2 of .*Received: 'x'"):
        files.drop_rows_after(path, 3)


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "state.json")
    with pytest.raises(UserError, match="no regular file"):
        files.read_json(tmp_path / "state.json", "state")


def test_results_of_this_repository_are_read():
    folder = RESULTS.parent
    for path in folder.glob("*/*.csv"):
        kind = "runs" if path.name == "runs.csv" else "shared"
        kind = "history" if path.name.endswith(".history.csv") else kind
        assert files.read_rows(path, kind)


@pytest.mark.parametrize("text", ["epochs=" + "9" * 5000, "epochs=" + "[" * 50_000])
def test_recipe_values_of_the_command_line(text):
    try:
        key, value = parse_override(text)
    except ValueError as error:
        assert "Received: epochs=" in str(error)
    else:
        from mf_zoo.training import get_recipe

        with pytest.raises(ValueError, match=r"`epochs` must be .*Received: epochs="):
            get_recipe("quick", **{key: value})


def test_a_file_name_that_is_no_utf_8(tmp_path):
    name = os.fsdecode(b"\xff")
    campaign = tmp_path / f"{name}.toml"
    campaign.write_text("[[runs]]\nmodel = 'MFResNet20'\nweights = 'a.weights.h5'\n")
    command = [sys.executable, "-m", "mf_zoo.cli", "campaign", campaign, "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("MFResNet20-"), done.stderr
    command = [sys.executable, "-m", "mf_zoo.cli", "recipes", "--import", tmp_path / name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    for write in (
        lambda: files.write_rows(tmp_path / "a.csv", [{"run": name}], ["run"]),
        lambda: files.append_rows(tmp_path / "b.csv", [{"run": name}], ["run"]),
    ):
        with pytest.raises(UserError, match=r"Cannot write .*UTF-8\. Received: '.udcff'"):
            write()
    assert not (tmp_path / "a.csv").exists()
    # What is written as JSON is read again.
    files.write_json(tmp_path / name, {"a": {"folder": name}})
    assert files.read_json(tmp_path / name, "figures") == {"a": {"folder": name}}


@pytest.mark.parametrize("flag", ["--images", "--input-size", "--classes", "--devices"])
def test_a_dry_run_with_a_number_of_400_digits(flag, capsys):
    assert cli.main(["train", "MFResNet20", "--dry-run", flag, "9" * 400]) == 2
    assert re.search(r"to 9223372036854775807\. Received: 9{57}\.\.\.\n$", capsys.readouterr().err)


# --- Arrays


def _npy(array=None, header=None):
    if header is None:
        file = io.BytesIO()
        np.save(file, array, allow_pickle=True)
        return file.getvalue()
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def _npz(folder: pathlib.Path, images: bytes, labels: bytes, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(folder / "cifar10.npz", "w", compression) as archive:
        archive.writestr("train_image.npy", images)
        archive.writestr("train_label.npy", labels)


_IMAGES = np.arange(2 * 32 * 32 * 3, dtype="uint8").reshape(2, 32, 32, 3)
_LABELS = np.array([3, 4])


@pytest.mark.parametrize(
    "images",
    [
        _npy(header="{'descr': '|u1', 'fortran_order': False, 'shape': (1398101, 32, 32, 3), }"),
        _npy(header="{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 32, 32, 3), }"),
        _npy(header="{'descr': '|O', 'fortran_order': False, 'shape': (2, 32, 32, 3), }"),
        _npy(header="(" * 9000),
        _npy(header="-" * 9000 + "1"),
        _npy(header="{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (2,), }"),
        _npy(header="{"),
        b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"x" * 50,
        b"\x93NUMPY\x07\x00xxxxxx",
        b"",
        _npy(_IMAGES)[:-1],
        _npy(_IMAGES) + b"x",
        _npy(np.array([{}, {}], dtype=object)),
        _npy(_IMAGES.astype("float32")),
        _npy(_IMAGES[:1]),
    ],
    ids=range(15),
)
def test_an_npz_that_is_not_what_the_record_says(images, tmp_path):
    _npz(tmp_path, images, _npy(_LABELS))
    with pytest.raises(data.DatasetCorruptError, match=r"cifar10\.npz must .*Received: "):
        load("cifar10", "train", tmp_path)


def test_an_npz_that_grows_a_hundredfold_is_not_unpacked(tmp_path):
    images = np.zeros((40_000, 32, 32, 3), "uint8")
    _npz(tmp_path, _npy(images), _npy(np.zeros(40_000, int)), zipfile.ZIP_DEFLATED)
    with pytest.raises(data.DatasetCorruptError, match="that become 122880128"):
        load("cifar10", "train", tmp_path)


def test_columns_first_arrays_are_read(tmp_path):
    _npz(tmp_path, _npy(np.asfortranarray(_IMAGES)), _npy(_LABELS))
    images, labels = load("cifar10", "train", tmp_path)
    np.testing.assert_array_equal(images, _IMAGES)
    assert labels.tolist() == [3, 4]
