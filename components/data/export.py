# SPDX-License-Identifier: Apache-2.0
"""A dataset for others to read: Parquet files in Hive partitions, at a path, gs:// or s3://."""

import base64
import filecmp
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from kfloop.components.contracts.dataset import dataset_files, require_columns, write_dataset
from kfloop.components.contracts.environment import expand
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import local_path, new_directory, write_json
from kfloop.components.data import duck
from kfloop.components.data.checksums import checksum
from kfloop.components.data.service import StoredObject
from kfloop.components.data.storage import SCHEMES, open_store

# Hive's folder for a missing value.
MISSING = "__HIVE_DEFAULT_PARTITION__"
DAY = "date"
# A partition per row, say by a request's id, is a mistake.
MOST_PARTITIONS = 5_000
# The metadata is for people; the receipt has every file.
TOLD_PARTITIONS = 100
OWN_FILES = re.compile(r"part-[^/]*\.parquet")


@dataclass
class Partition:
    """One partition that was written.

    Attributes:
        path: Its folder relative to the export; empty when there are no partitions.
        rows: Its rows.
        files: What was written: `uri`, `bytes`, and what a store tells of it, such as `generation`
            or `version_id`.
        replaced: The URIs of what was there before and is gone.
    """

    path: str
    rows: int
    files: list[dict[str, Any]] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)


def export(
    dataset: str | Path,
    uri: str,
    receipt: str | Path,
    partition_by: list[str] | None = None,
    timestamp: str = "",
    workers: int = 8,
    retry_seconds: float = 300.0,
    memory_limit: str = "",
    temp_directory: str = "",
) -> dict[str, Any]:
    """Writes a dataset into partitions, each of which it replaces whole.

    A second run with the same rows leaves the same files; with other rows it replaces the
    partitions that it has rows for, and touches nothing else. On a path each partition appears at
    once. At a store the new objects are written before the replaced ones are deleted: a reader in
    between sees both, and a run that died in between is put right by the next one.

    Args:
        dataset: Dataset to export.
        uri: Folder to write into: a path, file://, gs://bucket/folder or s3://bucket/folder.
            `${NAME}` in it stands for an environment variable.
        receipt: JSON file to write: `uri`, and `partitions` with what was written and replaced.
        partition_by: Columns whose values make the folders `column=value`, outermost first. Empty
            for the day (UTC) of `timestamp` as `date=2024-01-01`, or, without a timestamp, for one
            folder without partitions.
        timestamp: Column of times, used without `partition_by`.
        workers: How many requests to an object store run at the same time.
        retry_seconds: How long one request is tried again while the store is busy.
        memory_limit: Most memory DuckDB uses, see `duck.connect`.
        temp_directory: Where files are made first, and where DuckDB spills.

    Returns:
        `uri`, `rows`, `files`, `replaced` (numbers), `partition_by` and `partitions` (the first
        hundred paths).

    Raises:
        InputError: If there are no rows, a column is missing, there are too many partitions, the
            place holds something else than an export, or it cannot be written.
    """
    place = expand(uri, "The export").rstrip("/")
    keys = list(partition_by or [])
    require_columns(dataset, [*keys, *([timestamp] if timestamp and not keys else [])])
    to_store = place.partition("://")[0] in SCHEMES
    root = None if to_store else local_path(place, "The export")
    if root:
        root.parent.mkdir(parents=True, exist_ok=True)
    # Beside a local export, so that what is made can be renamed into it.
    beside = root.parent if root else temp_directory or None
    with (
        duck.connect(memory_limit, temp_directory) as connection,
        tempfile.TemporaryDirectory(prefix=".kfloop-export-", dir=beside) as scratch,
    ):
        rows = connection.sql(f"SELECT * FROM {duck.scan(dataset_files(dataset))}")
        if not keys and timestamp:
            keys, rows = [DAY], _with_day(rows, timestamp)
        with duck.explained("The rows of the export cannot be written"):
            made = _make(rows, keys, Path(scratch))
        written = _to_path(made, root) if root else _to_store(made, place, workers, retry_seconds)
    write_json(receipt, {"uri": uri, "partitions": [asdict(each) for each in written]})
    told = {
        "uri": uri,
        "rows": sum(each.rows for each in written),
        "files": sum(len(each.files) for each in written),
        "replaced": sum(len(each.replaced) for each in written),
        "partition_by": keys,
        "partitions": [each.path for each in written][:TOLD_PARTITIONS],
    }
    print(
        f"{told['rows']:,} rows in {len(written)} partitions at {uri}; "
        f"{told['replaced']} files replaced",
        flush=True,
    )
    return told


def _with_day(rows: duckdb.DuckDBPyRelation, timestamp: str) -> duckdb.DuckDBPyRelation:
    duck.require_time(rows, timestamp, "the dataset")
    if DAY in rows.columns:
        raise InputError(
            f"The dataset has a column {DAY!r}, so it cannot be partitioned by the day of "
            f"{timestamp!r} under that name; partition it by {DAY!r}, or rename the column."
        )
    return rows.project(f"*, CAST({duck.moment(timestamp)} AS DATE) AS {DAY}")


