"""Sources become tables: Parquet, CSV and JSON lines, from local paths."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb

from kfloop.components.contracts.dataset import fingerprint, write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import new_directory
from kfloop.components.data import duck
from kfloop.components.data.names import require_table_name

EXTENSIONS = {
    "parquet": (".parquet",),
    "csv": (".csv", ".csv.gz"),
    "jsonl": (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz"),
}
READERS = {
    "parquet": "read_parquet([{files}], union_by_name = true)",
    # The whole file decides the types, not its first rows.
    "csv": "read_csv([{files}], union_by_name = true, sample_size = -1)",
    "jsonl": "read_json([{files}], format = 'newline_delimited', union_by_name = true, "
    "sample_size = -1)",
}
KEYS = ("name", "uri", "format", "timestamp")


@dataclass(frozen=True)
class Source:
    """One source: what becomes the table `name`."""

    name: str
    uri: str
    format: str
    timestamp: str
    files: tuple[Path, ...]


def ingest(
    sources: Sequence[dict[str, Any]], path: str | Path, since: str = "", until: str = ""
) -> dict[str, Any]:
    """Reads sources and writes one table each.

    Args:
        sources: `name` (the table), `uri` (a file, a directory or a glob; a plain path or
            file://), `format` (parquet, csv or jsonl; by default from the extension) and
            `timestamp` (a column; without it the window does not apply to the source).
        path: The directory of tables to write.
        since: Start of the window, ISO 8601, inclusive; empty for no start.
        until: End of the window, ISO 8601, exclusive; empty for no end.

    Returns:
        `sources` (a list with name, uri, format, files, bytes, sha256 and rows of each),
        `tables` (rows by name) and `fingerprint`.

    Raises:
        InputError: If a source is not understood, is not there, cannot be read or has no rows.
    """
    found = [_source(entry) for entry in sources]
    names = [source.name for source in found]
    if not names:
        raise InputError("There are no sources; name at least one.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"The source {', '.join(twice)} is given twice; name each source once.")
    with new_directory(path) as directory, duck.connect() as connection:
        told = []
        for source in found:
            rows = _write(connection, source, directory / source.name, since, until)
            told.append(_describe(source, rows))
            print(f"{source.name}: {rows:,} rows from {source.uri}", flush=True)
        return {
            "sources": told,
            "tables": {entry["name"]: entry["rows"] for entry in told},
            "fingerprint": fingerprint(directory),
        }


def _source(entry: dict[str, Any]) -> Source:
    unknown = sorted(set(entry) - set(KEYS))
    if unknown:
        raise InputError(
            f"The source {entry.get('name', '')!r} has the key {', '.join(map(repr, unknown))}; "
            f"a source has {', '.join(KEYS)}."
        )
    require_table_name(entry.get("name"), "A source")
    name = entry["name"]
    uri = entry.get("uri") or ""
    if not uri:
        raise InputError(f"The source {name!r} has no uri; give a path.")
    files = _files(name, uri)
    given = entry.get("format") or ""
    if given and given not in EXTENSIONS:
        raise InputError(
            f"The source {name!r} has the format {given!r}; use {', '.join(EXTENSIONS)}."
        )
    kind = given or _format(name, files)
    return Source(name, uri, kind, entry.get("timestamp") or "", tuple(files))


def _files(name: str, uri: str) -> list[Path]:
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    if scheme and scheme[1] != "file":
        raise InputError(
            f"The source {name!r} is at {uri}; {scheme[1]}:// is not supported, "
            "so copy it to a local or mounted path."
        )
    path = Path(unquote(uri.removeprefix("file://")) if scheme else uri)
    if path.is_file():
        return [path]
    if path.is_dir():
        endings = tuple(ending for known in EXTENSIONS.values() for ending in known)
        files = [file for file in path.rglob("*") if file.name.endswith(endings)]
    else:
        whole = path.absolute()
        files = list(Path(whole.anchor).glob(str(whole.relative_to(whole.anchor))))
    # A leading dot or _ is somebody's bookkeeping, such as _SUCCESS or a half-written file.
    files = sorted(file for file in files if file.is_file() and file.name[0] not in "._")
    if not files:
        raise InputError(f"The source {name!r} is at {uri}, where no data file is; check the path.")
    return files


def _format(name: str, files: Sequence[Path]) -> str:
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
        f"The format of the source {name!r} cannot be told from {has}; "
        f"set its format to one of {', '.join(EXTENSIONS)}."
    )


def _write(
    connection: duckdb.DuckDBPyConnection, source: Source, path: Path, since: str, until: str
) -> int:
    files = ", ".join(duck.literal(str(file)) for file in source.files)
    what = f"The source {source.name!r} at {source.uri} cannot be read as {source.format}"
    with duck.explained(what):
        relation = connection.sql(f"SELECT * FROM {READERS[source.format].format(files=files)}")
        if source.timestamp:
            duck.require_time(relation, source.timestamp, f"the source {source.name!r}")
            relation = relation.filter(duck.window(source.timestamp, since, until))
        rows: int = write_dataset(duck.reader(relation), path)["rows"]
    if not rows:
        raise InputError(
            f"The source {source.name!r} at {source.uri} has no rows"
            + (f" between {since or 'the start'} and {until or 'the end'}" * bool(since or until))
            + "; check the file and the window."
        )
    return rows


def _describe(source: Source, rows: int) -> dict[str, Any]:
    digests = [_sha256(file) for file in source.files]
    whole = hashlib.sha256("\n".join(digests).encode()).hexdigest()
    return {
        "name": source.name,
        "uri": source.uri,
        "format": source.format,
        "files": len(source.files),
        "bytes": sum(file.stat().st_size for file in source.files),
        # Of several files: over their digests, in the order of their names.
        "sha256": digests[0] if len(digests) == 1 else whole,
        "rows": rows,
    }


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
