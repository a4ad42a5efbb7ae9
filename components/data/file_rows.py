# SPDX-License-Identifier: Apache-2.0
"""Files of every format as rows."""

from collections.abc import Sequence
from pathlib import Path

import duckdb

from kfloop.components.data import csv_files, duck

READERS = {
    "parquet": "read_parquet([{files}], union_by_name = true, hive_partitioning = {hive})",
    # One object a line, or one list of them; the whole file decides the types.
    "jsonl": "read_json([{files}], format = 'auto', union_by_name = true, sample_size = -1, "
    "hive_partitioning = {hive})",
}


def file_rows(
    connection: duckdb.DuckDBPyConnection, kind: str, files: Sequence[Path], root: Path, what: str
) -> duckdb.DuckDBPyRelation:
    """Returns the rows of files, by column name.

    Args:
        connection: Where they are read.
        kind: `parquet`, `csv`, `jsonl`, or `rows` of a database, which are Parquet.
        files: The files; they may have different columns.
        root: What they lie below; `key=value` folders below it are columns.
        what: What cannot be done, for errors.

    Raises:
        InputError: If a CSV file is damaged, see `csv_files.relation`.
    """
    # Folders like date=2024-01-01 are columns, below what the source names and nowhere else.
    hive = any("=" in part for file in files for part in file.relative_to(root).parts[:-1])
    if kind == "csv":
        relation = csv_files.relation(connection, files, hive, what)
    else:
        listed = ", ".join(duck.literal(str(file)) for file in files)
        reader = READERS["parquet" if kind == "rows" else kind].format(files=listed, hive=hive)
        relation = connection.sql(f"SELECT * FROM {reader}")
    # A value that is a text here and a number there is text without JSON's quotes.
    plain = ", ".join(
        f"{duck.quote(name)} ->> '$' AS {duck.quote(name)}"
        for name, type_ in zip(relation.columns, relation.types, strict=True)
        if str(type_) == "JSON"
    )
    if plain:
        relation = relation.project(f"* REPLACE ({plain})")
    above = {part.partition("=")[0] for part in root.parts if "=" in part} if hive else {}
    unwanted = [duck.quote(name) for name in relation.columns if name in above]
    return relation.project(f"* EXCLUDE ({', '.join(unwanted)})") if unwanted else relation
