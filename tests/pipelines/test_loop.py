"""A mistake in a loop file is named by key and line, before anything runs."""

from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from kfloop.components.contracts.errors import InputError
from kfloop.pipelines.arguments import pipeline_arguments
from kfloop.pipelines.catalogue import PIPELINES, compiled_path
from kfloop.pipelines.local.pipeline_spec import load_pipeline, resolve_arguments
from kfloop.pipelines.loop import Loop, load_loop

GOOD = """\
name: bikes
task: regression
sources:
  trips: {uri: trips.csv, timestamp: at}
examples:
  query: SELECT * FROM trips
  label: minutes
  timestamp: at
  entities: [station]
training:
  epochs: 3
gate:
  thresholds: {rmse: 5}
"""


@pytest.fixture
def write(tmp_path):
    (tmp_path / "trips.csv").write_text("at,station,minutes\n")

    def write(text: str) -> Path:
        path = tmp_path / "loop.yaml"
        path.write_text(text)
        return path

    return write


def test_reads_a_loop_and_keeps_dates_as_text(write):
    loop, base = load_loop(write(GOOD + "split: {at: 2013-06-01, until: 2013-07-01}\n"))
    assert loop.split.at == "2013-06-01"
    assert loop.service == "bikes"
    assert loop.label_keys == ["station", "at"]
    assert base.is_dir()


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("epochs: 3", "epochs: many", "line 11: training.epochs: .*not 'many'"),
        ("epochs: 3", "epochs: 0", "line 11: training.epochs: .*greater than or equal to 1"),
        ("epochs: 3", "epoch: 3", "line 11: training.epoch: there is no such key"),
        ("task: regression", "task: ranking", "line 2: task: .*not 'ranking'"),
        ("name: bikes", "name: Bikes!", "line 1: name: "),
        ("  label: minutes\n", "", "line 5: examples.label: is missing"),
        ("uri: trips.csv", "uri: trip.csv", "line 4: sources.trips.uri: there is no .*trip.csv"),
        ("query: SELECT * FROM trips", "query: q.sql", "line 6: examples.query: there is no"),
        ("  timestamp: at\n", "", "split.method is time but examples.timestamp is not set"),
        ("epochs: 3", "epochs: 3\n  epochs: 4", "line 12: training.epochs is given twice"),
        ("epochs: 3", "epochs: [3", "is not YAML"),
        ("rmse: 5", "rmse: low", "line 13: gate.thresholds.rmse"),
        ("training:", "split: {at: June}\ntraining:", "line 10: split.at: .*like 2013-06-01"),
        ("training:", "split: {fraction: 1.5}\ntraining:", "line 10: split.fraction"),
        ("entities: [station]", "entities: station", "line 9: examples.entities: .*list"),
    ],
)
def test_names_a_mistake_by_key_and_line(write, old, new, sentence):
    assert old in GOOD
    with pytest.raises(InputError, match=sentence):
        load_loop(write(GOOD.replace(old, new)))


SOURCE = "trips: {uri: trips.csv, timestamp: at}"


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("{uri: 'postgresql://me:secret@host/db', query: SELECT 1}", "uri holds a password"),
        ("{uri: 'postgresql://host/db?password=x', query: SELECT 1}", "uri holds a password"),
        ("{uri: 'postgresql+psycopg://host/db'}", "postgresql:// is a database; give it a query"),
        ("{uri: 'gs://bucket/a', query: SELECT 1}", "query needs the URL of a database"),
        ("{uri: trips.csv, query: SELECT 1}", "query needs the URL of a database"),
        ("{uri: 'sqlite:///a.db', query: SELECT 1, format: csv}", "leave out format"),
        ("{uri: 's3://bucket/a'}", "s3:// is not supported"),
        ("{uri: '$BUCKET/a'}", r"write it like \$\{NAME\}"),
        ("{uri: '${WAREHOUSE}', query: trips.sql}", "query: there is no .*trips.sql"),
    ],
)
def test_names_a_mistake_of_a_source(write, source, sentence):
    with pytest.raises(InputError, match=f"line 4: sources.trips.*{sentence}") as caught:
        load_loop(write(GOOD.replace(SOURCE, f"trips: {source}")))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "parameter"),
    [
        ("{uri: 'gs://${BUCKET}/trips'}", {"uri": "gs://${BUCKET}/trips"}),
        (
            "{uri: 'sqlite:///trips.db', query: trips.sql}",
            {"uri": "sqlite:///{base}/trips.db", "query": "SELECT 1 -- from a file"},
        ),
        (
            "{uri: '${WAREHOUSE_URL}', query: SELECT 1, timestamp: at}",
            {"uri": "${WAREHOUSE_URL}", "query": "SELECT 1", "timestamp": "at"},
        ),
        (
            "{uri: 'postgresql://me:${PASSWORD}@host/db', query: SELECT 1}",
            {"uri": "postgresql://me:${PASSWORD}@host/db", "query": "SELECT 1"},
        ),
    ],
)
def test_a_source_reaches_its_step_with_its_secrets_unread(
    write, monkeypatch, source, parameter, tmp_path
):
    monkeypatch.setenv("PASSWORD", "hunter2")
    path = write(GOOD.replace(SOURCE, f"trips: {source}"))
    (path.parent / "trips.sql").write_text("SELECT 1 -- from a file")
    loop, base = load_loop(path)
    given = pipeline_arguments("training", loop, base, tmp_path)["sources"]
    expected = {key: value.replace("{base}", str(base)) for key, value in parameter.items()}
    assert given == [{"name": "trips", **expected}]


def test_an_export_is_relative_to_the_file_unless_it_is_a_uri(write, tmp_path):
    for place, expected in (("out", f"{tmp_path}/out"), ("gs://b/out", "gs://b/out")):
        text = GOOD + f"batch_scoring: {{export_to: '{place}', partition_by: [station]}}\n"
        loop, base = load_loop(write(text))
        arguments = pipeline_arguments("batch-scoring", loop, base, tmp_path)
        assert arguments["export_to"] == expected
        assert arguments["partition_by"] == ["station"]


def test_names_every_mistake_at_once(write):
    with pytest.raises(InputError) as caught:
        load_loop(write(GOOD.replace("epochs: 3", "epochs: x\n  seed: y")))
    assert "line 11" in str(caught.value) and "line 12" in str(caught.value)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="There is no loop file"):
        load_loop(tmp_path / "absent.yaml")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(text=st.text(max_size=200) | st.sampled_from(GOOD.splitlines()).map(lambda line: line + ":"))
def test_no_text_gets_past_as_anything_but_a_loop_or_one_error(write, text):
    try:
        load_loop(write(text))
    except InputError as error:
        assert str(error)


@pytest.mark.parametrize("pipeline", sorted(PIPELINES))
def test_a_loop_gives_every_parameter_a_pipeline_needs(write, tmp_path, pipeline):
    loop, base = load_loop(write(GOOD))
    arguments = pipeline_arguments(pipeline, loop, base, tmp_path)
    if pipeline == "rollback":
        arguments["reason"] = "a reason"
    spec = load_pipeline(compiled_path(pipeline))
    assert resolve_arguments(spec, arguments)


def test_the_docs_explain_every_key():
    text = (Path(__file__).parents[2] / "docs" / "loop-file.md").read_text()
    sections = [Loop]
    while sections:
        for name, field in sections.pop().model_fields.items():
            assert f"{field.alias or name}" in text, name
            for inner in [field.annotation, *get_args(field.annotation)]:
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    sections.append(inner)
