# SPDX-License-Identifier: Apache-2.0
"""Train and evaluation parts that share nothing they must not share."""

from pathlib import Path
from typing import Any

import duckdb

from kfloop.components.contracts.dataset import dataset_files, require_columns, write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.data import duck

METHODS = ("time", "hash", "group")


def split(
    dataset: str | Path,
    train: str | Path,
    evaluation: str | Path,
    method: str = "time",
    timestamp: str = "",
    at: str = "",
    fraction: float = 0.2,
    key: str = "",
    since: str = "",
    until: str = "",
) -> dict[str, dict[str, Any]]:
    """Splits a dataset in two.

    - `time`: rows before a moment train, the others evaluate. The moment is `at`, or such that
      about `fraction` of the rows come after it; rows of one instant stay together.
    - `hash`: a key's hash decides, so that it stays on its side as the data grows; the parts have
      about the sizes that were asked for when there are many keys.
    - `group`: keys in the order of their hash, until `fraction` of the rows evaluate; sizes are
      closer with few keys, but a key can change sides as the data grows.

    In `hash` and `group` all rows of one key stay together.

    Args:
        dataset: Dataset to split.
        train: Dataset to write.
        evaluation: Dataset to write.
        method: `time`, `hash` or `group`.
        timestamp: Column of times; required by `time`.
        at: Moment of the split, ISO 8601, for `time`; empty to use `fraction`.
        fraction: Part of the rows to evaluate on, between 0 and 1.
        key: Column whose values stay together; required by `hash` and `group`.
        since: Rows before this moment, ISO 8601, are in neither part; needs `timestamp`.
        until: Rows from this moment on are in neither part; needs `timestamp`.

    Returns:
        The metadata of the datasets, by `train` and `evaluation`.

    Raises:
        InputError: If a setting does not fit the data, a row has no timestamp or key, or a part
            would be empty.
    """
    if method not in METHODS:
        raise InputError(f"The split method is {method!r}; use {', '.join(METHODS)}.")
    if not 0 < fraction < 1:
        raise InputError(f"The split fraction is {fraction}; it lies between 0 and 1.")
    column = timestamp if method == "time" else key
    if not column:
        needs = "timestamp" if method == "time" else "key"
        raise InputError(f"The split method {method!r} needs the {needs} column; give its name.")
    if (since or until) and not timestamp:
        raise InputError("since and until need the timestamp column; give its name.")
    windowed = method == "time" or since or until
    require_columns(dataset, [column, timestamp] if windowed else [column])
    with duck.connect() as connection:
        rows = connection.sql(f"SELECT * FROM {duck.scan(dataset_files(dataset))}")
        if windowed:
            duck.require_time(rows, timestamp, "the dataset")
        _require_values(rows, column)
        if since or until:
            _require_values(rows, timestamp)
            rows = rows.filter(duck.window(timestamp, since, until))
        if method == "time":
            moment = duck.instant(at, "at") if at else _moment(rows, timestamp, fraction)
            evaluates = f"{duck.moment(timestamp)} >= {moment}"
        elif method == "hash":
            evaluates = f"{_position(key)} < {fraction}"
        else:
            evaluates = _in_groups(connection, rows, key, fraction)
        parts = {
            "train": write_dataset(
                duck.reader(rows.filter(f"NOT ({evaluates})")), train, timestamp
            ),
            "evaluation": write_dataset(duck.reader(rows.filter(evaluates)), evaluation, timestamp),
        }
        for name, metadata in parts.items():
            if not metadata["rows"]:
                raise InputError(
                    f"The {name} part of the split is empty: {_why_empty(rows, name, column, at)}."
                )
            print(f"{name}: {metadata['rows']:,} rows", flush=True)
        _require_no_leak(connection, train, evaluation, method, column)
    return parts


def _require_values(rows: duckdb.DuckDBPyRelation, column: str) -> None:
    missing = _number(rows.filter(f"{duck.quote(column)} IS NULL").aggregate("count(*)"))
    if missing:
        raise InputError(
            f"{missing:.0f} rows have no {column!r}, so they belong to neither part of the split; "
            "fill it or leave them out in the query."
        )


def _why_empty(rows: duckdb.DuckDBPyRelation, name: str, column: str, at: str) -> str:
    if at:
        side = "before" if name == "train" else "from"
        return f"no row is {side} {at}; choose another moment"
    values = _number(rows.aggregate(f"count(DISTINCT {duck.quote(column)})"))
    if not values:
        return "there is no row; check since and until"
    if values == 1:
        return f"{column!r} is the same in all rows; split by another column"
    return (
        f"{column!r} has {values:.0f} values, too few for this fraction; choose another, or a key"
    )


def _number(relation: duckdb.DuckDBPyRelation) -> float:
    row = relation.fetchone()
    return float(row[0]) if row and row[0] is not None else 0.0


def _moment(rows: duckdb.DuckDBPyRelation, timestamp: str, fraction: float) -> str:
    time = duck.moment(timestamp)
    # The second instant at least: where most rows are of the first, they are what is learned from.
    moment = rows.query(
        "timed",
        f"""SELECT CAST(greatest(
            quantile_disc({time}, {1 - fraction}),
            min({time}) FILTER ({time} > (SELECT min({time}) FROM timed))
        ) AS VARCHAR) FROM timed""",
    ).fetchone()
    # No rows at all: both parts will be found to be empty.
    return f"TIMESTAMPTZ {duck.literal(moment[0])}" if moment and moment[0] else "now()"


def _position(key: str) -> str:
    """SQL for the place of a key in [0, 1), the same on every machine and release."""
    digest = f"substr(md5(CAST({duck.quote(key)} AS VARCHAR)), 1, 12)"
    return f"CAST('0x' || {digest} AS UBIGINT) / {16**12}.0"


def _in_groups(
    connection: duckdb.DuckDBPyConnection,
    rows: duckdb.DuckDBPyRelation,
    key: str,
    fraction: float,
) -> str:
    column = duck.quote(key)
    rows.aggregate(f"{column} AS key, count(*) AS size", column).create_view("sized")
    connection.execute(
        f"""CREATE TABLE evaluation_keys AS
        SELECT key FROM (
            SELECT
                key,
                (sum(size) OVER (ORDER BY {_position("key")}, key) - size / 2)
                    / sum(size) OVER () AS middle
            FROM sized
        ) WHERE middle <= {fraction}"""
    )
    return f"{column} IN (SELECT key FROM evaluation_keys)"


def _require_no_leak(
    connection: duckdb.DuckDBPyConnection,
    train: str | Path,
    evaluation: str | Path,
    method: str,
    column: str,
) -> None:
    """Checks the written parts rather than the intention."""
    name = duck.quote(column)
    trained, evaluated = (duck.scan(dataset_files(part)) for part in (train, evaluation))
    if method == "time":
        leak = f"(SELECT max({name}) FROM {trained}) >= (SELECT min({name}) FROM {evaluated})"
    else:
        leak = f"EXISTS (SELECT {name} FROM {trained} INTERSECT SELECT {name} FROM {evaluated})"
    if connection.sql(f"SELECT {leak}").fetchone() != (False,):
        raise RuntimeError(f"The split by {method} leaks: both parts share values of {column!r}.")
