# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from kfloop.components.contracts.dataset import read_dataset, write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.data import duck
from kfloop.components.data.transform import build_feature_tables, transform


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    times = [datetime(2024, 1, day, tzinfo=UTC) for day in (1, 2, 3, 4)]
    orders = pa.table({"id": ["a", "b", "a", "x"], "moment": times, "price": [1, 2, 3, 4]})
    write_dataset(orders, tmp_path / "tables" / "orders")
    write_dataset(pa.table({"id": ["a", "b"]}), tmp_path / "tables" / "customers")
    return tmp_path / "tables"


def test_the_query_sees_history_before_the_window(tables: Path, tmp_path: Path) -> None:
    query = "SELECT id, moment, sum(price) OVER (ORDER BY moment) AS so_far FROM orders; -- done"
    metadata = transform(tables, query, tmp_path / "out", "moment", "2024-01-02", "2024-01-04")
    table = read_dataset(tmp_path / "out")
    assert table["so_far"].to_pylist() == [3, 6]
    assert metadata["rows"] == 2
    assert metadata["since"] == "2024-01-02T00:00:00+00:00"


def test_columns_get_types_that_models_read(tables: Path, tmp_path: Path) -> None:
    query = """
        SELECT sum(price) AS total, 0.5 AS half, 'x'::ENUM ('x') AS kind,
            TIMESTAMP_NS '2024-01-01 00:00:00.123456789' AS moment
        FROM orders
    """
    transform(tables, query, tmp_path / "out")
    schema = read_dataset(tmp_path / "out").schema
    assert schema.types == [pa.int64(), pa.float64(), pa.string(), pa.timestamp("us")]


