# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kfloop.components.contracts.files import new_directory, read_json, write_json, write_text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_json_reads_back(tmp_path, value):
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value


def test_a_value_json_cannot_carry_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "value.json", 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "value.json", float("nan"))
    assert read_json(tmp_path / "value.json") == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["value.json"]


def test_a_directory_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "output"
    with pytest.raises(RuntimeError), new_directory(target) as directory:
        write_text(directory / "half", "x")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    for text in ("first", "second"):
        with new_directory(target) as directory:
            write_text(directory / "file", text)
    assert (target / "file").read_text() == "second"
    assert [entry.name for entry in tmp_path.iterdir()] == ["output"]
