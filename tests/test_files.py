"""Files of ours that somebody else has written: one clear error, whatever is in them."""

import json
import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mf_zoo import files
from mf_zoo.errors import UserError

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    "content",
    [b"[]", b"null", b"3", b"{", b"\xff{}", b"", b"[" * 100_000, b'{"a": ' * 100_000, b"9" * 5000],
)
def test_what_is_no_json_object(content, tmp_path):
    path = tmp_path / "state.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"state\.json must.*Received: "):
        files.read_json(path, "figures")


@given(content=st.binary(max_size=60))
@example(content=b",")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_rows_or_one_error(content, tmp_path):
    path = tmp_path / "runs.csv"
    path.write_bytes(content)
    try:
        rows = files.read_rows(path)
    except UserError as error:
        expected = r"runs\.csv must (be readable CSV|have (different names|\d+ values))"
        assert re.search(expected, str(error))
    else:
        assert all(isinstance(row, dict) for row in rows)


def test_a_field_longer_than_csv_takes(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("run\n" + "x" * 131_073)
    with pytest.raises(UserError, match=r"runs\.csv must be readable CSV: field larger"):
        files.read_rows(path)
    path.write_bytes(b"run\n\xff")
    with pytest.raises(UserError, match=r"runs\.csv must be readable CSV.*decode"):
        files.read_rows(path)


_VALUES = st.recursive(st.integers() | st.text(max_size=5), st.lists, max_leaves=5)


@given(
    data=st.dictionaries(
        st.text(max_size=5), st.dictionaries(st.text(max_size=5), _VALUES, max_size=3), max_size=3
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_what_is_written_is_read(data, tmp_path):
    path = tmp_path / "state.json"
    files.write_json(path, data)
    assert files.read_json(path, "figures") == json.loads(json.dumps(data)) == data
