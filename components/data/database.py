# SPDX-License-Identifier: Apache-2.0
"""Rows of a database, by SQL through SQLAlchemy, as Parquet files."""

import datetime as dt
import decimal
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from kfloop.components.contracts.dataset import parse_time
from kfloop.components.contracts.environment import REFERENCE, expand, holds_password
from kfloop.components.contracts.errors import InputError

BATCH_ROWS = 50_000
# How PostgreSQL calls its types, and what they become. NUMERIC is a double, as in `duck.select`.
POSTGRESQL_TYPES = {
    "bool": pa.bool_(),
    "int2": pa.int16(),
    "int4": pa.int32(),
    "int8": pa.int64(),
    "oid": pa.int64(),
    "float4": pa.float32(),
    "float8": pa.float64(),
    "numeric": pa.float64(),
    "text": pa.string(),
    "varchar": pa.string(),
    "bpchar": pa.string(),
    "char": pa.string(),
    "name": pa.string(),
    "uuid": pa.string(),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", tz="UTC"),
    "bytea": pa.binary(),
}


def read_query(
    name: str, uri: str, query: str, timestamp: str, since: str, until: str, directory: Path
) -> list[Path]:
    """Runs a query and writes its rows to Parquet files in `directory`.

    The window is part of what the database is asked, so that it can use its index. All rows are of
    one moment: the query runs in one read-only transaction (PostgreSQL: REPEATABLE READ).

    Args:
        name: The source, for errors.
        uri: SQLAlchemy's URL of the database. `${NAME}` stands for an environment variable.
        query: One SELECT in the database's own SQL.
        timestamp: Column the window is about; empty for no window.
        since: Start, ISO 8601, inclusive; empty for no start.
        until: End, ISO 8601, exclusive; empty for no end.
        directory: An empty directory.

    Returns:
        The files, none if there are no rows.

    Raises:
        InputError: If the database cannot be reached, the query cannot run, or a column has a type
            that has no place in a table. No message holds a password.
    """
    url = _url(name, uri)
    secrets = [text for text in (url.password, quote_plus(url.password or "")) if text]
    with _explained(name, secrets), _connected(url) as connection:
        engine = connection.engine
        dialect = engine.dialect.name
        if dialect == "postgresql":
            connection = connection.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
            # The window is in UTC, and so is a timestamp that has no zone.
            connection.execute(sa.text("SET TIME ZONE 'UTC'"))
        elif dialect == "sqlite":
            connection.execute(sa.text("PRAGMA query_only = ON"))
        statement = _windowed(engine.dialect, query, timestamp, since, until)
        result = connection.execution_options(stream_results=True, max_row_buffer=BATCH_ROWS)
        rows = result.execute(statement)
        columns = list(rows.keys())
        _require_distinct(name, columns)
        schema = _postgresql_schema(name, rows.cursor) if dialect == "postgresql" else None
        return _write(name, columns, schema, rows.partitions(BATCH_ROWS), directory)


def _url(name: str, uri: str) -> URL:
    what = f"The source {name!r}"
    if holds_password(uri):
        raise InputError(
            f"{what} has a password in its uri; put it into an environment variable and write "
            "${NAME} in its place."
        )
    whole = REFERENCE.fullmatch(uri)
    text = expand(uri, what) if whole else uri
    try:
        url = sa.make_url(text)
    except (ArgumentError, ValueError):
        # Not its text, nor its chain: they hold the URL.
        raise InputError(
            f"{what} is at {uri}, which is not a database's URL; write it like "
            "postgresql+psycopg://user:${PASSWORD}@host/database."
        ) from None
    if not whole:
        # After parsing, so that a password may hold any character.
        given = {"username": url.username, "password": url.password}
        given |= {"host": url.host, "database": url.database}
        url = url.set(**{key: expand(text, what) for key, text in given.items() if text})
        url = url.update_query_dict(
            {key: expand(text, what) for key, text in url.query.items() if isinstance(text, str)}
        )
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        # SQLite would make an empty one.
        raise InputError(f"{what} is at {uri}, where no SQLite file is; check the path.")
    return url


@contextmanager
def _connected(url: URL) -> Iterator[Any]:
    engine = sa.create_engine(url, hide_parameters=True, poolclass=sa.NullPool)
    with engine.connect() as connection:
        yield connection


@contextmanager
def _explained(name: str, secrets: Sequence[str]) -> Iterator[None]:
    what = f"The source {name!r}"
    try:
        yield
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise InputError(
            f"{what} is in a database whose driver is not installed here ({error}); use "
            "postgresql+psycopg:// or sqlite:///, or an image with the driver."
        ) from error
    except DBAPIError as error:
        doing = "cannot be reached" if error.connection_invalidated else "cannot be read"
        if not error.statement:
            doing = "cannot be reached"
        raise InputError(f"{what} {doing}: {_sentence(str(error.orig), secrets)}.") from None
    except SQLAlchemyError as error:
        raise InputError(f"{what} cannot be read: {_sentence(str(error), secrets)}.") from None


