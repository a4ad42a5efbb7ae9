from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from kfloop.components.contracts.dataset import read_dataset, write_dataset
from kfloop.components.contracts.errors import InputError
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
        ("SELECT moment, CAST(id AS INT) AS id\nFROM orders", "Could not convert string"),
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


def test_an_error_in_the_last_row_is_still_one_sentence(tables: Path, tmp_path: Path) -> None:
    query = (
        "SELECT CASE WHEN i > 2900000 THEN CAST('a' || i AS INT) END AS x FROM range(3000000) r(i)"
    )
    with pytest.raises(InputError, match="Could not convert string 'a2900001'"):
        transform(tables, query, tmp_path / "out")


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
