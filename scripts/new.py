# SPDX-License-Identifier: Apache-2.0
"""`kfloop new`: a component or a loop to start from."""

import csv
import io
import keyword
import os
import random
import re
import sys
import tempfile
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import click

from kfloop.components import FAMILIES
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import new_directory, read_json, write_text
from kfloop.components.contracts.model_package import TASKS
from kfloop.pipelines.local.run import run_module
from kfloop.scripts.loop_table import read_table
from kfloop.scripts.loop_template import Plan, make_plan, write_loop, write_sql

# A component of such a name would hide what its own files import.
TAKEN = sys.stdlib_module_names | {
    *("kfloop", "kfp", "dsl", "image", "find_gaps", "pytest"),
    *("dataset", "report", "maximum", "run_component"),
}
SAMPLE = {"label": "minutes", "timestamp": "started_at"}
SAMPLE_ROWS = 2000


@click.group()
def new() -> None:
    """Write a component or a loop to start from, into a new directory here."""


@new.command("component")
@click.argument("name")
@click.option(
    "--family",
    type=click.Choice(list(FAMILIES)),
    default="data",
    show_default=True,
    help="Whose image and environment it runs in.",
)
def component_command(name: str, family: str) -> None:
    """Write a component with its core and its test, as the package NAME.

    It works as it stands: `pytest NAME`. Change the core first, then what goes in and out.
    """
    target = new_component(name, family, Path.cwd())
    click.echo(f"{target}: core.py, component.py, test_{name}.py")
    click.echo(f"test it      pytest {name}")
    click.echo(f"use it       from {name}.component import {name}")


@new.command("loop")
@click.argument("name")
@click.option(
    "--data",
    default="",
    help="Parquet, CSV or JSON: a file, a directory or a glob, at a path, gs:// or s3://. "
    "Without it, sample data is made.",
)
@click.option("--label", default="", help="Column to predict.")
@click.option("--timestamp", default="", help="Column with the time of the prediction.")
@click.option(
    "--task",
    type=click.Choice(TASKS),
    default=None,
    help="By the label unless given: boolean or 0/1 is binary, text multiclass, a number "
    "regression.",
)
def loop_command(name: str, data: str, label: str, timestamp: str, task: str | None) -> None:
    """Write a loop for a table of your own, into the directory NAME.

    \b
    kfloop new loop bikes --data trips.csv --label minutes --timestamp started_at
    """
    if not data and (label or timestamp or task):
        raise InputError("--label, --timestamp and --task are about a file; give it with --data.")
    if data and not label:
        raise InputError("--data needs --label, the column to predict.")
    target, plan = new_loop(name, data, label, timestamp, task or "", Path.cwd())
    click.echo(f"{target}: loop.yaml, examples.sql" + ("" if data else ", trips.csv"))
    click.echo(f"task         {plan.task}: {plan.why}")
    if plan.key:
        click.echo(f"key          {plan.key.name}: every row has one of its own")
    for column, reason in plan.left_out:
        click.echo(f"left out     {column.name}: {reason}")
    if not plan.timestamp:
        click.echo("split        at random; with --timestamp, the newest rows judge the model")
    click.echo(f"train it     kfloop run training --config {name}/loop.yaml")
    click.echo(f"all of it    kfloop loop --config {name}/loop.yaml")