def _sentence(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    # PostgreSQL marks the place in the line below with a caret.
    lines = [line.strip() for line in text.splitlines() if line.strip(" ^\t")]
    return " ".join(lines).rstrip(".")


def _windowed(
    dialect: Any, query: str, timestamp: str, since: str, until: str
) -> sa.sql.elements.TextClause:
    # A colon of the query is its own, not the mark of a parameter.
    own = re.sub(r"(?<![:\w\\]):(?=\w)", r"\\:", query.strip().rstrip(";"))
    text = f"SELECT * FROM (\n{own}\n) AS source"
    if not timestamp:
        return sa.text(text)
    column = dialect.identifier_preparer.quote_identifier(timestamp)
    bounds = [f"{column} IS NOT NULL"]
    values: dict[str, Any] = {}
    for key, value, sign in (("since", since, ">="), ("until", until, "<")):
        if not value:
            continue
        moment = parse_time(value, key)
        if dialect.name == "sqlite":
            # Its times are texts of several forms, compared to the second; the rest is cut
            # exactly when the rows are here, and what it cannot read is refused there.
            sign = "<=" if sign == "<" else sign
            values[key] = moment.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
            bounds.append(f"(datetime({column}) {sign} :{key} OR datetime({column}) IS NULL)")
        else:
            aware = dialect.name == "postgresql"
            utc = moment.astimezone(dt.UTC)
            values[key] = utc if aware else utc.replace(tzinfo=None)
            bounds.append(f"{column} {sign} :{key}")
    return sa.text(f"{text}\nWHERE {' AND '.join(bounds)}").bindparams(**values)


def _require_distinct(name: str, columns: list[str]) -> None:
    # SQLite calls the second one `id:1`.
    plain = [re.sub(r":\d+$", "", column) for column in columns]
    twice = sorted({column for column in plain if plain.count(column) > 1})
    if twice:
        raise InputError(
            f"The query of the source {name!r} returns the column {', '.join(map(repr, twice))} "
            "more than once; name each column once, or rename it with AS."
        )


def _postgresql_schema(name: str, cursor: Any) -> pa.Schema:
    fields = []
    for column in cursor.description:
        known = POSTGRESQL_TYPES.get(re.sub(r"\(.*\)", "", column.type_display))
        if known is None:
            raise InputError(
                f"The column {column.name!r} of the source {name!r} is of the type "
                f"{column.type_display}, which has no place in a table; cast it in the query."
            )
        fields.append((column.name, known))
    return pa.schema(fields)


def _write(
    name: str,
    columns: list[str],
    schema: pa.Schema | None,
    batches: Iterator[Sequence[Sequence[Any]]],
    directory: Path,
) -> list[Path]:
    """Writes one file per batch; without a schema, each of the types its own values have."""
    files, total = [], 0
    kinds: dict[str, pa.DataType] = {column: pa.null() for column in columns}
    for number, batch in enumerate(batches):
        arrays = []
        for index, column in enumerate(columns):
            values = [row[index] for row in batch]
            array = _array(name, column, values, schema.field(column).type if schema else None)
            kinds[column] = _common(name, column, kinds[column], array.type)
            arrays.append(array)
        files.append(directory / f"{number:06d}.parquet")
        pq.write_table(pa.table(arrays, names=columns), files[-1], compression="zstd")
        total += len(batch)
        if number % 20 == 19:
            print(f"{name}: {total:,} rows read", flush=True)
    return files


# What a driver gives, as what Arrow takes.
_PLAIN: dict[type, Callable[[Any], Any]] = {decimal.Decimal: float, memoryview: bytes}


def _array(name: str, column: str, values: list[Any], kind: pa.DataType | None) -> pa.Array:
    sample = next((value for value in values if value is not None), None)
    plain = _PLAIN.get(type(sample))
    if kind is not None and pa.types.is_string(kind) and not isinstance(sample, str):
        plain = str
    try:
        if plain:
            values = [None if value is None else plain(value) for value in values]
        array = pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, ValueError) as error:
        raise InputError(
            f"The column {column!r} of the source {name!r} holds values that do not fit together "
            f"({' '.join(str(error).split()).rstrip('.')}); cast it in the query."
        ) from error
    return array


def _common(name: str, column: str, one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if pa.types.is_null(one) or one == other:
        return other
    if pa.types.is_null(other):
        return one
    numbers = (pa.int64(), pa.float64())
    if one in numbers and other in numbers:
        return pa.float64()
    raise InputError(
        f"The column {column!r} of the source {name!r} holds both {one} and {other}; cast it in "
        "the query."
    )
