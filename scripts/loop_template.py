# SPDX-License-Identifier: Apache-2.0
"""Writes a loop file and its SQL for one table, by looking at the table's columns."""

import math
import re
from dataclasses import dataclass
from datetime import date, timedelta

import yaml

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import TASKS
from kfloop.scripts.loop_table import FLOATS, ROW_KEY, Column, Table

FEWEST_ROWS = 50
MOST_CLASSES = 50
# Slices of a report: a text column of so many values, from and to.
SLICES = (2, 10)
# The loop file's own window, and how many rows one should have: monitoring wants 200 requests.
WINDOW_DAYS, WINDOW_ROWS = 31, 300


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
    # Free text is different in every row, too; so are numbers with a comma or an "n/a" among them.
    short = all(len(each) <= 40 and " " not in each for each in _ends(column))
    number = any(re.fullmatch(r"[-+]?(0|[1-9]\d*)?[.,]\d+", each) for each in _ends(column))
    return (column.kind == "text" and short and not number) or column.numbers_a_name


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
    if column.distinct <= max(MOST_CLASSES, rows / 2):
        return ""
    if column.kind == "text":
        return f"{column.distinct} different texts: a name, or free text"
    if column.numbers_a_name:
        return f"{column.distinct} different names"
    return ""


def write_sql(table: Table, plan: Plan) -> str:
    """Returns the SELECT that makes the examples."""
    lines = []
    if plan.key:
        lines.append(f"    {_selected(plan.key)},")
    else:
        content, why = f"{table.sql}::VARCHAR", "No column identifies a row, so its content does"
        if table.different < table.rows:
            content += f" || row_number() OVER (PARTITION BY {content})"
            why += "; equal rows are numbered"
        lines += [f"    -- {why}.", f"    md5({content}) AS {ROW_KEY},"]
    if plan.timestamp:
        lines.append(f"    {_selected(plan.timestamp)},")
    lines += [f"    {_feature(column)}" for column in plan.features]
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


def _feature(column: Column) -> str:
    if column.numbers_a_name:
        return f"CAST({column.sql} AS VARCHAR) AS {column.output},  -- a name, not an amount"
    return f"{_selected(column)},"


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
{_newest(table, plan)}"""


def _newest(table: Table, plan: Plan) -> str:
    """Returns what is replayed and judged: the newest rows, as many as can be judged."""
    span = _span(plan.timestamp)
    if not span:
        return "replay: {limit: 1000}\n"
    days = (span[1] - span[0]).days + 1
    window = max(WINDOW_DAYS, math.ceil(WINDOW_ROWS * days / table.rows))
    since = span[1] - timedelta(days=window)
    replay = f"replay: {{since: {since}, limit: 1000}}  # the newest rows, as if they were asked\n"
    if window == WINDOW_DAYS:
        return replay
    return f"{replay}monitoring: {{window_days: {window}}}  # fewer have too little to judge\n"


def _span(timestamp: Column | None) -> tuple[date, date] | None:
    """Returns the first and the last day; None without a time or where one is in no year."""
    if not timestamp:
        return None
    try:
        first, last = (date.fromisoformat(each[:10]) for each in _ends(timestamp))
    except ValueError:
        return None
    return first, last


def _training(rows: int) -> tuple[int, int]:
    """Returns batch size and epochs: some 30 steps an epoch, and more epochs of a small table."""
    batch = 2 ** round(math.log2(max(rows, 1) * 0.7 / 30))
    return min(1024, max(16, batch)), 60 if rows < 20_000 else 20


def _yaml(text: str) -> str:
    plain = re.fullmatch(r"[\w./-][\w./:-]*", text) and yaml.safe_load(text) == text
    return text if plain else "'" + text.replace("'", "''") + "'"
