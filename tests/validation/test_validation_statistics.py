# SPDX-License-Identifier: Apache-2.0
import math
import resource
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kfloop.components.contracts.dataset import fingerprint, write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.validation.batches import BATCH_ROWS
from kfloop.components.validation.columns import clean, kind_of
from kfloop.components.validation.statistics import compute_statistics
from kfloop.components.validation.summary import read_statistics, summarize
from kfloop.components.validation.tfdv import tfdv

NEW_YEAR = datetime(2020, 1, 1, tzinfo=UTC)


def test_statistics_agree_with_a_direct_computation(empty_bench: Any) -> None:
    values = np.random.default_rng(1).normal(10, 3, 5000)
    words = np.random.default_rng(2).choice(["a", "b", "c"], 5000, p=[0.6, 0.3, 0.1])
    mask = np.arange(5000) % 10 == 0
    summary = empty_bench.measure({"x": pa.array(values, mask=mask), "w": pa.array(words)})
    x, w = summary.columns["x"], summary.columns["w"]
    assert summary.rows == 5000
    assert x.missing == pytest.approx(0.1)
    assert x.mean == pytest.approx(values[~mask].mean())
    assert x.std == pytest.approx(values[~mask].std())
    assert (x.min, x.max) == (values[~mask].min(), values[~mask].max())
    assert x.quantile(0.9) == pytest.approx(np.quantile(values[~mask], 0.9), abs=0.1)
    assert x.share_up_to(10) == pytest.approx((values[~mask] <= 10).mean(), abs=0.01)
    assert w.unique == 3
    assert dict(w.values) == {value: (words == value).sum() for value in "abc"}


