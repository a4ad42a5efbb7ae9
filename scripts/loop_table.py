# SPDX-License-Identifier: Apache-2.0
"""A table of one's own, as the loop will read it: what its columns hold and are called."""

import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.inference_log import RESERVED

INTEGERS = {f"{sign}{size}INT" for sign in ("", "U") for size in ("TINY", "SMALL", "BIG", "HUGE")}
INTEGERS |= {"INTEGER", "UINTEGER"}
FLOATS = {"FLOAT", "DOUBLE"}
ROW_KEY = "row_key"
# Whole numbers under such a name are names themselves; their size tells nothing.
NAMES = re.compile(r"(?i:(.*[ _.-])?(id|key|code|zip))|.*[a-z](ID|Id)")


@dataclass(frozen=True)
class Column:
    """A column as the loop will read it.

    Attributes:
        name: Its name in the file.
        sql: That as SQL has it, quoted where it must be.
        type: DuckDB's type.
        missing: Rows without a value.
        distinct: Number of its values.
        smallest: The smallest, as text; None when it is empty.
        largest: The largest.
        output: Its name in the examples, one that a model input can have.
    """

    name: str
    sql: str
    type: str
    missing: int
    distinct: int
    smallest: str | None
    largest: str | None
    output: str = ""

    @property
    def kind(self) -> str:
        """`integer`, `float`, `boolean`, `text`, `time`, or empty when a model cannot take it."""
        if self.type in INTEGERS:
            return "integer"
        if self.type in FLOATS or self.type.startswith("DECIMAL"):
            return "float"
        if self.type.startswith(("TIMESTAMP", "DATE")):
            return "time"
        return {"BOOLEAN": "boolean", "VARCHAR": "text"}.get(self.type, "")

    @property
    def numbers_a_name(self) -> bool:
        """Whether it holds whole numbers that stand for something, such as `station_id`."""
        return self.kind == "integer" and NAMES.fullmatch(self.name) is not None


@dataclass(frozen=True)
class Table:
    """What the loop is made for.

    Attributes:
        name: The table's name.
        sql: That as SQL has it.
        uri: Where it is, as the loop file will say it.
        rows: Number of its rows.
        different: How many of them differ from each other.
        columns: Its columns.
    """

    name: str
    sql: str
    uri: str
    rows: int
    different: int
    columns: Sequence[Column]

    def column(self, name: str, option: str) -> Column:
        """Returns a column.

        Raises:
            InputError: If there is none of that name.
        """
        for column in self.columns:
            if column.name == name:
                return column
        there = ", ".join(column.name for column in self.columns)
        raise InputError(f"{option} {name}: there is no such column; there is {there}.")


def read_table(name: str, uri: str, found: dict[str, Any]) -> Table:
    """Returns the table that `data_columns` found, each column with a name that a model can take.

    Two columns never get one name, nor do names differ in case alone.
    """
    taken = {ROW_KEY}
    columns = []
    for each in found["columns"]:
        output = _output_name(each["name"])
        number = 2
        while output.lower() in taken:
            output, number = f"{_output_name(each['name'])}_{number}", number + 1
        taken.add(output.lower())
        columns.append(Column(**each, output=output))
    return Table(name, found["sql"], uri, found["rows"], found["different"], columns)


def _output_name(name: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_")
    if not plain or not plain[0].isalpha():
        plain = f"column_{plain}".rstrip("_")
    if plain.lower() in RESERVED or keyword.iskeyword(plain) or plain.lower() == "self":
        plain = f"{plain}_value"
    return plain