def test_one_dataset_is_the_view_dataset(tables: Path, tmp_path: Path) -> None:
    transform(tables / "orders", "SELECT count(*) AS n FROM dataset", tmp_path / "out")
    assert read_dataset(tmp_path / "out").to_pylist() == [{"n": 4}]


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("SELECT\n  prize\nFROM orders", r'"prize" not found .*"price"'),
        ("SELECT 1\nFROM nowhere", "nowhere does not exist.*customers, orders"),
        ("SELECT 1\nFORM orders", "line 2 of the query: FORM orders"),
        (
            "SELECT moment,\n  -- a name\n  CAST(id AS INT) AS id\nFROM orders -- end",
            r"Could not convert string 'a' .*; line 3 of the query: CAST\(id AS INT\) AS id",
        ),
        ("SELECT moment,\n  strptime(id, '%Y') AS x\nFROM orders", "Could not parse string"),
        ("SELECT id, id FROM orders", "'id' more than once"),
        ("SELECT 1; SELECT 2", "one SELECT; it holds SELECT, SELECT"),
        ("DROP VIEW orders", "one SELECT; it holds DROP"),
        ("", "one SELECT; it holds nothing"),
        ("SELECT id, moment FROM orders WHERE false", "no rows"),
        ("SELECT id, moment FROM orders WHERE moment > '2025-01-01'", "no rows until 2024-02-01"),
        ("SELECT id FROM orders", "'moment' is missing"),
        ("SELECT id AS moment FROM orders", "holds VARCHAR"),
        (
            "SELECT CASE WHEN price > 2 THEN moment END AS moment FROM orders",
            "2 rows .* no 'moment'",
        ),
    ],
)
def test_a_bad_query_gets_one_sentence(tables: Path, tmp_path: Path, query: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as error:
        transform(tables, query, tmp_path / "out", "moment", until="2024-02-01")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("end", ["", ";", " ; -- done; really", "\n/* ; */ ;;\n"])
def test_a_query_may_end_as_people_end_it(tables: Path, tmp_path: Path, end: str) -> None:
    query = "SELECT ';' AS mark, id FROM orders WHERE id <> ';--'" + end
    assert transform(tables, query, tmp_path / "out")["rows"] == 4


def test_the_order_that_was_asked_for_leaves_nothing_to_chance(
    tables: Path, tmp_path: Path
) -> None:
    prints = set()
    for turn in ("id", "moment DESC", "hash(price)"):
        query = f"SELECT id, price FROM (SELECT * FROM orders ORDER BY {turn})"
        metadata = transform(tables, query, tmp_path / "out", order_by=["id desc"])
        prints.add(metadata["fingerprint"])
    assert read_dataset(tmp_path / "out")["price"].to_pylist() == [4, 2, 1, 3]
    assert len(prints) == 1
    with pytest.raises(InputError, match="names 'prize'; it has id, price"):
        transform(tables, query, tmp_path / "out", order_by=["prize"])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"memory_limit": "much"}, "memory_limit is 'much'; write an amount of memory like 2GB"),
        ({"temp_directory": "/nowhere"}, "/nowhere, which is no directory"),
    ],
)
def test_a_bad_setting_is_one_sentence(
    tables: Path, tmp_path: Path, settings: dict[str, str], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        transform(tables, "SELECT 1 AS x", tmp_path / "out", **settings)  # type: ignore[arg-type]


SORT_TEN_MILLION = """
import resource, sys
from kfloop.components.data.transform import transform
tables, out, spill = sys.argv[1:]
query = '''SELECT i, hash(i) AS key, 'name-' || hash(i) % 100000 AS name, i / 3 AS x,
    TIMESTAMP '2024-01-01' + to_seconds(CAST(hash(i) % 10000000 AS BIGINT)) AS at
FROM range(10000000) AS r(i)'''
told = transform(tables, query, out, "at", order_by=["at"], memory_limit="700MB",
    temp_directory=spill)
print(told["rows"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_ten_million_rows_are_sorted_in_less_than_two_gigabytes(
    tables: Path, tmp_path: Path
) -> None:
    spill = tmp_path / "spill"
    spill.mkdir()
    command = [sys.executable, "-c", SORT_TEN_MILLION, tables, tmp_path / "out", spill]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows, peak = map(int, done.stdout.split()[-2:])
    print(f"{rows:,} rows, a peak of {peak / 1e9:.2f} GB")  # shown by -s
    assert rows == 10_000_000
    assert peak < 2e9
    assert list(spill.iterdir()) == []


def test_an_error_in_the_last_row_is_still_one_sentence(tables: Path, tmp_path: Path) -> None:
    query = (
        "SELECT CASE WHEN i > 2900000 THEN CAST('a' || i AS INT) END AS x FROM range(3000000) r(i)"
    )
    with pytest.raises(InputError, match="Could not convert string 'a2900001'"):
        transform(tables, query, tmp_path / "out")


def test_an_interrupted_query_tells_the_error_that_interrupted_it() -> None:
    query = "SELECT CAST(x AS INT) FROM (VALUES ('1'), ('one')) rows(x)"
    with (
        duck.connect() as connection,
        pytest.raises(duckdb.ConversionException, match="'one'"),
        duck.first_error(connection, lambda: connection.execute(query).fetchall()),
    ):
        raise duckdb.InterruptException("INTERRUPT Error: Interrupted!")


def test_no_rows_can_be_an_answer(tables: Path, tmp_path: Path) -> None:
    query = "SELECT id, moment FROM orders"
    metadata = transform(tables, query, tmp_path / "out", "moment", "2030-01-01", allow_empty=True)
    assert metadata["rows"] == 0
    assert metadata["columns"] == ["id", "moment"]


def test_a_window_needs_a_timestamp(tables: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="need a timestamp"):
        transform(tables, "SELECT * FROM orders", tmp_path / "out", since="2024-01-01")


def test_feature_tables_are_one_dataset_per_query(tables: Path, tmp_path: Path) -> None:
    queries = {"spending": "SELECT id, moment, price FROM orders ORDER BY moment"}
    metadata = build_feature_tables(tables, queries, tmp_path / "out")
    assert metadata["tables"] == {"spending": 4}
    assert read_dataset(tmp_path / "out" / "spending")["price"].to_pylist() == [1, 2, 3, 4]


def test_a_loop_without_feature_tables_gets_an_empty_directory(
    tables: Path, tmp_path: Path
) -> None:
    assert build_feature_tables(tables, {}, tmp_path / "out")["tables"] == {}
    assert list((tmp_path / "out").iterdir()) == []


def test_a_feature_table_without_rows_is_named(tables: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'spending' returns no rows"):
        build_feature_tables(
            tables, {"spending": "SELECT * FROM orders WHERE false"}, tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()
