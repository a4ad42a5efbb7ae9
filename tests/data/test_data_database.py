# SPDX-License-Identifier: Apache-2.0
"""Sources in a database: SQLite always, PostgreSQL where its server is installed."""

import datetime as dt
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import psycopg
import pyarrow as pa
import pytest
from postgresql_server import Database

from kfloop.components.contracts.dataset import read_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.data import database
from kfloop.components.data.ingest import ingest

QUERY = "SELECT id, at, value FROM readings"
WINDOW = {"since": "2024-01-02", "until": "2024-01-03T12:00"}
TIMES = [
    "2024-01-01 23:59:59.999",
    "2024-01-02 00:00:00",
    "2024-01-03T11:59:59.5",
    "2024-01-03 13:30:00+02:00",
    "2024-01-03 12:00:00",
]


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    with sqlite3.connect(tmp_path / "readings.db") as connection:
        connection.execute("CREATE TABLE readings (id INTEGER, at TEXT, value)")
        rows = [(number, at, number / 2) for number, at in enumerate(TIMES)]
        connection.executemany("INSERT INTO readings VALUES (?, ?, ?)", rows)
    connection.close()
    return f"sqlite:///{tmp_path / 'readings.db'}"


def rows_of(tmp_path: Path, uri: str, query: str = QUERY, **settings: Any) -> list[dict[str, Any]]:
    timestamp = settings.pop("timestamp", "")
    entry = {"name": "readings", "uri": uri, "query": query, "timestamp": timestamp}
    ingest([entry], tmp_path / "tables", **settings)
    return read_dataset(tmp_path / "tables" / "readings").to_pylist()


def test_sqlite_rows_become_a_table(sqlite: str, tmp_path: Path) -> None:
    rows = rows_of(tmp_path, sqlite, QUERY + " -- as they are\n;")
    assert [row["value"] for row in rows] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert rows[0]["at"] == TIMES[0]


def test_sqlite_is_asked_for_the_window_only(
    sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    write = database._write
    monkeypatch.setattr(database, "BATCH_ROWS", 2)

    def counted(name: str, columns: Any, schema: Any, batches: Any, directory: Path) -> list[Path]:
        batches = list(batches)
        read.extend(row for batch in batches for row in batch)
        return write(name, columns, schema, iter(batches), directory)

    monkeypatch.setattr(database, "_write", counted)
    rows = rows_of(tmp_path, sqlite, timestamp="at", **WINDOW)
    assert [row["id"] for row in rows] == [1, 3, 2]
    assert all(row["at"].tzinfo is not None for row in rows)
    # The one at the very end is the database's doing: it compares whole seconds.
    assert sorted(row[0] for row in read) == [1, 2, 3, 4]


def test_the_order_a_database_gives_does_not_matter(sqlite: str, tmp_path: Path) -> None:
    prints = set()
    for order in ("id", "id DESC", "random()"):
        entry = {"name": "t", "uri": sqlite, "query": f"{QUERY} ORDER BY {order}"}
        prints.add(ingest([entry], tmp_path / "tables")["fingerprint"])
    assert len(prints) == 1


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("SELECT id FROM absent", "no such table: absent"),
        ("SELECT id FORM readings", "syntax error"),
        ("DELETE FROM readings", "syntax error"),
        ("SELECT id FROM readings WHERE false", "has no rows; check the query"),
        ("SELECT id, id FROM readings", "'id' more than once"),
        ("SELECT CASE id WHEN 1 THEN 'x' ELSE 2 END AS mixed FROM readings", "'mixed' .*cast it"),
    ],
)
def test_a_bad_query_is_one_sentence(sqlite: str, tmp_path: Path, query: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as error:
        rows_of(tmp_path, sqlite, query)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "tables").exists()


def test_types_that_differ_between_batches_are_one_sentence(
    sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BATCH_ROWS", 2)
    numbers = "SELECT CASE WHEN id < 2 THEN id ELSE id / 2.0 END AS x FROM readings ORDER BY id"
    assert [row["x"] for row in rows_of(tmp_path, sqlite, numbers)] == [0.0, 1.0, 1.0, 1.5, 2.0]
    late = "SELECT CASE WHEN id > 2 THEN id END AS x FROM readings ORDER BY id"
    assert [row["x"] for row in rows_of(tmp_path, sqlite, late)] == [3, 4, None, None, None]
    with pytest.raises(InputError, match=r"'x' .* holds both int64 and string"):
        rows_of(tmp_path, sqlite, "SELECT iif(id < 2, 1, 'a') AS x FROM readings ORDER BY id")


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("sqlite:///nowhere.db", "no SQLite file is"),
        ("postgresql://me:hunter2@127.0.0.1/db", "has a password in its uri"),
        ("postgresql://127.0.0.1/db?user=me&password=hunter2", "has a password in its uri"),
        ("postgresql+psycopg://me@127.0.0.1:1/db", "cannot be reached"),
        ("mysql+nodriver://127.0.0.1/db", "driver is not installed"),
        ("${KFLOOP_NOT_SET}", "KFLOOP_NOT_SET, which is not set"),
        ("${KFLOOP_BROKEN}", "not a database's URL"),
        ("not a url", "not a database's URL"),
    ],
)
def test_a_bad_database_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, told: str
) -> None:
    monkeypatch.setenv("KFLOOP_BROKEN", "hunter2@:::")
    with pytest.raises(InputError, match=told) as error:
        rows_of(tmp_path, uri)
    assert "\n" not in str(error.value)
    chain: BaseException | None = error.value
    while chain is not None:
        assert "hunter2" not in str(chain)
        chain = None if chain.__suppress_context__ else chain.__cause__ or chain.__context__


