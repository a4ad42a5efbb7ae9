# SPDX-License-Identifier: Apache-2.0
"""DuckDB, set up the same way in every step: times in UTC, no network, errors a user reads."""

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from kfloop.components.contracts.dataset import dataset_files, parse_time, table_names
from kfloop.components.contracts.errors import InputError

BATCH_ROWS = 100_000
SINGLE_DATASET = "dataset"

# What SQL produces without being asked, and neither TFDV nor TensorFlow reads: sum() of integers is
# a HUGEINT, 0.1 is a DECIMAL.
PLAIN_TYPES = {
    "hugeint": "BIGINT",
    "uhugeint": "BIGINT",
    "decimal": "DOUBLE",
    "enum": "VARCHAR",
    "uuid": "VARCHAR",
    "timestamp_s": "TIMESTAMP",
    "timestamp_ms": "TIMESTAMP",
    "timestamp_ns": "TIMESTAMP",
}
TIME_TYPES = (
    "date",
    "timestamp",
    "timestamp with time zone",
    "timestamp_s",
    "timestamp_ms",
    "timestamp_ns",
)


# Version 2 and version 1, as a container sees its own.
CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


@contextmanager
def connect(
    memory_limit: str = "", temp_directory: str = ""
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Gives an in-memory database that spills to disk what does not fit.

    Args:
        memory_limit: Most memory for DuckDB, like `2GB`; the process needs some 300 MB beside it.
            Empty for half of what the container (else the machine) has.
        temp_directory: Where to spill, in a folder that is removed at the end; empty for the
            system's temporary directory.

    Raises:
        InputError: If the limit is not an amount of memory, or the directory is not there.
    """
    if temp_directory and not Path(temp_directory).is_dir():
        raise InputError(f"temp_directory is {temp_directory}, which is no directory; create it.")
    with (
        tempfile.TemporaryDirectory(prefix="kfloop-duckdb-", dir=temp_directory or None) as scratch,
        duckdb.connect(
            config={"temp_directory": scratch, "autoinstall_known_extensions": "false"}
        ) as connection,
    ):
        connection.execute("SET TimeZone = 'UTC'")
        limit = memory_limit or f"{available_memory() // 2}B"
        try:
            connection.execute(f"SET memory_limit = {literal(limit)}")
        except duckdb.ParserException as error:
            raise InputError(
                f"memory_limit is {memory_limit!r}; write an amount of memory like 2GB."
            ) from error
        yield connection


def available_memory() -> int:
    """Returns the bytes of memory of this container, or of the machine if it has no limit."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in CGROUP_LIMITS:
        try:
            limits.append(int(file.read_text(encoding="ascii")))
        except (OSError, ValueError):
            # Not this version of cgroups, or `max`.
            continue
    return min(limits)


@contextmanager
def explained(what: str, query: str = "") -> Iterator[None]:
    """Turns an error of DuckDB into an InputError of one sentence.

    Args:
        what: What cannot be done, for example `The query cannot run`.
        query: The user's SQL; lets the sentence name the line.
    """
    try:
        yield
    except (duckdb.Error, pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{what}: {_sentence(str(error), query)}.") from error


def _sentence(message: str, query: str) -> str:
    told, _, place = message.partition("\n\nLINE ")
    text = " ".join(told.split()).rstrip(".")
    found = re.match(r"(\d+): ([^\n]*)", place)
    if not found:
        return text
    shown = found[2].strip(". ")
    lines = dict(enumerate(query.splitlines(), 1))
    # While rows are computed the query is one line further down: `Selection` wraps it.
    for number in (int(found[1]), int(found[1]) - 1):
        if shown and shown in lines.get(number, ""):
            return f"{text}; line {number} of the query: {lines[number].strip()}"
    return text


def quote(name: str) -> str:
    """Quotes an identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quotes a string."""
    return "'" + text.replace("'", "''") + "'"


def scan(files: list[Path]) -> str:
    """Returns the SQL that reads Parquet files by column name."""
    listed = ", ".join(literal(str(file)) for file in files)
    return f"read_parquet([{listed}], union_by_name = true, hive_partitioning = false)"


def create_views(connection: duckdb.DuckDBPyConnection, tables: str | Path) -> list[str]:
    """Creates one view per table and returns their names.

    Args:
        connection: Where to create them.
        tables: Tables, or one dataset, which becomes the view `dataset`.
    """
    names = table_names(tables)
    paths = {name: Path(tables) / name for name in names} or {SINGLE_DATASET: Path(tables)}
    for name, path in paths.items():
        source = scan(dataset_files(path))
        connection.execute(f"CREATE VIEW {quote(name)} AS SELECT * FROM {source}")
    return list(paths)


@contextmanager
def first_error(
    connection: duckdb.DuckDBPyConnection, stream: Callable[[], Iterable[object]]
) -> Iterator[None]:
    """Finds out what went wrong in a query that says only that it was interrupted.

    An error in one of DuckDB's threads interrupts the others, and theirs may be told first. A
    single thread tells its own.

    Args:
        connection: Where the query runs.
        stream: Runs it again.
    """
    try:
        yield
    except (duckdb.Error, pa.ArrowInvalid, OSError) as error:
        if "INTERRUPT" in str(error):
            connection.execute("SET threads = 1")
            for _ in stream():
                pass
        raise


@dataclass(frozen=True)
class Selection:
    """One SELECT of the user, checked, with columns of types that everyone reads.

    Attributes:
        sql: It as SQL that can be wrapped; the user's text starts in its second line.
        relation: The same, to ask for its columns.
    """

    sql: str
    relation: duckdb.DuckDBPyRelation

    def reader(
        self, connection: duckdb.DuckDBPyConnection, condition: str = "true", order: str = ""
    ) -> pa.RecordBatchReader:
        """Streams its rows; from the user's own text, so that errors know their line."""
        ordered = f"\nORDER BY {order}" if order else ""

        def stream() -> pa.RecordBatchReader:
            result = connection.execute(f"{self.sql}\nWHERE {condition}{ordered}")
            return result.to_arrow_reader(BATCH_ROWS)

        def batches() -> Iterator[pa.RecordBatch]:
            with first_error(connection, stream):
                yield from rows

        with first_error(connection, stream):
            rows = stream()
        return pa.RecordBatchReader.from_batches(rows.schema, batches())


def select(
    connection: duckdb.DuckDBPyConnection, query: str, what: str, views: list[str]
) -> Selection:
    """Prepares one SELECT of the user and gives its columns types that everyone reads.

    Raises:
        InputError: If it is not one SELECT, cannot run, or names a column twice.
    """
    with explained(f"{what} cannot be parsed", query):
        statements = [each for each in connection.extract_statements(query) if each.query.strip()]
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise InputError(f"{what} must be one SELECT; it holds {_kinds(statements)}.")
    try:
        with explained(f"{what} cannot run", query):
            relation = connection.sql(query)
    except InputError as error:
        if isinstance(error.__cause__, duckdb.CatalogException):
            tables = ", ".join(views)
            raise InputError(f"{str(error).rstrip('.')}; the tables are {tables}.") from error
        raise
    twice = sorted({name for name in relation.columns if relation.columns.count(name) > 1})
    if twice:
        raise InputError(
            f"{what} returns the column {', '.join(map(repr, twice))} more than once; "
            "name each column once, or rename it with AS."
        )
    columns = ", ".join(_plain_columns(relation))
    sql = f"SELECT {columns} FROM (\n{_without_end(query)}\n)"
    return Selection(sql, relation.project(columns))


def _without_end(query: str) -> str:
    """Cuts a closing ; and what follows it: neither can stand within parentheses."""
    for offset, _ in reversed(duckdb.tokenize(query)):
        if query.encode()[offset : offset + 1] != b";":
            break
        query = query.encode()[:offset].decode()
    return query


def total_order(
    relation: duckdb.DuckDBPyRelation, first: Sequence[str], what: str = "the rows"
) -> str:
    """Returns the SQL of an order that leaves nothing to chance: ties go by the other columns.

    Args:
        relation: What is ordered.
        first: Columns that count first, each with ` DESC` after it or not.
        what: What is ordered, for the error.

    Raises:
        InputError: If a column is not there.
    """
    terms, named = [], []
    for term in first:
        found = re.fullmatch(r"(.+?)(?:\s+(asc|desc))?", term.strip(), re.IGNORECASE)
        column = found[1] if found else term
        if column not in relation.columns:
            raise InputError(
                f"The order of {what} names {column!r}; it has {', '.join(relation.columns)}."
            )
        named.append(column)
        direction = (found[2] or "asc").upper() if found else "ASC"
        terms.append(f"{quote(column)} {direction} NULLS LAST")
    terms += [f"{quote(name)} NULLS LAST" for name in relation.columns if name not in named]
    return ", ".join(terms)


def _kinds(statements: list[duckdb.Statement]) -> str:
    return ", ".join(each.type.name for each in statements) or "nothing"


def _plain_columns(relation: duckdb.DuckDBPyRelation) -> Iterator[str]:
    for name, kind in zip(relation.columns, relation.types, strict=True):
        plain = PLAIN_TYPES.get(kind.id)
        column = quote(name)
        yield f"CAST({column} AS {plain}) AS {column}" if plain else column


def require_time(relation: duckdb.DuckDBPyRelation, timestamp: str, where: str) -> None:
    """Raises InputError unless `timestamp` is a date or timestamp column of the relation."""
    if timestamp not in relation.columns:
        raise InputError(
            f"Timestamp column {timestamp!r} is missing from {where}; "
            f"it has {', '.join(relation.columns)}."
        )
    kind = relation.types[relation.columns.index(timestamp)]
    if kind.id not in TIME_TYPES:
        raise InputError(
            f"Column {timestamp!r} of {where} is used as the timestamp but holds {kind}; "
            "give a column of dates or timestamps, or cast it."
        )


def moment(column: str) -> str:
    """Returns SQL for a date or time column as an instant; without a zone it is UTC."""
    return f"CAST({quote(column)} AS TIMESTAMPTZ)"


def instant(value: str, name: str) -> str:
    """Returns SQL for an ISO 8601 setting as an instant; `name` is for the error."""
    return f"TIMESTAMPTZ {literal(parse_time(value, name).isoformat())}"


def window(timestamp: str, since: str, until: str) -> str:
    """Returns the SQL condition `since` <= timestamp < `until`; an empty bound is open.

    Rows without a timestamp are not judged: the condition is NULL for them.
    """
    bounds = ["true"]
    if since:
        bounds.append(f"{moment(timestamp)} >= {instant(since, 'since')}")
    if until:
        bounds.append(f"{moment(timestamp)} < {instant(until, 'until')}")
    return " AND ".join(bounds)


def reader(relation: duckdb.DuckDBPyRelation) -> pa.RecordBatchReader:
    """Streams a relation."""
    return relation.to_arrow_reader(BATCH_ROWS)
