# SPDX-License-Identifier: Apache-2.0
"""Looks at a data file the way the loop will read it.

    python -m kfloop.scripts.data_columns URI TABLE ANSWER

Runs in the environment of the data family; what it finds is written to the file ANSWER as JSON.
"""

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import duckdb

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import write_json
from kfloop.components.data import duck
from kfloop.components.data.ingest import ingest


def look(uri: str, table: str) -> dict[str, Any]:
    """Reads a source and says what is in it.

    Args:
        uri: File, directory or glob, at a path, gs:// or s3://.
        table: Name of the table.

    Returns:
        `rows`, how many of them are `different`, the table's name as `sql`, and `columns`: for
        each its `name`, that as `sql`, its DuckDB `type`, how many `missing` and `distinct` values
        it has, and its `smallest` and `largest` as text.

    Raises:
        InputError: If it cannot be read.
    """
    with tempfile.TemporaryDirectory() as scratch, duck.connect() as connection:
        ingest([{"name": table, "uri": uri}], f"{scratch}/tables")
        duck.create_views(connection, f"{scratch}/tables")
        source = duck.quote(table)
        described = connection.sql(f"DESCRIBE {source}").fetchall()
        keywords = _keywords(connection)
        columns = [
            {"name": each[0], "sql": _written(each[0], keywords), "type": each[1]}
            for each in described
        ]
        # Text, so that types without an order (maps, lists of structs) are counted too.
        asked = ", ".join(
            f"count({name}), count(DISTINCT {name}::VARCHAR), min({name})::VARCHAR, "
            f"max({name})::VARCHAR"
            for name in (duck.quote(column["name"]) for column in columns)
        )
        rows, different, *found = connection.sql(
            f"SELECT count(*), count(DISTINCT hash({source})), {asked} FROM {source}"
        ).fetchall()[0]
    for index, column in enumerate(columns):
        present, distinct, smallest, largest = found[4 * index : 4 * index + 4]
        column |= {
            "missing": rows - present,
            "distinct": distinct,
            "smallest": smallest,
            "largest": largest,
        }
    name = _written(table, keywords)
    return {"rows": rows, "different": different, "sql": name, "columns": columns}


def _keywords(connection: duckdb.DuckDBPyConnection) -> set[str]:
    """Returns the words that are no names in SQL unless they are quoted."""
    found = connection.sql(
        "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category <> 'unreserved'"
    )
    return {word for (word,) in found.fetchall()}


def _written(name: str, keywords: set[str]) -> str:
    """Returns an identifier as a person would write it: quoted only when it must be."""
    plain = re.fullmatch(r"[a-z][a-z0-9_]*", name) and name not in keywords
    return name if plain else duck.quote(name)


def main() -> int:
    """Looks at what the command line names."""
    try:
        uri, table, answer = sys.argv[1:]
    except ValueError:
        print("usage: python -m kfloop.scripts.data_columns URI TABLE ANSWER", file=sys.stderr)
        return 2
    try:
        write_json(Path(answer), look(uri, table))
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
