# SPDX-License-Identifier: Apache-2.0
"""The Dataset contract: a directory of Parquet files, and what is said about it.

A *dataset* is a directory with `part-00000.parquet`, `part-00001.parquet`, …, all of one schema.
*Tables* are a directory with one dataset per subdirectory, named after the table.
Timestamps are stored in microseconds.
"""

import hashlib
from collections.abc import Iterable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import new_directory

ROWS_PER_FILE = 1_000_000


def dataset_files(path: str | Path) -> list[Path]:
    """Returns the Parquet files of a dataset, in order.

    Raises:
        InputError: If `path` is not a directory with Parquet files.
    """
    files = sorted(Path(path).glob("part-*.parquet"))
    if not files:
        raise InputError(
            f"{path} is not a dataset: it holds no part-*.parquet file; "
            "give a directory written by a kfloop component."
        )
    return files


def table_names(path: str | Path) -> list[str]:
    """Returns the names of the tables under `path` (see the module's docstring)."""
    return sorted(entry.name for entry in Path(path).iterdir() if any(entry.glob("part-*.parquet")))


def read_dataset(path: str | Path, columns: list[str] | None = None) -> pa.Table:
    """Reads a whole dataset into memory, or only `columns` of it.

    Raises:
        InputError: If the directory is not a dataset, or a column is not in it.
    """
    files = dataset_files(path)
    if columns is not None:
        require_columns(path, columns)
    return pa.concat_tables([pq.read_table(file, columns=columns) for file in files])


def read_schema(path: str | Path) -> pa.Schema:
    """Returns the Arrow schema of a dataset without reading its rows."""
    return pq.read_schema(dataset_files(path)[0])


def require_columns(path: str | Path, columns: Iterable[str]) -> None:
    """Raises InputError when the dataset lacks any of `columns`, naming what it has."""
    present = read_schema(path).names
    missing = [column for column in columns if column not in present]
    if missing:
        raise InputError(
            f"Column {', '.join(map(repr, missing))} is missing from the dataset {path}; "
            f"it has {', '.join(present)}."
        )


def row_count(path: str | Path) -> int:
    """Returns the number of rows, from the Parquet footers."""
    return sum(pq.read_metadata(file).num_rows for file in dataset_files(path))


def write_dataset(
    data: pa.Table | pa.RecordBatchReader, path: str | Path, timestamp: str = ""
) -> dict[str, Any]:
    """Writes a dataset atomically and returns its metadata.

    Args:
        data: A table, or a reader whose batches are streamed, never held together.
        path: The directory to write; an existing one is replaced.
        timestamp: Column whose range goes into the metadata.

    Returns:
        What `describe` returns.
    """
    with new_directory(path) as directory:
        writer: pq.ParquetWriter | None = None
        part, rows_in_part = 0, 0
        batches = data.to_batches() if isinstance(data, pa.Table) else data
        schema = data.schema
        for batch in batches:
            if writer is None or rows_in_part >= ROWS_PER_FILE:
                if writer is not None:
                    writer.close()
                writer = _writer(directory, part, schema)
                part, rows_in_part = part + 1, 0
            writer.write_batch(batch)
            rows_in_part += batch.num_rows
        if writer is None:
            writer = _writer(directory, 0, schema)
        writer.close()
        return describe(directory, timestamp)


def _writer(directory: Path, part: int, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        directory / f"part-{part:05d}.parquet",
        schema,
        compression="zstd",
        # Nanoseconds break point-in-time joins in DuckDB; microseconds are the common ground.
        coerce_timestamps="us",
        allow_truncated_timestamps=True,
    )


def describe(path: str | Path, timestamp: str = "") -> dict[str, Any]:
    """Returns a dataset's metadata.

    Returns:
        `rows` (int), `columns` (list of names), `fingerprint` (sha256 of the Parquet files) and,
        when `timestamp` is given and has values, `since` and `until` (ISO 8601, both inclusive).

    Raises:
        InputError: If the timestamp holds a time of no calendar year.
    """
    metadata: dict[str, Any] = {
        "rows": row_count(path),
        "columns": read_schema(path).names,
        "fingerprint": fingerprint(path),
    }
    if timestamp:
        bounds = pc.min_max(read_dataset(path, [timestamp])[timestamp])
        try:
            since, until = bounds["min"].as_py(), bounds["max"].as_py()
        except (OverflowError, ValueError) as error:
            raise InputError(
                f"Column {timestamp!r} holds a time that is not in the years 1 to 9999, or "
                "infinity; leave such rows out in the query."
            ) from error
        if since is not None:
            metadata |= {"since": isoformat(since), "until": isoformat(until)}
    return metadata


def fingerprint(path: str | Path) -> str:
    """Returns the sha256 over the names and bytes of every file below `path`."""
    digest = hashlib.sha256()
    root = Path(path)
    for file in sorted(entry for entry in root.rglob("*") if entry.is_file()):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def parse_time(value: str, name: str) -> datetime:
    """Parses an ISO 8601 date or time; a time without a zone is UTC.

    Raises:
        InputError: If it is neither; `name` says which setting it was.
    """
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise InputError(
            f"{name} is {value!r}, which is not a date or time; write it like 2013-06-01."
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def isoformat(moment: datetime | date) -> str:
    """Returns ISO 8601; a time without a zone is taken as UTC."""
    if isinstance(moment, datetime) and moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.isoformat()


def in_window(
    column: pa.Array | pa.ChunkedArray, name: str, since: str = "", until: str = ""
) -> pa.Array | pa.ChunkedArray:
    """Returns for each value of a time column whether `since` <= value < `until`.

    Args:
        column: Dates or timestamps; a missing one is outside.
        name: The column's name, for the error.
        since: Start, ISO 8601; empty for no start.
        until: End, ISO 8601; empty for no end.

    Raises:
        InputError: If the column does not hold dates or timestamps.
    """
    if not (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)):
        raise InputError(
            f"Column {name!r} is used as the timestamp but holds {column.type}; "
            "cast it to a timestamp in the query."
        )
    moments = column.cast(pa.timestamp("us"), safe=False)
    if pa.types.is_timestamp(column.type) and column.type.tz:
        moments = column.cast(pa.timestamp("us", tz="UTC"), safe=False).cast(pa.timestamp("us"))
    keep = pc.is_valid(moments)
    if since:
        bound = parse_time(since, "since").astimezone(UTC).replace(tzinfo=None)
        keep = pc.and_(keep, pc.greater_equal(moments, pa.scalar(bound, pa.timestamp("us"))))
    if until:
        bound = parse_time(until, "until").astimezone(UTC).replace(tzinfo=None)
        keep = pc.and_(keep, pc.less(moments, pa.scalar(bound, pa.timestamp("us"))))
    return keep
