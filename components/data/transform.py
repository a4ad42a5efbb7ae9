# SPDX-License-Identifier: Apache-2.0
"""SQL over tables: one query makes a dataset, several make feature tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from kfloop.components.contracts.dataset import (
    fingerprint,
    read_dataset,
    row_count,
    write_dataset,
)
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import new_directory
from kfloop.components.data import duck
from kfloop.components.data.names import require_table_name


def transform(
    tables: str | Path,
    query: str,
    path: str | Path,
    timestamp: str = "",
    since: str = "",
    until: str = "",
    allow_empty: bool = False,
    order_by: Sequence[str] = (),
    memory_limit: str = "",
    temp_directory: str = "",
) -> dict[str, Any]:
    """Runs a SELECT and writes its rows in a window as a dataset.

    The query sees all of the tables, so history before `since` is there for it; the window is
    cut from its result. Times are in UTC.

    Args:
        tables: Tables, one view each; or one dataset, which is the view `dataset`.
        query: One SELECT of DuckDB's SQL.
        path: The dataset to write.
        timestamp: Column of the result that the window is about; required with a window.
        since: Start of the window, ISO 8601, inclusive; empty for no start.
        until: End of the window, ISO 8601, exclusive; empty for no end.
        allow_empty: Whether no rows are an answer rather than an error.
        order_by: Columns of the result to sort by, each with ` DESC` after it or not; ties go by
            the other columns, so that the same rows are the same files. Empty to keep the query's
            order, which only an ORDER BY in it makes certain.
        memory_limit: Most memory DuckDB uses, see `duck.connect`.
        temp_directory: Where it spills, see `duck.connect`.

    Returns:
        The dataset's metadata.

    Raises:
        InputError: If the query cannot run, the timestamp is missing or has missing values, or
            no rows are left.
    """
    if (since or until) and not timestamp:
        raise InputError("since and until need a timestamp column; give its name.")
    with duck.connect(memory_limit, temp_directory) as connection:
        views = duck.create_views(connection, tables)
        selection = duck.select(connection, query, "The query", views)
        condition, order = "true", ""
        if timestamp:
            duck.require_time(selection.relation, timestamp, "the query's result")
            # Rows without a timestamp stay in, to be counted below: they belong to no window.
            column = duck.quote(timestamp)
            condition = f"{column} IS NULL OR ({duck.window(timestamp, since, until)})"
        if order_by:
            order = duck.total_order(selection.relation, order_by, "the query's result")
        with duck.explained("The query cannot run", query):
            rows = selection.reader(connection, condition, order)
            metadata = write_dataset(rows, path, timestamp)
    if timestamp:
        _require_timestamps(path, timestamp)
    if not metadata["rows"] and not allow_empty:
        raise InputError(f"The query returns no rows{_told_window(since, until)}; check both.")
    return metadata


def _require_timestamps(path: str | Path, timestamp: str) -> None:
    missing = pc.sum(pc.is_null(read_dataset(path, [timestamp])[timestamp])).as_py()
    if missing:
        raise InputError(
            f"{missing} rows of the query's result have no {timestamp!r}; "
            f"leave them out with WHERE {timestamp} IS NOT NULL, or fill it."
        )


def _told_window(since: str, until: str) -> str:
    told = [f"since {since}"] if since else []
    told += [f"until {until}"] if until else []
    return f" {' '.join(told)}" if told else ""


def build_feature_tables(
    tables: str | Path,
    queries: dict[str, str],
    path: str | Path,
    memory_limit: str = "",
    temp_directory: str = "",
) -> dict[str, Any]:
    """Runs one SELECT per feature table.

    Args:
        tables: Tables, one view each.
        queries: SQL by the name of the table it makes; empty makes a directory without tables.
        path: The directory to write.
        memory_limit: Most memory DuckDB uses, see `duck.connect`.
        temp_directory: Where it spills, see `duck.connect`.

    Returns:
        `tables` (rows by name) and `fingerprint`.

    Raises:
        InputError: If a query cannot run or returns no rows, or a name cannot name a table.
    """
    rows = {}
    with (
        new_directory(path) as directory,
        duck.connect(memory_limit, temp_directory) as connection,
    ):
        views = duck.create_views(connection, tables) if queries else []
        for name, query in queries.items():
            require_table_name(name, "A feature table")
            what = f"The query of feature table {name!r}"
            selection = duck.select(connection, query, what, views)
            with duck.explained(f"{what} cannot run", query):
                write_dataset(selection.reader(connection), directory / name)
            rows[name] = row_count(directory / name)
            if not rows[name]:
                raise InputError(f"{what} returns no rows; check it against the sources.")
            print(f"{name}: {rows[name]:,} rows", flush=True)
        return {"tables": rows, "fingerprint": fingerprint(directory)}
