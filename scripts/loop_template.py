# SPDX-License-Identifier: Apache-2.0
"""Writes a loop file and its SQL for one table, by looking at the table's columns."""

import keyword
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.inference_log import RESERVED
from kfloop.components.contracts.model_package import TASKS

INTEGERS = {f"{sign}{size}INT" for sign in ("", "U") for size in ("TINY", "SMALL", "BIG", "HUGE")}
INTEGERS |= {"INTEGER", "UINTEGER"}
FLOATS = {"FLOAT", "DOUBLE"}
FEWEST_ROWS = 50
MOST_CLASSES = 50
# Slices of a report: a text column of so many values, from and to.
SLICES = (2, 10)
ROW_KEY = "row_key"


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


@dataclass(frozen=True)
class Plan:
    """What was decided about a table.

    Attributes:
        task: binary, multiclass or regression.
        why: Why it is.
        label: What is predicted.
        timestamp: Time of the prediction, or None.
        key: Column that identifies a row, or None: then its content does.
        features: Model inputs.
        left_out: Columns that are none, each with the reason.
    """

    task: str
    why: str
    label: Column
    timestamp: Column | None
    key: Column | None
    features: list[Column]
    left_out: list[tuple[Column, str]]


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


def make_plan(table: Table, label: str, timestamp: str = "", task: str = "") -> Plan:
    """Decides what each column is for.

    Args:
        table: The table.
        label: Column to predict.
        timestamp: Column with the time of the prediction; empty when there is none.
        task: Empty to go by the label.

    Raises:
        InputError: If a column is missing or cannot be what it is named for, or no feature is left.
    """
    if table.rows < FEWEST_ROWS:
        raise InputError(
            f"The table has {_count(table.rows, 'row')}; a model needs {FEWEST_ROWS} at the very "
            "least."
        )
    target = table.column(label, "--label")
    moment = table.column(timestamp, "--timestamp") if timestamp else None
    if moment and moment.kind != "time":
        raise InputError(_no_time(moment, table))
    if target is moment:
        raise InputError(f"{label} cannot be both --label and --timestamp.")
    chosen, why = _task(target, table.rows, task)
    others = [column for column in table.columns if column not in (target, moment)]
    key = next((c for c in others if _identifies(c, table.rows)), None)
    left_out = [(c, reason) for c in others if c is not key and (reason := _unfit(c, table.rows))]
    unfit = [column for column, _ in left_out]
    features = [column for column in others if column is not key and column not in unfit]
    if not features:
        raise InputError(
            f"There is no column that a model could learn from beside {label}: "
            + "; ".join(f"{column.name} ({reason})" for column, reason in left_out)
            + "."
        )
    return Plan(chosen, why, target, moment, key, features, left_out)


def _no_time(column: Column, table: Table) -> str:
    """Returns what to do about a column that was said to hold times."""
    told = f"--timestamp {column.name} holds {column.type}, which is no time"
    times = ", ".join(each.name for each in table.columns if each.kind == "time")
    if times:
        return f"{told}; there is {times}."
    made = {
        "integer": f"to_timestamp({column.sql}) of seconds since 1970",
        "text": f"strptime({column.sql}, '%d.%m.%Y %H:%M') or the like",
    }.get(column.kind)
    if not made:
        return f"{told}; leave it out, there is none."
    return f"{told}; leave it out and make one in examples.sql: {made}, as the loop's timestamp."


def _task(label: Column, rows: int, wanted: str) -> tuple[str, str]:
    if label.distinct < 2:
        raise InputError(f"--label {label.name} has the same value everywhere; nothing to learn.")
    if wanted:
        if wanted not in TASKS:
            raise InputError(f"--task {wanted} is none of {', '.join(TASKS)}.")
        if needed := _unlike(label, wanted):
            raise InputError(
                f"--task {wanted} needs {needed}; --label {label.name} holds {label.type}, "
                f"{label.distinct} different values in {rows} rows."
            )
        return wanted, "as asked for"
    if label.kind == "boolean":
        return "binary", f"{label.output} is true or false"
    if _zero_or_one(label):
        return "binary", f"{label.output} is 0 or 1"
    if label.kind in ("integer", "float"):
        return "regression", f"{label.output} is a number"
    if label.kind == "text" and label.distinct <= MOST_CLASSES:
        return "multiclass", f"{label.output} is one of {label.distinct} texts"
    if label.kind == "text":
        raise InputError(
            f"--label {label.name} holds {label.distinct} different texts in {rows} rows; a model "
            f"can choose between {MOST_CLASSES} at most."
        )
    raise InputError(f"--label {label.name} holds {label.type}, which no model predicts.")


def _unlike(label: Column, task: str) -> str:
    """Returns what a task needs of its label, or nothing when the label is that."""
    numbers = label.kind in ("integer", "float")
    if task == "regression":
        return "" if numbers else "a label of numbers"
    if task == "binary":
        fits = label.kind == "boolean" or _zero_or_one(label)
        return "" if fits else "a label that is true or false, or 0 or 1"
    classes = label.kind in ("text", "integer", "boolean") and label.distinct <= MOST_CLASSES
    return "" if classes else f"a label of at most {MOST_CLASSES} texts or whole numbers"