@pytest.fixture
def warehouse(postgresql: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    monkeypatch.setenv("KFLOOP_TEST_PASSWORD", postgresql.password)
    with psycopg.connect(
        host="127.0.0.1",
        port=postgresql.port,
        user=postgresql.user,
        password=postgresql.password,
        dbname="postgres",
    ) as connection:
        connection.execute("DROP TABLE IF EXISTS readings")
        connection.execute(
            "CREATE TABLE readings (id int, at timestamp, zoned timestamptz, day date, "
            "price numeric(10, 2), name varchar(20), ok boolean, key uuid, small real, raw bytea, "
            "clock time, void text, tags text[])"
        )
        connection.execute(
            "INSERT INTO readings SELECT i, timestamp '2024-01-01' + i * interval '1 hour', "
            "timestamptz '2024-01-01 00:00Z' + i * interval '1 hour', date '2024-01-01' + i / 24, "
            "i / 4.0, 'n' || i, i % 2 = 0, gen_random_uuid(), i, '\\x01', '12:30', NULL, "
            "ARRAY['a'] FROM generate_series(0, 99) AS i"
        )
        connection.execute("CREATE INDEX ON readings (at)")
    return postgresql


def test_postgresql_rows_keep_their_types(warehouse: Database, tmp_path: Path) -> None:
    query = "SELECT id, at, zoned, day, price, name, ok, key, small, raw, clock, void FROM readings"
    rows_of(tmp_path, warehouse.uri("${KFLOOP_TEST_PASSWORD}"), query)
    table = read_dataset(tmp_path / "tables" / "readings")
    assert table.num_rows == 100
    assert dict(zip(table.column_names, table.schema.types, strict=True)) == {
        "id": pa.int32(),
        "at": pa.timestamp("us"),
        "zoned": pa.timestamp("us", tz="UTC"),
        "day": pa.date32(),
        "price": pa.float64(),
        "name": pa.string(),
        "ok": pa.bool_(),
        "key": pa.string(),
        "small": pa.float32(),
        "raw": pa.binary(),
        "clock": pa.time64("us"),
        "void": pa.string(),
    }
    assert table["price"].to_pylist()[:3] == [0.0, 0.25, 0.5]


@pytest.mark.parametrize("column", ["at", "zoned", "day"])
def test_postgresql_is_asked_for_the_window_in_utc(
    warehouse: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    uri = warehouse.uri("${KFLOOP_TEST_PASSWORD}")
    batches = []
    pushed = database._write

    def counted(name: str, columns: Any, schema: Any, given: Any, directory: Path) -> list[Path]:
        batches.extend(list(given))
        return pushed(name, columns, schema, iter(batches), directory)

    monkeypatch.setattr(database, "_write", counted)
    window = {"since": "2024-01-02", "until": "2024-01-03"}
    query = f"SELECT id, {column} FROM readings"
    rows = rows_of(tmp_path, uri, query, timestamp=column, **window)
    assert [row["id"] for row in rows] == list(range(24, 48))
    assert sum(map(len, batches)) == 24


def test_a_query_may_hold_casts_percents_colons_and_comments(
    warehouse: Database, tmp_path: Path
) -> None:
    query = """
        WITH few AS (SELECT id::text AS id, ':not_a_parameter' AS a, '5%' AS b, at
                     FROM readings WHERE name LIKE 'n1%' ORDER BY id)
        SELECT *, to_char(at, 'HH24:MI') AS clock FROM few -- the end
    """
    uri = warehouse.uri("${KFLOOP_TEST_PASSWORD}")
    rows = rows_of(tmp_path, uri, query, timestamp="at", since="2024-01-01", until="2024-01-02")
    assert len(rows) == 11
    assert rows[0] == {
        "id": "1",
        "a": ":not_a_parameter",
        "b": "5%",
        "at": dt.datetime(2024, 1, 1, 1),
        "clock": "01:00",
    }


def test_the_whole_url_can_come_from_the_environment(
    warehouse: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("WAREHOUSE_URL", warehouse.uri(quote_plus(warehouse.password)))
    entry = {"name": "readings", "uri": "${WAREHOUSE_URL}", "query": QUERY.replace("value", "ok")}
    first = ingest([entry], tmp_path / "tables")
    assert first["sources"][0]["uri"] == "${WAREHOUSE_URL}"
    assert ingest([entry], tmp_path / "again")["fingerprint"] == first["fingerprint"]
    told = capfd.readouterr()
    secret = warehouse.password.strip("@/:%")
    assert secret not in told.out + told.err + str(first)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("SELECT\n  nothing\nFROM readings", 'column "nothing" does not exist'),
        ("SELECT tags FROM readings", r"'tags' .* text\[\], which has no place .* cast it"),
        ("SELECT 1 / (id - 50) AS x FROM readings", "division by zero"),
        ("WITH gone AS (DELETE FROM readings RETURNING id) SELECT * FROM gone", "top level"),
        ("SELECT setval('s', 1)", "does not exist"),
    ],
)
def test_a_bad_postgresql_query_is_one_sentence(
    warehouse: Database, tmp_path: Path, query: str, told: str
) -> None:
    with pytest.raises(InputError, match=told) as error:
        rows_of(tmp_path, warehouse.uri("${KFLOOP_TEST_PASSWORD}"), query)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "tables").exists()


def test_a_wrong_password_is_not_told(
    warehouse: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFLOOP_TEST_PASSWORD", "hunter2")
    with pytest.raises(InputError, match=r"cannot be reached: .*password authentication") as error:
        rows_of(tmp_path, warehouse.uri("${KFLOOP_TEST_PASSWORD}"))
    assert "hunter2" not in str(error.value)
    assert "\n" not in str(error.value)
