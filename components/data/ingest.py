# SPDX-License-Identifier: Apache-2.0
"""Sources become tables: Parquet, CSV, JSON from paths, gs:// and s3://, rows of databases.

On a laptop a step's cache is keyed by the bytes of its input, so what follows runs again exactly
when the fingerprint here is another one. On a cluster KFP keys its cache by the identity of the
input artifact, which is new in every run, and by parameters, which say nothing about what lies at a
URI: therefore ingest always runs, with caching switched off, and so does what follows it.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb

from kfloop.components.contracts.dataset import fingerprint, write_dataset
from kfloop.components.contracts.environment import expand
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import new_directory
from kfloop.components.data import csv_files, duck
from kfloop.components.data.file_rows import file_rows
from kfloop.components.data.names import require_table_name
from kfloop.components.data.storage import SCHEMES, Store, open_store, split_uri

EXTENSIONS = {
    "parquet": (".parquet",),
    "csv": (".csv", ".csv.gz", ".tsv", ".tsv.gz"),
    "jsonl": (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz", ".json", ".json.gz"),
}
NAMED_ONLY = (".json", ".json.gz")
KEYS = ("name", "uri", "format", "timestamp", "query")
GLOB_MARKS = set("*?[")
# More files than that are told by their number and their common digest.
TOLD_FILES = 200


@dataclass(frozen=True)
class Source:
    """One source, as it was given: what becomes the table `name`."""

    name: str
    uri: str
    format: str
    timestamp: str
    query: str


@dataclass(frozen=True)
class Fetched:
    """A source's content on this machine.

    Attributes:
        root: What the files lie below; `key=value` folders below it are columns.
        files: The files, in the order of their names.
        told: What identifies each: `uri`, `bytes`, and `sha256`, or what a store tells of it, see
            `service.StoredObject.told`.
    """

    root: Path
    files: list[Path]
    told: list[dict[str, Any]]


def ingest(
    sources: Sequence[dict[str, Any]],
    path: str | Path,
    since: str = "",
    until: str = "",
    workers: int = 8,
    retry_seconds: float = 300.0,
    download_directory: str = "",
    memory_limit: str = "",
    temp_directory: str = "",
) -> dict[str, Any]:
    """Reads sources and writes one table each.

    Args:
        sources: `name` (the table), `uri`, and where needed `format` (parquet, csv or jsonl; by
            default from the extension) and `timestamp` (a column; without it the window does not
            apply to the source). The uri is a file, a folder or a glob (a plain path, file://,
            gs:// or s3://), or, with a `query`, SQLAlchemy's URL of a database. `${NAME}` in it
            stands for an environment variable.
        path: The directory of tables to write.
        since: Start of the window, ISO 8601, inclusive; empty for no start.
        until: End of the window, ISO 8601, exclusive; empty for no end.
        workers: How many requests to an object store run at the same time.
        retry_seconds: How long one request is tried again while the store is busy.
        download_directory: Where downloads are kept, so that a step that was killed goes on where
            it was; empty to keep nothing.
        memory_limit: Most memory DuckDB uses, see `duck.connect`.
        temp_directory: Where it spills, see `duck.connect`.

    Returns:
        `sources` (a list with name, uri, format, file_count, bytes, digest, files and rows of
        each), `tables` (rows by name) and `fingerprint`, which depends on the rows and nothing
        else: not on times, paths or versions.

    Raises:
        InputError: If a source is not understood, is not there, cannot be read or has no rows.
    """
    given = [_source(entry) for entry in sources]
    names = [source.name for source in given]
    if not names:
        raise InputError("There are no sources; name at least one.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"The source {', '.join(twice)} is given twice; name each source once.")

    @cache
    def store(scheme: str) -> Store:
        return open_store(scheme, workers, retry_seconds)

    with (
        new_directory(path) as directory,
        duck.connect(memory_limit, temp_directory) as connection,
    ):
        told = []
        for source in given:
            # Beside the output, where there is room for it.
            with _scratch(Path(path).parent) as scratch:
                kept = Path(download_directory) if download_directory else scratch
                fetched = _fetch(source, since, until, scratch, kept, store)
                kind = source.format or ("rows" if source.query else _format(source, fetched.files))
                rows = _write(
                    connection, source, kind, fetched, directory / source.name, since, until
                )
            told.append(_describe(source, kind, fetched, rows))
            print(f"{source.name}: {rows:,} rows from {told[-1]['uri']}", flush=True)
        return {
            "sources": told,
            "tables": {entry["name"]: entry["rows"] for entry in told},
            "fingerprint": fingerprint(directory),
        }


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=parent, prefix=".kfloop-ingest-") as scratch:
        yield Path(scratch)


def _source(entry: dict[str, Any]) -> Source:
    unknown = sorted(set(entry) - set(KEYS))
    if unknown:
        raise InputError(
            f"The source {entry.get('name', '')!r} has the key {', '.join(map(repr, unknown))}; "
            f"a source has {', '.join(KEYS)}."
        )
    require_table_name(entry.get("name"), "A source")
    name = entry["name"]
    if not entry.get("uri"):
        raise InputError(f"The source {name!r} has no uri; give a path.")
    kind = entry.get("format") or ""
    if kind and kind not in EXTENSIONS:
        raise InputError(
            f"The source {name!r} has the format {kind!r}; use {', '.join(EXTENSIONS)}."
        )
    query = entry.get("query") or ""
    if query and kind:
        raise InputError(f"The source {name!r} has a query, so it is rows; leave out its format.")
    return Source(name, entry["uri"], kind, entry.get("timestamp") or "", query)


def _fetch(
    source: Source,
    since: str,
    until: str,
    scratch: Path,
    kept: Path,
    store: Callable[[str], Store],
) -> Fetched:
    if source.query:
        from kfloop.components.data.database import read_query

        files = read_query(
            source.name, source.uri, source.query, source.timestamp, since, until, scratch
        )
        if not files:
            raise InputError(_no_rows(source, since, until))
        return Fetched(scratch, files, [])
    uri = expand(source.uri, f"The source {source.name!r}")
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        return _local(source, Path(unquote(rest) if separator else uri))
    if scheme in SCHEMES:
        return _stored(source, uri, kept, store(scheme))
    raise InputError(
        f"The source {source.name!r} is at {scheme}://, which is neither a path nor gs:// or "
        "s3://; if it is a database, give it a query."
    )


def _stored(source: Source, uri: str, directory: Path, store: Store) -> Fetched:
    found = [each for each in store.find(uri) if _is_data(uri, each.name.rsplit("/", 1)[-1])]
    if not found:
        raise InputError(_nothing_there(source))
    size = sum(each.size for each in found)
    told_size = f"{len(found)} objects, {size / 1e6:,.1f} MB"
    print(f"{source.name}: {told_size} at {source.uri}", flush=True)
    found = store.pin(found)
    files = store.download(found, directory)
    _, bucket, name = split_uri(uri)
    if [each.name for each in found] == [name]:
        root = files[0].parent
    else:
        fixed = list(
            takewhile(
                lambda part: not set(part) & GLOB_MARKS, [bucket, *name.rstrip("/").split("/")]
            )
        )
        root = Path(*files[0].parts[: len(directory.parts) + len(fixed)])
    return Fetched(root, files, [each.told for each in found])


def _is_data(uri: str, name: str) -> bool:
    """Tells whether a file that was found, rather than named, holds data."""
    if uri.endswith(f"/{name}"):
        return True
    # A leading dot or _ is somebody's bookkeeping, such as _SUCCESS or a half-written file.
    if name[0] in "._":
        return False
    # Nor is a .json beside data, unless the uri names it.
    endings = {ending for known in EXTENSIONS.values() for ending in known} - set(NAMED_ONLY)
    return bool(set(uri) & GLOB_MARKS) or name.endswith(tuple(endings))


def _local(source: Source, path: Path) -> Fetched:
    uri = str(path)
    if path.is_file():
        root, files = path.parent, [path]
    elif path.is_dir():
        root, files = path, [file for file in path.rglob("*") if _is_data(uri, file.name)]
    else:
        whole = path.absolute()
        files = list(Path(whole.anchor).glob(str(whole.relative_to(whole.anchor))))
        files = [file for file in files if _is_data(uri, file.name)]
        root = Path(*takewhile(lambda part: not set(part) & GLOB_MARKS, whole.parts))
    files = sorted(file for file in files if file.is_file())
    if not files:
        raise InputError(_nothing_there(source))
    told = [
        {"uri": str(file), "bytes": file.stat().st_size, "sha256": _sha256(file)} for file in files
    ]
    return Fetched(root, files, told)


def _nothing_there(source: Source) -> str:
    return f"The source {source.name!r} is at {source.uri}, where no data file is; check the path."


def _format(source: Source, files: Sequence[Path]) -> str:
    kinds = {
        kind
        for file in files
        for kind, endings in EXTENSIONS.items()
        if file.name.lower().endswith(endings)
    }
    if len(kinds) == 1:
        return kinds.pop()
    has = f"files of several formats ({', '.join(sorted(kinds))})" if kinds else files[0].name
    raise InputError(
        f"The format of the source {source.name!r} cannot be told from {has}; "
        f"set its format to one of {', '.join(EXTENSIONS)}."
    )


def _write(
    connection: duckdb.DuckDBPyConnection,
    source: Source,
    kind: str,
    fetched: Fetched,
    path: Path,
    since: str,
    until: str,
) -> int:
    what = f"The source {source.name!r} at {source.uri} cannot be read as {kind}"
    csv_files.require_whole(fetched.files, what)
    with duck.explained(what):
        relation = file_rows(connection, kind, fetched.files, fetched.root, what)
        if source.query and source.timestamp in relation.columns:
            # SQLite has no times, only texts of them.
            position = relation.columns.index(source.timestamp)
            if relation.types[position].id == "varchar":
                moment = f"{duck.moment(source.timestamp)} AS {duck.quote(source.timestamp)}"
                relation = relation.project(f"* REPLACE ({moment})")
        if source.timestamp:
            duck.require_time(relation, source.timestamp, f"the source {source.name!r}")
            relation = relation.filter(duck.window(source.timestamp, since, until))
        if source.query:
            # A database gives rows in any order; the same rows make the same table.
            first = [source.timestamp] if source.timestamp else []
            relation = relation.order(duck.total_order(relation, first))
        rows: int = write_dataset(duck.reader(relation), path)["rows"]
    if not rows:
        raise InputError(_no_rows(source, since, until))
    if kind == "csv":
        csv_files.tell_numbers(connection, path, source.name)
    return rows


def _no_rows(source: Source, since: str, until: str) -> str:
    window = f" between {since or 'the start'} and {until or 'the end'}" * bool(since or until)
    what = "query" if source.query else "file"
    return (
        f"The source {source.name!r} at {source.uri} has no rows{window}; "
        f"check the {what} and the window."
    )


def _describe(source: Source, kind: str, fetched: Fetched, rows: int) -> dict[str, Any]:
    identities = [_identity(file) for file in fetched.told]
    told: dict[str, Any] = {"name": source.name, "uri": source.uri, "format": kind, "rows": rows}
    if source.query:
        # What identifies the rows is the fingerprint: a database has no generation to tell.
        return told | {"query_sha256": hashlib.sha256(source.query.encode()).hexdigest()}
    return told | {
        "file_count": len(fetched.told),
        "bytes": sum(file["bytes"] for file in fetched.told),
        "digest": hashlib.sha256("\n".join(identities).encode()).hexdigest(),
        "files": fetched.told[:TOLD_FILES],
    }


def _identity(told: dict[str, Any]) -> str:
    known = (told.get(name) for name in ("sha256", "crc32c", "etag"))
    return next(str(value) for value in known if value)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
