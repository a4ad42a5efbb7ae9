# SPDX-License-Identifier: Apache-2.0
"""The point-in-time join, on DuckDB's ASOF JOIN; knows no Feast.

A value belongs to an example when it is the newest with time <= the example's time, and is not
older than the history's ttl (both bounds inclusive; no ttl, or one of zero, is for ever). Of the
values of one key and time, the one that was created last counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import duckdb
import pyarrow as pa

from kfloop.components.contracts.errors import InputError


@dataclass(frozen=True)
class History:
    """Values of features over time, in Parquet files.

    Attributes:
        name: What it is called in errors.
        files: Path or glob of the files.
        keys: The examples' column by key column of the files; empty when values are for everyone.
        features: The name to give by feature column of the files.
        timestamp: Column with the time from which a row was known; without a zone it is UTC.
        created: Column that decides between rows of one key and time, or empty.
        ttl: How long a value is good.
    """

    name: str
    files: str
    keys: dict[str, str]
    features: dict[str, str]
    timestamp: str
    created: str = ""
    ttl: timedelta | None = None


def join(examples: pa.Table, timestamp: str, histories: Sequence[History]) -> pa.Table:
    """Returns the examples, each once and in its place, with the features of the histories.

    Times are compared in microseconds. One history is in memory at a time.

    Args:
        examples: Key columns and `timestamp`.
        timestamp: Column with each example's time; without a zone it is UTC, and an example
            without one has no values.
        histories: What to join; no two features have one name.

    Raises:
        InputError: If a key has another type in a history, or a history has two values for one
            key and time.
    """
    keys = list(dict.fromkeys(key for history in histories for key in history.keys.values()))
    with duckdb.connect(config={"autoinstall_known_extensions": "false"}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("given", _narrow(examples, keys, timestamp))
        # As a table: DuckDB knows its size, and does not join it in a loop as if it were tiny.
        connection.execute(
            "CREATE TABLE examples AS SELECT * REPLACE (asked_at::TIMESTAMPTZ AS asked_at) "
            "FROM given"
        )
        for history in histories:
            _load(connection, history)
            _require_key_types(connection, history)
            values = connection.sql(_query(history)).to_arrow_table()
            for name in history.features.values():
                examples = examples.append_column(name, values[name])
    return examples


def _narrow(examples: pa.Table, keys: list[str], timestamp: str) -> pa.Table:
    """Returns what the join needs of the examples, under names that nothing else has."""
    columns = {f"key_{key}": examples[key] for key in keys}
    columns["asked_at"] = _microseconds(examples[timestamp])
    columns["place"] = pa.array(range(len(examples)), pa.int64())
    return pa.table(columns)


def _microseconds(column: pa.ChunkedArray) -> pa.ChunkedArray:
    zone = column.type.tz if pa.types.is_timestamp(column.type) else None
    return column.cast(pa.timestamp("us", zone), safe=False)


def _query(history: History) -> str:
    matches = [f"examples.{_quote('key_' + ours)} = history.{_quote('key_' + theirs)}"
               for theirs, ours in history.keys.items()]  # fmt: skip
    matches.append("examples.asked_at >= history.known_at")
    expires = "TRUE"
    if history.ttl:
        microseconds = round(history.ttl.total_seconds() * 1_000_000)
        expires = f"examples.asked_at <= history.known_at + to_microseconds({microseconds})"
    features = ", ".join(
        f"CASE WHEN {expires} THEN history.{_quote(name)} END AS {_quote(name)}"
        for name in history.features.values()
    )
    return (
        f"SELECT {features} FROM examples ASOF LEFT JOIN history "
        f"ON {' AND '.join(matches)} ORDER BY examples.place"
    )


def _load(connection: duckdb.DuckDBPyConnection, history: History) -> None:
    """Creates the table `history`: one row per key and time that an example can see."""
    keys = [_quote("key_" + name) for name in history.keys]
    selected = [f"{_quote(name)} AS {key}" for name, key in zip(history.keys, keys, strict=True)]
    selected += [f"{_quote(old)} AS {_quote(new)}" for old, new in history.features.items()]
    selected.append(f"CAST({_quote(history.timestamp)} AS TIMESTAMPTZ) AS known_at")
    identity = ", ".join([*keys, "known_at"])
    last_created = ""
    if history.created:
        last_created = (
            f" QUALIFY rank() OVER (PARTITION BY {identity} "
            f"ORDER BY {_quote(history.created)} DESC NULLS LAST) = 1"
        )
    present = " AND ".join(f"{key} IS NOT NULL" for key in [*keys, "known_at"])
    files = history.files.replace("'", "''")
    connection.execute(
        f"""CREATE OR REPLACE TABLE history AS SELECT {", ".join(selected)}
            FROM read_parquet('{files}', union_by_name = true)
            WHERE {present} AND known_at <= (SELECT max(asked_at) FROM examples){last_created}"""
    )
    ties = f"SELECT {identity} FROM history GROUP BY ALL HAVING count(*) > 1 LIMIT 1"
    if connection.sql(ties).fetchone():
        # A row that is there twice is no trouble.
        connection.execute("CREATE OR REPLACE TABLE history AS SELECT DISTINCT * FROM history")
    tie = connection.sql(ties).fetchone()
    if tie:
        shown = ", ".join(str(_told(value)) for value in tie)
        raise InputError(
            f"The source of the feature view {history.name!r} has different rows for one key and "
            f"time ({shown}); aggregate them, or name a created_timestamp_column that decides."
        )


def _require_key_types(connection: duckdb.DuckDBPyConnection, history: History) -> None:
    examples, source = connection.table("examples"), connection.table("history")
    for theirs, ours in history.keys.items():
        asked = examples.types[examples.columns.index(f"key_{ours}")]
        known = source.types[source.columns.index(f"key_{theirs}")]
        if (asked.id == "varchar") != (known.id == "varchar"):
            raise InputError(
                f"The entity key {ours!r} holds {asked} in the examples and {known} in the source "
                f"of the feature view {history.name!r}; cast one of them."
            )


def _told(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
