# SPDX-License-Identifier: Apache-2.0
"""CSV files: what of their form is not left to be guessed from all rows at once.

DuckDB looks for the dialect that gives most columns and leaves out the lines that do not fit: of a
file with one line too long it reads that line alone, and of one that is cut off a single column. So
the header says what separates the values, no line is left out, and what does not fit is an error.
"""

import csv
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, cast

import duckdb

from kfloop.components.contracts.errors import InputError
from kfloop.components.data import duck

DELIMITERS = ",;\t|"
# Text is told to be numbers when so large a part of its values are.
MOST = 0.9
_CHUNK = 2**20


@dataclass(frozen=True)
class Form:
    """How a file is written.

    Attributes:
        delimiter: What separates the values.
        blank: Empty lines before the header.
    """

    delimiter: str
    blank: int


def require_whole(files: Sequence[Path], what: str) -> None:
    """Raises InputError when a .gz file is cut off or damaged: DuckDB reads what there is of it."""
    for file in files:
        if _is_gzip(file):
            try:
                with gzip.open(file) as stream:
                    while stream.read(_CHUNK):
                        pass
            except (EOFError, OSError) as error:
                raise InputError(
                    f"{what}: {file.name} is cut off or damaged ({error}); copy it again."
                ) from error


def relation(
    connection: duckdb.DuckDBPyConnection, files: Sequence[Path], hive: bool, what: str
) -> duckdb.DuckDBPyRelation:
    """Returns the rows of CSV files, by column name.

    Args:
        connection: Where they are read.
        files: The files; they may have different columns.
        hive: Whether folders like `date=2024-01-01` are columns.
        what: What cannot be done, for errors.

    Raises:
        InputError: If a file is not UTF-8, or a line has another number of values than its header.
    """
    forms = {_form(file) for file in files}
    form = forms.pop() if len(forms) == 1 else None
    # The whole file decides the types, not its first rows.
    options = ["union_by_name = true", "sample_size = -1", f"hive_partitioning = {hive}"]
    told = [f"delim = {duck.literal(form.delimiter)}", f"skip = {form.blank}"] if form else []
    options += told
    try:
        rows = _read(connection, files, options)
        undecided = _undecided(connection, rows, files[0], told)
        return _read(connection, files, [*options, *undecided]) if undecided else rows
    except duckdb.Error as error:
        for file in files:
            _require_even_lines(file, form, what)
        message = str(error).partition("Possible ")[0].partition("The search space")[0]
        raise InputError(f"{what}: {' '.join(message.split()).rstrip('.')}.") from error


def _read(
    connection: duckdb.DuckDBPyConnection, files: Sequence[Path], options: Sequence[str]
) -> duckdb.DuckDBPyRelation:
    listed = ", ".join(duck.literal(str(file)) for file in files)
    return connection.sql(f"SELECT * FROM read_csv([{listed}], {', '.join(options)})")


def _is_gzip(file: Path) -> bool:
    return file.name.lower().endswith(".gz")


def _open(file: Path, errors: str) -> TextIO:
    opened = gzip.open if _is_gzip(file) else open
    return cast(TextIO, opened(file, "rt", encoding="utf-8-sig", errors=errors, newline=""))


def _form(file: Path) -> Form | None:
    """Returns how a file is written, by its header; None where it begins with a comment."""
    with _open(file, "replace") as stream:
        blank = 0
        for line in stream:
            if line.strip():
                break
            blank += 1
        else:
            return None
    if line.startswith("#"):
        return None
    counts = {mark: len(next(csv.reader([line], delimiter=mark))) for mark in DELIMITERS}
    return Form(max(counts, key=lambda mark: counts[mark]), blank)


def _undecided(
    connection: duckdb.DuckDBPyConnection,
    rows: duckdb.DuckDBPyRelation,
    file: Path,
    told: Sequence[str],
) -> list[str]:
    """Returns options that leave dates as text which could be day or month first.

    Where no day is past the 12th nobody can tell 03/04 from 04/03, and DuckDB would take the day
    for first.
    """
    times = [
        duck.quote(name)
        for name, kind in zip(rows.columns, rows.types, strict=True)
        if kind.id in ("date", "timestamp")
    ]
    if not times:
        return []
    sniffed = ", ".join([duck.literal(str(file)), *told])
    found = connection.sql(
        f"SELECT DateFormat, TimestampFormat FROM sniff_csv({sniffed})"
    ).fetchone() or (None, None)
    found = [each if each and each.startswith(("%d", "%m")) else "" for each in found]
    if not any(found):
        return []
    days = [f"max(day({name})) FILTER (isfinite({name}))" for name in times]
    most = rows.aggregate(f"greatest({', '.join(days)})").fetchone()
    if most and most[0] is not None and most[0] > 12:
        return []
    names = ", ".join(times)
    print(
        f"{file.name}: {names} is kept as text, since it could be day or month first; say which in "
        f"the query: strptime({times[0]}, {duck.literal(found[0] or found[1])}).",
        flush=True,
    )
    return (["dateformat = '%Y-%m-%d'"] if found[0] else []) + (
        ["timestampformat = '%Y-%m-%d %H:%M:%S'"] if found[1] else []
    )


def _require_even_lines(file: Path, form: Form | None, what: str) -> None:
    """Raises InputError if a line has another number of values than the header."""
    try:
        with _open(file, "strict") as stream:
            lines = csv.reader(stream, delimiter=form.delimiter if form else ",")
            wanted = 0
            for values in lines:
                wanted = wanted or len(values)
                if form and values and len(values) != wanted:
                    raise InputError(
                        f"{what}: line {lines.line_num} of {file.name} has {len(values)} values, "
                        f"its first line has {wanted}; mend the line, or quote values that hold "
                        f"{form.delimiter!r}."
                    )
    except UnicodeDecodeError as error:
        raise InputError(
            f"{what}: {file.name} is not UTF-8 text (byte 0x{error.object[error.start]:02x}); "
            "convert it first, for example with iconv -f LATIN1 -t UTF-8."
        ) from error
    except csv.Error:
        return  # DuckDB's own message is told


def tell_numbers(connection: duckdb.DuckDBPyConnection, path: Path, name: str) -> None:
    """Prints which columns of a table are text although most of their values are numbers."""
    rows = connection.sql(f"SELECT * FROM {duck.scan(sorted(path.glob('part-*.parquet')))}")
    texts = [
        column
        for column, kind in zip(rows.columns, rows.types, strict=True)
        if kind.id == "varchar"
    ]
    for column in texts:
        value = duck.quote(column)
        number = f"TRY_CAST({value} AS DOUBLE)"
        comma = f"TRY_CAST(replace({value}, ',', '.') AS DOUBLE)"
        found = rows.aggregate(
            f"count({value}), count({number}), count({comma}), "
            f"any_value({value}) FILTER ({number} IS NULL)"
        ).fetchone()
        assert found is not None
        present, numbers, commas, other = found
        if other is None or commas < MOST * present:
            continue
        use = comma if commas > numbers else number
        print(
            f"{name}: {column!r} is text, since it holds {other[:40]!r}, but "
            f"{max(numbers, commas):,} of its {present:,} values are numbers; the query makes it "
            f"one with {use}.",
            flush=True,
        )