def test_a_dataset_in_many_batches_and_files_is_measured_like_one_in_one(tmp_path: Path) -> None:
    rows = 3 * BATCH_ROWS // 2
    table = pa.table({"x": pa.array(np.arange(rows, dtype="float64"))})
    write_dataset(table, tmp_path / "one")
    (tmp_path / "many").mkdir()
    for part in range(3):
        piece = table.slice(part * rows // 3, rows // 3)
        pq.write_table(piece, tmp_path / "many" / f"part-{part:05d}.parquet")
    measured = []
    for name in ("one", "many"):
        compute_statistics(tmp_path / name, tmp_path / f"{name}.pb")
        measured.append(summarize(read_statistics(tmp_path / f"{name}.pb")))
    one, many = (summary.columns["x"] for summary in measured)
    assert measured[0].rows == measured[1].rows == rows
    assert (one.min, one.max, one.count) == (many.min, many.max, many.count)
    assert one.mean == pytest.approx(many.mean)
    assert one.median == pytest.approx(many.median, rel=0.01)


def test_the_file_is_one_that_tfdv_reads(bench: Any) -> None:
    loaded = tfdv().load_stats_binary(str(bench.path("before")))
    assert loaded.datasets[0].num_examples == 2000
    names = [feature.path.step[0] for feature in loaded.datasets[0].features]
    assert names == ["at", "price", "stock", "shop", "receipt", "sold"]


def test_the_same_data_gives_the_same_statistics_and_metadata(
    tmp_path: Path, sales_of: Any
) -> None:
    write_dataset(pa.table(sales_of()), tmp_path / "data")
    first = compute_statistics(tmp_path / "data", tmp_path / "a")
    assert first == compute_statistics(tmp_path / "data", tmp_path / "a")
    assert first["dataset_fingerprint"] == fingerprint(tmp_path / "data")
    assert first["rows"] == 2000
    assert first["columns"] == list(sales_of())


# Trap: TFDV's data frame path drops date and time columns without a word.
def test_dates_and_timestamps_are_measured_as_seconds_and_none_is_dropped(empty_bench: Any) -> None:
    moments = [datetime(2020, 1, 1) + timedelta(hours=hour) for hour in range(48)]
    zoned = pa.array([m.replace(tzinfo=UTC) for m in moments], pa.timestamp("us", "Asia/Tokyo"))
    summary = empty_bench.measure(
        {
            "plain": pa.array(moments, pa.timestamp("us")),
            "zoned": zoned,
            "nano": pa.array(moments, pa.timestamp("ns")),
            "day": pa.array([moment.date() for moment in moments]),
            "clock": pa.array([time(1, 30)] * 48),
            "lasted": pa.array([timedelta(minutes=5)] * 48),
        }
    )
    start = NEW_YEAR.timestamp()
    for name in ("plain", "zoned", "nano"):
        column = summary.columns[name]
        assert (column.kind, column.min, column.max) == ("timestamp", start, start + 47 * 3600)
    assert (summary.columns["day"].kind, summary.columns["day"].max) == ("date", start + 86400)
    assert summary.columns["clock"].mean == 5400
    assert summary.columns["lasted"].mean == 300


def test_every_kind_of_column_that_arrow_knows_is_measured_or_named(empty_bench: Any) -> None:
    ones = {
        "bool": pa.array([True, False] * 50),
        "int8": pa.array([1, 2] * 50, pa.int8()),
        "huge": pa.array([2**63, 1] * 50, pa.uint64()),
        "half": pa.array(np.ones(100, "float16")),
        "decimal": pa.array([Decimal("1.25")] * 100, pa.decimal128(10, 2)),
        "dictionary": pa.array(["x", "y"] * 50).dictionary_encode(),
        "large": pa.array(["x", "y"] * 50, pa.large_string()),
        "view": pa.array(["x", "y"] * 50, pa.string_view()),
        "binary": pa.array([b"\xff", b"\xfe"] * 50),
        "empty": pa.nulls(100),
        "never": pa.nulls(100, pa.float64()),
        "list": pa.array([[1, 2], [3]] * 50),
    }
    columns = empty_bench.measure(ones).columns
    assert list(columns) == list(ones)
    assert columns["bool"].mean == 0.5
    assert columns["huge"].max == 2.0**63
    assert columns["decimal"].mean == 1.25
    for name in ("dictionary", "large", "view"):
        assert dict(columns[name].values) == {"x": 50, "y": 50}
    assert columns["empty"].missing == columns["never"].missing == 1
    assert columns["list"].mean == 2


def test_a_struct_is_refused_by_name(tmp_path: Path) -> None:
    write_dataset(pa.table({"ok": [1], "address": [{"street": "x"}]}), tmp_path / "data")
    with pytest.raises(InputError, match="'address' is of type struct"):
        compute_statistics(tmp_path / "data", tmp_path / "s")
    assert not (tmp_path / "s").exists()


# Trap: TFDV's disallow_nan does not fire; here NaN is a missing value, which the schema bounds.
def test_nan_is_a_missing_value(empty_bench: Any) -> None:
    column = empty_bench.measure({"x": [1.0, math.nan, None, 3.0]}).columns["x"]
    assert (column.missing, column.mean) == (0.5, 2.0)


def test_a_window_keeps_its_start_and_leaves_out_its_end(empty_bench: Any, sales_of: Any) -> None:
    window = {"since": "2020-01-01T01:00", "until": "2020-01-01T02:00"}
    summary = empty_bench.measure(sales_of(), timestamp="at", **window)
    at = summary.columns["at"]
    assert summary.rows == 60
    assert at.min == NEW_YEAR.timestamp() + 3600
    assert at.max == NEW_YEAR.timestamp() + 7140


# Trap: an empty frame has "no anomalies".
@pytest.mark.parametrize(
    ("window", "told"),
    [
        (
            {"since": "2021-01-01", "until": "2021-02-01"},
            "holds no rows between 2021-01-01 and 2021-02-01 by 'at'",
        ),
        ({"until": "2019-01-01"}, "between its start and 2019-01-01"),
    ],
)
def test_an_empty_window_is_an_error(
    empty_bench: Any, sales_of: Any, window: dict[str, str], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        empty_bench.measure(sales_of(), timestamp="at", **window)
    assert not empty_bench.path("now").exists()


def test_an_empty_dataset_is_an_error(empty_bench: Any) -> None:
    with pytest.raises(InputError, match="holds no rows"):
        empty_bench.measure({"x": pa.array([], pa.int64())})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"since": "2020-01-01"}, "needs the name of the timestamp column"),
        ({"timestamp": "when"}, "'when' is missing"),
        ({"timestamp": "price", "since": "2020-01-01"}, "'price' is used as the timestamp but"),
        ({"timestamp": "at", "since": "soon"}, "since is 'soon', which is not a date"),
    ],
)
def test_a_window_that_cannot_be_taken_is_named(
    empty_bench: Any, sales_of: Any, arguments: dict[str, str], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        empty_bench.measure(sales_of(10), **arguments)


def test_files_of_different_schemas_are_refused(tmp_path: Path) -> None:
    write_dataset(pa.table({"x": [1]}), tmp_path / "data")
    pq.write_table(pa.table({"x": ["one"]}), tmp_path / "data" / "part-00001.parquet")
    with pytest.raises(InputError, match=r"part-00001\.parquet .* other columns or types"):
        compute_statistics(tmp_path / "data", tmp_path / "s")


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    def peak_after(rows: int) -> int:
        random = np.random.default_rng(0)
        batch = pa.record_batch(
            {
                "x": pa.array(random.normal(size=100_000)),
                "s": pa.array(random.integers(0, 50_000, 100_000).astype(str)),
            }
        )
        batches = pa.RecordBatchReader.from_batches(batch.schema, [batch] * (rows // 100_000))
        write_dataset(batches, tmp_path / str(rows))
        compute_statistics(tmp_path / str(rows), tmp_path / "s")
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

    peak_after(200_000)
    small = peak_after(300_000)
    assert peak_after(2_000_000) - small < 60  # MiB; the table itself is 50 MiB


SIMPLE_TYPES = st.sampled_from(
    [
        pa.bool_(),
        pa.int32(),
        pa.uint8(),
        pa.float32(),
        pa.float64(),
        pa.string(),
        pa.large_string(),
        pa.binary(),
        pa.date32(),
        pa.timestamp("ms"),
        pa.timestamp("us", "America/New_York"),
        pa.time64("us"),
        pa.duration("s"),
        pa.dictionary(pa.int32(), pa.string()),
    ]
)


def _values(arrow_type: pa.DataType) -> st.SearchStrategy[Any]:
    types = pa.types
    if types.is_dictionary(arrow_type) or types.is_string(arrow_type):
        return st.text(max_size=5)
    if types.is_large_string(arrow_type):
        return st.text(max_size=5)
    zones: dict[str, Callable[[], st.SearchStrategy[Any]]] = {
        "bool": st.booleans,
        "int32": lambda: st.integers(-(2**31), 2**31 - 1),
        "uint8": lambda: st.integers(0, 255),
        "float": lambda: st.floats(width=32),
        "double": st.floats,
        "binary": lambda: st.binary(max_size=5),
        "date32[day]": lambda: st.dates(date(1, 1, 1), date(9999, 1, 1)),
        "timestamp[ms]": lambda: st.datetimes().map(lambda t: t.replace(microsecond=0)),
        "timestamp[us, tz=America/New_York]": lambda: st.datetimes(
            datetime(1700, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)
        ),
        "time64[us]": st.times,
        "duration[s]": lambda: st.integers(0, 10**6).map(lambda s: timedelta(seconds=s)),
    }
    return zones[str(arrow_type)]()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_cleaning_keeps_every_row_and_column_of_any_batch(data: Any) -> None:
    types = data.draw(st.lists(SIMPLE_TYPES, min_size=1, max_size=4))
    rows = data.draw(st.integers(0, 6))
    arrays = [
        pa.array(data.draw(st.lists(st.none() | _values(each), min_size=rows, max_size=rows)), each)
        for each in types
    ]
    batch = pa.RecordBatch.from_arrays(arrays, [f"c{i}" for i in range(len(arrays))])
    cleaned = clean(batch)
    assert cleaned.schema.names == batch.schema.names
    assert cleaned.num_rows == rows
    for before, after in zip(batch.columns, cleaned.columns, strict=True):
        assert kind_of("c", before.type)
        nan = sum(isinstance(v, float) and math.isnan(v) for v in before.to_pylist())
        assert after.null_count == before.null_count + nan