def new_component(name: str, family: str, where: Path) -> Path:
    """Writes a component's package and returns its directory.

    Args:
        name: Name of the package and of the component's function.
        family: Whose image it runs in.
        where: Directory to write into.

    Raises:
        InputError: If the name cannot be a function's, or there is something of that name.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise InputError(
            f"A component is a Python function and cannot be called {name!r}; use lower-case "
            "letters, digits and underscores, like drop_incomplete."
        )
    if name in TAKEN:
        raise InputError(
            f"A component cannot be called {name!r}: its files import one of that name."
        )
    templates = files("kfloop.scripts.templates")
    with _new_directory(where / name) as directory:
        write_text(directory / "__init__.py", f'"""The component {name}."""\n')
        for template, file in (
            ("core", "core.py"),
            ("component", "component.py"),
            ("component_test", f"test_{name}.py"),
        ):
            text = templates.joinpath(f"{template}.py.txt").read_text(encoding="utf-8")
            write_text(directory / file, text.replace("NAME", name).replace("FAMILY", family))
    return where / name


def new_loop(
    name: str, data: str, label: str, timestamp: str, task: str, where: Path
) -> tuple[Path, Plan]:
    """Writes a loop's directory and returns it, with what was decided about the columns.

    Args:
        name: Name of the directory, the loop and the model.
        data: Where the table is; empty to make sample data.
        label: Column to predict.
        timestamp: Column with the time of the prediction; empty when there is none.
        task: Empty to go by the label.
        where: Directory to write into.

    Raises:
        InputError: If the name cannot be a loop's, there is something of that name, or no loop can
            be made for the table.
    """
    from kfloop.pipelines.loop import load_loop

    if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name) or len(name) > 40:
        raise InputError(
            f"A loop cannot be called {name!r}, since its model and service have that name; use at "
            "most 40 lower-case letters, digits and dashes, a letter first."
        )
    with _new_directory(where / name) as directory:
        if data:
            uri, table = data, _table_name(data)
        else:
            uri, table = str(directory / "trips.csv"), "trips"
            write_text(uri, _sample_data())
            label, timestamp = SAMPLE["label"], SAMPLE["timestamp"]
        found, told = _look(uri, table)
        if data:
            click.echo(told, nl=False)
        # The directory is renamed in its place at the end; paths from it to elsewhere stay.
        fixed = "://" in uri or (data and Path(data).is_absolute())
        source = uri if fixed else os.path.relpath(uri, directory)
        described = read_table(table, source, found)
        plan = make_plan(described, label, timestamp, task)
        write_text(directory / "examples.sql", write_sql(described, plan))
        write_text(directory / "loop.yaml", write_loop(name, described, plan))
        load_loop(directory / "loop.yaml")
    return where / name, plan


def _new_directory(path: Path) -> AbstractContextManager[Path]:
    if path.exists():
        raise InputError(f"{path} exists; choose another name, or move it away.")
    return new_directory(path)


def _table_name(data: str) -> str:
    """Returns the name of a file as a table's, or `rows` where there is none in it."""
    stem = Path(data.rstrip("/")).name.partition(".")[0]
    plain = re.sub(r"[^a-z0-9_]+", "_", stem.lower()).strip("_")
    return plain if re.match(r"[a-z]", plain) else "rows"


def _look(uri: str, table: str) -> tuple[dict[str, Any], str]:
    """Returns what is in a source, and what was printed while it was read."""
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "columns.json"
        told = run_module("data", "kfloop.scripts.data_columns", uri, table, str(answer))
        found: dict[str, Any] = read_json(answer)
        return found, told


def _sample_data() -> str:
    """Makes bicycle trips: how long they take depends on distance, rain, station and hour."""
    chance = random.Random(7)
    start = datetime(2024, 1, 1)
    slope = {"harbour": 3.4, "market": 4.1, "park": 3.7, "hill": 5.2}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["trip_id", "started_at", "station", "distance_km", "rain_mm", "minutes"])
    for number in range(SAMPLE_ROWS):
        started = start + timedelta(minutes=number * 70 + chance.randrange(60))
        station = chance.choice(list(slope))
        distance = round(chance.gammavariate(3, 1.1) + 0.4, 2)
        rain = round(max(0.0, chance.gauss(-0.5, 1.5)), 1)
        rush = 3.0 if started.hour in (8, 17, 18) else 0.0
        minutes = 2 + slope[station] * distance + 1.5 * rain + rush + chance.gauss(0, 1.5)
        row = [started.isoformat(" "), station, distance, rain, round(max(minutes, 1), 1)]
        table.writerow([f"t{number:05d}", *row])
    return text.getvalue()