@dataclass(frozen=True)
class _Made:
    """A partition's files on this machine: a dataset of its own."""

    path: str
    rows: int
    files: list[Path]


def _make(rows: duckdb.DuckDBPyRelation, keys: list[str], scratch: Path) -> list[_Made]:
    """Writes one dataset per partition, in one pass over the rows sorted by partition."""
    kept = [name for name in rows.columns if name not in keys]
    if not kept:
        raise InputError("Every column is one of partition_by; leave one for the rows themselves.")
    folder = " || '/' || ".join(_folder(key) for key in keys) or "''"
    # Sorted by everything else too: the same rows are the same files.
    order = ", ".join([*([folder] if keys else []), duck.total_order(rows, keys)])
    selected = ", ".join([f"{folder} AS folder_of_row", *map(duck.quote, kept)])
    reader = duck.reader(rows.order(order).project(selected))
    schema = reader.schema.remove(0)
    pieces = (piece for batch in reader for piece in _runs(batch))
    made: list[_Made] = []
    for path, group in groupby(pieces, key=lambda piece: piece[0]):
        if len(made) == MOST_PARTITIONS:
            raise InputError(
                f"{', '.join(keys)} would make more than {MOST_PARTITIONS:,} partitions; "
                "partition by columns with fewer values."
            )
        batches = pa.RecordBatchReader.from_batches(schema, (batch for _, batch in group))
        directory = scratch / str(len(made))
        count = write_dataset(batches, directory)["rows"]
        made.append(_Made(path, count, dataset_files(directory)))
    if not made:
        raise InputError("There are no rows to export; check the step that should have made them.")
    return made


def _folder(key: str) -> str:
    """Returns the SQL of a row's folder: `key=value`, both spelled as in a URL."""
    value = f"coalesce(url_encode(CAST({duck.quote(key)} AS VARCHAR)), {duck.literal(MISSING)})"
    return f"url_encode({duck.literal(key)}) || '=' || {value}"


def _runs(batch: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Cuts a batch, sorted by its first column, where that column changes."""
    runs = pc.run_end_encode(batch.column(0))
    rest, start = batch.remove_column(0), 0
    for path, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
        yield path, rest.slice(start, end - start)
        start = end


def _to_path(made: list[_Made], root: Path) -> list[Partition]:
    for each in made:
        _require_own(f"{root / each.path}", [file.name for file in _entries(root / each.path)])
    written = []
    for each in made:
        target = root / each.path
        before = _entries(target)
        if [file.name for file in before] != [file.name for file in each.files] or not all(
            filecmp.cmp(*pair, shallow=False) for pair in zip(before, each.files, strict=True)
        ):
            with new_directory(target) as fresh:
                for file in each.files:
                    file.rename(fresh / file.name)
            replaced = [str(file) for file in before]
        else:
            replaced = []
        files = [{"uri": str(file), "bytes": file.stat().st_size} for file in _entries(target)]
        written.append(Partition(each.path, each.rows, files, replaced))
    return written


def _entries(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _require_own(place: str, names: Sequence[str]) -> None:
    foreign = [name for name in names if not OWN_FILES.fullmatch(name)]
    if foreign:
        raise InputError(
            f"{place} holds {foreign[0]}, which is no part of an export, so it was not replaced; "
            "export somewhere else, or move it away."
        )


def _to_store(made: list[_Made], place: str, workers: int, retry_seconds: float) -> list[Partition]:
    store = open_store(place.partition("://")[0], workers, retry_seconds)
    folders = [f"{place}/{each.path}/" if each.path else f"{place}/" for each in made]
    before: list[list[StoredObject]] = store.each(store.list_folder, folders)
    for folder, objects in zip(folders, before, strict=True):
        _require_own(folder.rstrip("/"), [each.uri.removeprefix(folder) for each in objects])

    def upload(job: tuple[str, Path]) -> StoredObject:
        folder, file = job
        # Named after its content: a run that is repeated finds its own objects.
        tag = base64.b64decode(checksum(file)).hex()
        return store.upload(file, f"{folder}{file.stem}-{tag}.parquet")

    jobs = [(f, file) for f, each in zip(folders, made, strict=True) for file in each.files]
    uploaded = iter(store.each(upload, jobs))
    written, replaced = [], []
    for each, objects in zip(made, before, strict=True):
        new = list(islice(uploaded, len(each.files)))
        names = {one.name for one in new}
        old = [one for one in objects if one.name not in names]
        told = [one.told for one in new]
        written.append(Partition(each.path, each.rows, told, [one.uri for one in old]))
        replaced += old
    # Only now: until all is written, nothing is taken away.
    store.each(store.delete, replaced)
    return written