def _zero_or_one(label: Column) -> bool:
    if label.kind not in ("integer", "float") or label.distinct != 2:
        return False
    smallest, largest = _ends(label)
    return (float(smallest), float(largest)) == (0, 1)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _identifies(column: Column, rows: int) -> bool:
    """Tells whether a column is a key: every row has one of its own, and it reads like one."""
    if column.missing or column.distinct < rows:
        return False
    named = column.name.lower() == "id" or column.name.lower().endswith(("_id", "_key"))
    # Free text is different in every row, too; so are numbers with a comma or an "n/a" among them.
    short = all(len(each) <= 40 and " " not in each for each in _ends(column))
    number = any(re.fullmatch(r"[-+]?(0|[1-9]\d*)?[.,]\d+", each) for each in _ends(column))
    return (column.kind == "text" and short and not number) or (column.kind == "integer" and named)


def _ends(column: Column) -> tuple[str, str]:
    return column.smallest or "", column.largest or ""


def _unfit(column: Column, rows: int) -> str:
    """Returns why a column is no model input, or nothing."""
    if column.kind == "time":
        return "a time; make it a number, for example month(…)"
    if not column.kind:
        return f"{column.type} is neither number, text nor boolean"
    if column.distinct < 2:
        return "the same value everywhere"
    if column.kind == "text" and column.distinct > max(MOST_CLASSES, rows / 2):
        return f"{column.distinct} different texts: a name, or free text"
    return ""


def write_sql(table: Table, plan: Plan) -> str:
    """Returns the SELECT that makes the examples."""
    lines = []
    if plan.key:
        lines.append(f"    {_selected(plan.key)},")
    elif table.different == table.rows:
        lines += [
            "    -- No column identifies a row, so its content does.",
            f"    md5({table.sql}::VARCHAR) AS {ROW_KEY},",
        ]
    else:
        content = f"{table.sql}::VARCHAR"
        lines += [
            "    -- No column identifies a row, so its content does; equal rows are numbered.",
            f"    md5({content} || row_number() OVER (PARTITION BY {content})) AS {ROW_KEY},",
        ]
    if plan.timestamp:
        lines.append(f"    {_selected(plan.timestamp)},")
    lines += [f"    {_selected(column)}," for column in plan.features]
    lines += [f"    -- {c.sql} is left out: {reason}." for c, reason in plan.left_out]
    lines.append(f"    {_selected(plan.label)}")
    needed = [plan.label, *([plan.timestamp] if plan.timestamp else [])]
    conditions = [f"{column.sql} IS NOT NULL" for column in needed]
    if plan.label.type in FLOATS:
        conditions.append(f"isfinite({plan.label.sql})")
    return "\n".join(
        [
            "-- One row per prediction, in DuckDB's SQL. Features are made here: hour(t), a / b.",
            "-- What is not known when the prediction is asked for does not belong here.",
            "SELECT",
            *lines,
            f"FROM {table.sql}",
            f"WHERE {' AND '.join(conditions)}",
            "",
        ]
    )


def _selected(column: Column) -> str:
    same = column.sql.strip('"') == column.output
    return column.sql if same else f"{column.sql} AS {column.output}"


def write_loop(name: str, table: Table, plan: Plan) -> str:
    """Returns the loop file."""
    key = plan.key.output if plan.key else ROW_KEY
    label = plan.label.output
    if plan.timestamp:
        time = f"\n  timestamp: {_yaml(plan.timestamp.output)}"
        split = "{fraction: 0.2}  # the newest rows judge the model"
    else:
        time, split = (
            "",
            f"{{method: hash, key: {_yaml(key)}}}  # a stable random fifth judges the model",
        )
    slices = [
        column.output
        for column in plan.features
        if column.kind == "text" and SLICES[0] <= column.distinct <= SLICES[1]
    ]
    judged = f"evaluation: {{slices: [{_yaml(slices[0])}]}}\n" if slices else ""
    batch, epochs = _training(table.rows)
    return f"""\
# A model that predicts {label}: trained, served, watched. docs/loop-file.md has every key.
name: {name}
task: {plan.task}  # {plan.why}
sources:
  {table.name}: {{uri: {_yaml(table.uri)}}}
examples:
  query: examples.sql
  label: {_yaml(label)}{time}
  entities: [{_yaml(key)}]  # travels with requests; no model input
split: {split}
validation: {{minimum_rows: {min(100, table.rows // 10)}}}
training: {{epochs: {epochs}, batch_size: {batch}}}
{judged}serving:
  # Nobody else asks it here, so there is nothing to wait for: logged requests are sent again.
  canary: {{minimum_requests: {min(200, max(20, table.rows // 20))}, wait_seconds: 1}}
replay: {{limit: 1000}}
"""


def _training(rows: int) -> tuple[int, int]:
    """Returns batch size and epochs: some 30 steps an epoch, and more epochs of a small table."""
    batch = 2 ** round(math.log2(max(rows, 1) * 0.7 / 30))
    return min(1024, max(16, batch)), 60 if rows < 20_000 else 20


def _yaml(text: str) -> str:
    plain = re.fullmatch(r"[\w./-][\w./:-]*", text) and yaml.safe_load(text) == text
    return text if plain else "'" + text.replace("'", "''") + "'"
