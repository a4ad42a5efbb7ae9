# SPDX-License-Identifier: Apache-2.0
"""`kfloop new`: what it writes works as it stands."""

import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from kfloop.components.contracts.errors import InputError
from kfloop.pipelines.arguments import pipeline_arguments
from kfloop.pipelines.catalogue import compiled_path
from kfloop.pipelines.local.pipeline_spec import load_pipeline, resolve_arguments
from kfloop.pipelines.loop import load_loop
from kfloop.scripts.new import new, new_component, new_loop

COLUMNS = "id,select,date,Flight No,self,note,const,late,grade,score,kind\n"


@pytest.fixture
def data(tmp_path) -> Path:
    """A table with everything that a loop file cannot take as it is."""
    rows = [
        f"{n},{'ab'[n % 2]},2024-01-{n % 28 + 1:02d},{n % 5},{n % 7},a note of {n},x,"
        f"{n % 2},{n % 9},{n / 7 if n % 3 else ''},{'red' if n % 4 else 'blue'}\n"
        for n in range(200)
    ]
    path = tmp_path / "My Flights.csv"
    path.write_text(COLUMNS + "".join(rows))
    return path


def examples_of(directory: Path, state: Path) -> dict:
    """Loads a loop, and runs its sources and its query as the training pipeline would."""
    from kfloop.components import ingest_data, transform_data
    from kfloop.testing import run_component

    loop, base = load_loop(directory / "loop.yaml")
    arguments = pipeline_arguments("training", loop, base, state)
    resolve_arguments(load_pipeline(compiled_path("training")), arguments)
    tables = run_component(ingest_data, state, sources=arguments["sources"]).artifacts["tables"]
    done = run_component(
        transform_data,
        state,
        tables=tables,
        query=arguments["examples_query"],
        timestamp=arguments["timestamp"],
    )
    return dict(done.artifacts["dataset"].metadata)


