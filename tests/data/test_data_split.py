# SPDX-License-Identifier: Apache-2.0
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kfloop.components.contracts.dataset import read_dataset, write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.data import duck
from kfloop.components.data.split import _require_no_leak, split

START = datetime(2024, 1, 1, tzinfo=UTC)


def write(path: Path, days: list[int], keys: list[str] | None = None) -> Path:
    times = [START + timedelta(days=day) for day in days]
    keys = keys or [str(number) for number in range(len(days))]
    rows = pa.table({"at": times, "key": keys, "row": list(range(len(days)))})
    write_dataset(rows, path / "all")
    return path / "all"


def parts(path: Path, **settings: object) -> tuple[pa.Table, pa.Table]:
    split(path / "all", path / "train", path / "evaluation", **settings)  # type: ignore[arg-type]  # settings vary
    return read_dataset(path / "train"), read_dataset(path / "evaluation")


def test_the_moment_itself_evaluates(tmp_path: Path) -> None:
    write(tmp_path, [0, 1, 2, 3])
    train, evaluation = parts(tmp_path, timestamp="at", at="2024-01-03")
    assert train["row"].to_pylist() == [0, 1]
    assert evaluation["row"].to_pylist() == [2, 3]


def test_rows_outside_the_window_are_in_neither_part(tmp_path: Path) -> None:
    write(tmp_path, [0, 1, 2, 3, 4, 5])
    train, evaluation = parts(
        tmp_path, timestamp="at", at="2024-01-03", since="2024-01-02", until="2024-01-05"
    )
    assert train["row"].to_pylist() == [1]
    assert evaluation["row"].to_pylist() == [2, 3]


def test_a_window_needs_the_timestamp_column(tmp_path: Path) -> None:
    write(tmp_path, [0, 1])
    with pytest.raises(InputError, match="since and until need the timestamp column"):
        parts(tmp_path, method="hash", key="key", since="2024-01-02")


def test_rows_of_one_instant_stay_together(tmp_path: Path) -> None:
    write(tmp_path, [0, 1, 2, 2, 2, 2])
    train, evaluation = parts(tmp_path, timestamp="at", fraction=0.2)
    assert train["row"].to_pylist() == [0, 1]
    assert evaluation["row"].to_pylist() == [2, 3, 4, 5]


def test_what_comes_after_the_first_instant_evaluates_when_most_rows_are_of_it(
    tmp_path: Path,
) -> None:
    write(tmp_path, [0] * 9 + [1])
    train, evaluation = parts(tmp_path, timestamp="at", fraction=0.2)
    assert (train.num_rows, evaluation["row"].to_pylist()) == (9, [9])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"timestamp": "at"}, "'at' is the same in all rows; split by another column"),
        ({"method": "hash", "key": "key", "fraction": 0.001}, "'key' has 2 values, too few"),
        ({"timestamp": "at", "since": "2025-01-01"}, "there is no row; check since and until"),
    ],
)
def test_why_a_part_is_empty_is_told(
    tmp_path: Path, settings: dict[str, object], told: str
) -> None:
    write(tmp_path, [0, 0], ["a", "b"])
    with pytest.raises(InputError, match=told):
        parts(tmp_path, **settings)


def test_a_time_of_no_calendar_year_gets_one_sentence(tmp_path: Path) -> None:
    """DuckDB's infinity, and dates that are placeholders."""
    times = pa.array([0, 2**63 - 1], pa.timestamp("us"))
    with pytest.raises(InputError, match="'at' holds a time that is not in the years 1 to 9999"):
        write_dataset(pa.table({"at": times}), tmp_path / "all", "at")


def test_a_key_keeps_its_side_when_data_is_added(tmp_path: Path) -> None:
    write(tmp_path, [0] * 200)
    before = set(parts(tmp_path, method="hash", key="key")[1]["key"].to_pylist())
    write(tmp_path, [0] * 400)
    after = set(parts(tmp_path, method="hash", key="key")[1]["key"].to_pylist())
    assert before == {key for key in after if int(key) < 200}
    assert 0.1 < len(after) / 400 < 0.3


def test_few_groups_come_close_to_the_fraction(tmp_path: Path) -> None:
    write(tmp_path, [0] * 100, [str(row % 10) for row in range(100)])
    assert len(parts(tmp_path, method="group", key="key", fraction=0.3)[1]) == 30


@settings(max_examples=25, deadline=None)
@given(
    days=st.lists(st.integers(0, 30), min_size=2, max_size=60),
    keys=st.lists(st.sampled_from("abcdefgh"), min_size=60, max_size=60),
    method=st.sampled_from(["time", "hash", "group"]),
    fraction=st.floats(0.01, 0.99),
)
def test_every_row_is_in_one_part_and_nothing_is_shared(
    days: list[int], keys: list[str], method: str, fraction: float
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch), days, keys[: len(days)])
        try:
            train, evaluation = parts(
                Path(scratch), method=method, timestamp="at", key="key", fraction=fraction
            )
        except InputError as error:
            assert "part of the split is empty" in str(error)
            return
    rows = train["row"].to_pylist() + evaluation["row"].to_pylist()
    assert sorted(rows) == list(range(len(days)))
    if method == "time":
        assert max(train["at"].to_pylist()) < min(evaluation["at"].to_pylist())
    else:
        assert not set(train["key"].to_pylist()) & set(evaluation["key"].to_pylist())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"at": "2023-01-01", "timestamp": "at"}, "train part of the split is empty"),
        ({"at": "2025-01-01", "timestamp": "at"}, "evaluation part of the split is empty"),
        ({"at": "June", "timestamp": "at"}, "at is 'June'"),
        ({"timestamp": ""}, "needs the timestamp"),
        ({"timestamp": "when"}, "'when' is missing"),
        ({"timestamp": "row"}, "holds BIGINT"),
        ({"method": "hash"}, "needs the key"),
        ({"method": "random", "key": "key"}, "'random'"),
        ({"timestamp": "at", "fraction": 1.0}, "between 0 and 1"),
    ],
)
def test_a_split_that_cannot_be_made_gets_one_sentence(
    tmp_path: Path, settings: dict[str, object], told: str
) -> None:
    write(tmp_path, [0, 1, 2])
    with pytest.raises(InputError, match=told):
        parts(tmp_path, **settings)


@pytest.mark.parametrize("method", ["time", "hash", "group"])
def test_a_row_that_belongs_nowhere_is_told(tmp_path: Path, method: str) -> None:
    rows = pa.table(
        {"at": pa.array([START, None], pa.timestamp("us", tz="UTC")), "key": ["a", None]}
    )
    write_dataset(rows, tmp_path / "all")
    with pytest.raises(InputError, match="1 rows have no"):
        parts(tmp_path, method=method, timestamp="at", key="key")


@pytest.mark.parametrize(("method", "column"), [("time", "at"), ("group", "key"), ("hash", "key")])
def test_parts_that_share_something_are_a_failure(tmp_path: Path, method: str, column: str) -> None:
    rows = pa.table({"at": [START, START + timedelta(days=1)], "key": ["a", "b"]})
    for part in ("train", "evaluation"):
        write_dataset(rows, tmp_path / part)
    with duck.connect() as connection, pytest.raises(RuntimeError, match="leaks: both parts"):
        _require_no_leak(connection, tmp_path / "train", tmp_path / "evaluation", method, column)