def test_a_new_component_passes_its_tests_and_ours(tmp_path):
    new_component("find_missing", "monitoring", tmp_path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "find_missing"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "3 passed" in done.stdout, done.stdout + done.stderr
    settings = Path(__file__).parents[2] / "ruff.toml"
    for check in (["check", "--extend-ignore", "D103,CPY001"], ["format", "--check"]):
        ruff = [Path(sys.executable).parent / "ruff", *check, "--no-cache", "--config", settings]
        subprocess.run([*ruff, tmp_path / "find_missing"], check=True)


def test_the_sample_loop_reads_its_data(tmp_path):
    target, plan = new_loop("bikes", "", "", "", "", tmp_path)
    assert sorted(file.name for file in target.iterdir()) == [
        "examples.sql",
        "loop.yaml",
        "trips.csv",
    ]
    assert (plan.task, plan.timestamp.name, plan.key.name) == (
        "regression",
        "started_at",
        "trip_id",
    )
    found = examples_of(target, tmp_path / "state")
    assert found["rows"] == 2000
    assert found["since"].startswith("2024-01-01")


def test_a_loop_for_a_table_of_ones_own_reads_it(tmp_path, data, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target, plan = new_loop("flights", "My Flights.csv", "late", "date", "", tmp_path)
    assert plan.task == "binary"
    assert [column.name for column, _ in plan.left_out] == ["note", "const"]
    loop, _ = load_loop(target / "loop.yaml")
    assert loop.sources["my_flights"].uri == "../My Flights.csv"
    assert loop.split.method == "time"
    found = examples_of(target, tmp_path / "state")
    assert found["rows"] == 200
    columns = ["id", "date_value", "select", "Flight_No", "self_value", "grade", "score", "kind"]
    assert found["columns"] == [*columns, "late"]


@pytest.mark.parametrize(
    ("label", "task", "rows"), [("score", "regression", 133), ("kind", "multiclass", 200)]
)
def test_without_a_time_rows_are_split_by_what_identifies_them(tmp_path, data, label, task, rows):
    text = data.read_text().replace("id,", "number,", 1)
    data.write_text(text)
    target, plan = new_loop("flights", str(data), label, "", "", tmp_path)
    loop, _ = load_loop(target / "loop.yaml")
    assert (plan.task, loop.split.method, loop.split.key) == (task, "hash", "row_key")
    found = examples_of(target, tmp_path / "state")
    assert (found["rows"], found["columns"][0]) == (rows, "row_key")


@pytest.mark.parametrize(
    ("label", "timestamp", "sentence"),
    [
        ("lat", "", "--label lat: there is no such column; there is id, select"),
        ("late", "grade", "--timestamp grade holds BIGINT, which is no time; there is date"),
        ("const", "", "the same value everywhere"),
        ("note", "", "200 different texts"),
        ("date", "", "holds DATE, which no model predicts"),
        ("date", "date", "cannot be both"),
    ],
)
def test_columns_that_cannot_be_used_are_named(tmp_path, data, label, timestamp, sentence):
    with pytest.raises(InputError, match=sentence):
        new_loop("flights", str(data), label, timestamp, "", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [data.name]


@pytest.mark.parametrize(
    ("label", "task", "sentence"),
    [
        ("kind", "regression", "--task regression needs a label of numbers; --label kind holds"),
        ("grade", "binary", "needs a label that is true or false, or 0 or 1"),
        ("score", "multiclass", "needs a label of at most 50 texts or whole numbers"),
    ],
)
def test_a_task_that_the_label_is_not_for_is_refused(tmp_path, data, label, task, sentence):
    with pytest.raises(InputError, match=sentence):
        new_loop("flights", str(data), label, "", task, tmp_path)


def test_zeros_and_ones_with_a_decimal_point_are_binary(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("x,y\n" + "".join(f"{n / 7},{n % 2}.0\n" for n in range(100)))
    _, plan = new_loop("floats", str(path), "y", "", "", tmp_path)
    assert plan.task == "binary"


def test_equal_rows_are_examples_of_their_own(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("colour,late\n" + "".join(f"{'rgb'[n % 3]},{n % 2}\n" for n in range(300)))
    target, _ = new_loop("colours", str(path), "late", "", "", tmp_path)
    query = target / "examples.sql"
    query.write_text(f"SELECT DISTINCT row_key FROM ({query.read_text()})")
    assert examples_of(target, tmp_path / "state")["rows"] == 300


def test_numbers_that_stand_for_something_are_no_amounts(tmp_path):
    path = tmp_path / "rows.csv"
    rows = (f"{n % 9},{n // 2 * 7},{n % 5},{n % 2}\n" for n in range(300))
    path.write_text("shop id,visitId,hour,late\n" + "".join(rows))
    target, plan = new_loop("visits", str(path), "late", "", "", tmp_path)
    assert [column.name for column, _ in plan.left_out] == []
    query = (target / "examples.sql").read_text()
    assert 'CAST("shop id" AS VARCHAR) AS shop_id,' in query
    assert 'CAST("visitId" AS VARCHAR) AS visitId,' in query
    assert examples_of(target, tmp_path / "state")["rows"] == 300


@pytest.mark.parametrize(("hours", "window"), [(1, 31), (24, 300)])
def test_the_newest_rows_are_replayed_and_enough_of_them_judged(tmp_path, hours, window):
    start = datetime(2020, 1, 1)
    rows = (f"{start + timedelta(hours=n * hours)},{n % 9},{n % 2}\n" for n in range(1000))
    path = tmp_path / "rows.csv"
    path.write_text("at,hour,late\n" + "".join(rows))
    target, _ = new_loop("days", str(path), "late", "at", "", tmp_path)
    loop, _ = load_loop(target / "loop.yaml")
    newest = start + timedelta(hours=999 * hours)
    assert loop.monitoring.window_days == window
    assert loop.replay.since == f"{newest - timedelta(days=window):%Y-%m-%d}"


def test_numbers_that_were_read_as_text_are_told_and_are_no_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "rows.csv"
    path.write_text("size,hour,late\n" + "".join(f"{n}.5,{n % 9},{n % 2}\n" for n in range(100)))
    path.write_text(path.read_text().replace("7.5,", "n/a,", 1))
    done = CliRunner().invoke(
        new, ["loop", "sizes", "--data", str(path), "--label", "late"], catch_exceptions=False
    )
    assert "'size' is text, since it holds 'n/a', but 99 of its 100 values are" in done.output
    assert "left out     size: 100 different texts" in done.output
    assert "\nkey " not in done.output


@pytest.mark.parametrize(
    ("column", "made"), [("seconds", "to_timestamp"), ("day", r"strptime\(day")]
)
def test_what_is_a_time_to_its_owner_is_told_how_to_become_one(tmp_path, column, made):
    path = tmp_path / "rows.csv"
    rows = (f"{n + 1_700_000_000},{n % 28 + 1}.1.2024 8:00,{n % 2}\n" for n in range(100))
    path.write_text("seconds,day,late\n" + "".join(rows))
    with pytest.raises(InputError, match=made):
        new_loop("days", str(path), "late", column, "", tmp_path)


@pytest.mark.parametrize("name", ["class", "Find", "2nd", "../up", "a-b", "", "json", "dsl"])
def test_a_name_that_is_no_functions_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="cannot be called"):
        new_component(name, "data", tmp_path)


@pytest.mark.parametrize("name", ["Bikes", "2nd", "../up", "a_b", "", "a" * 41])
def test_a_name_that_is_no_services_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="cannot be called"):
        new_loop(name, "", "", "", "", tmp_path)


def test_what_is_there_is_kept(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(InputError, match="mine exists"):
        new_component("mine", "data", tmp_path)
    with pytest.raises(InputError, match="mine exists"):
        new_loop("mine", "", "", "", "", tmp_path)
    assert (tmp_path / "mine").read_text() == "precious"


def test_options_about_a_file_need_the_file(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for options, sentence in (
        (["--label", "late"], "give it with --data"),
        (["--data", "x.csv"], "--data needs --label"),
        (["--data", "x.csv", "--label", "late"], "where no data file is"),
    ):
        done = CliRunner().invoke(new, ["loop", "bikes", *options])
        assert sentence in str(done.exception)
    done = CliRunner().invoke(new, ["component", "mine"])
    assert "pytest mine" in done.output
