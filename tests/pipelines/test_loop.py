# SPDX-License-Identifier: Apache-2.0
"""A mistake in a loop file is named by key and line, before anything runs."""

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from kfloop.components.contracts.errors import InputError
from kfloop.components.training.hyperparameters import Hyperparameters
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


def test_what_lies_on_a_volume_is_for_the_pods_to_find(write):
    text = GOOD.replace("trips.csv", "/data/trips.csv") + "volumes: {trips: {path: /data}}\n"
    assert load_loop(write(text))[0].sources["trips"].uri == "/data/trips.csv"
    with pytest.raises(InputError, match=r"line 4: .*there is no /data/trips\.csv"):
        load_loop(write(text.replace("path: /data", "path: /dat")))


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
        (
            "training:",
            "features: {repo: 's3://bucket/repo', service: a}\ntraining:",
            "line 10: features.repo: .*not read from s3://; give a directory, .* or gs://",
        ),
    ],
)
def test_names_a_mistake_by_key_and_line(write, old, new, sentence):
    assert old in GOOD
    with pytest.raises(InputError, match=sentence):
        load_loop(write(GOOD.replace(old, new)))


TUNING = """\
training:
  tuning:
    trials: 9
    study: studies
    space:
      learning_rate: {low: 1e-4, high: 0.01, log: true}
      hidden: {choices: [[64], [128, 64]]}
"""
NO_TRAINING = GOOD.replace("training:\n  epochs: 3\n", "")


@pytest.mark.parametrize(
    ("gate", "evaluation", "sentence"),
    [
        ("{thresholds: {auc: 0.7}}", "{}", "line 12: gate.thresholds.auc: is no metric of the .*"
         "regression; those are mae"),
        ("{thresholds: {mean_error: 1}}", "{}", "mean_error: is best in between"),
        ("{thresholds: {rmse: {maximum_drop: 1}}}", "{}", "rmse: takes minimum and maximum"),
        ("{minimum_improvement: {f1: 1}}", "{}", "gate.minimum_improvement.f1: is no metric"),
        ("{metric: auc}", "{}", "gate.metric: is no metric"),
        ("{slices: {rmse: 9}}", "{}", "gate.slices: needs columns in evaluation.slices"),
        ("{maximum_slice_regression: {rmse: 9}}", "{}", "needs columns in evaluation.slices"),
        ("{fairness: {selection_rate: 0.1}}", "{}", "gate.fairness: needs columns in evaluation"),
        ("{tolerance: -1}", "{}", "line 12: gate.tolerance: .*greater than or equal to 0"),
        ("{confident: perhaps}", "{}", "line 12: gate.confident: "),
        ("{}", "{groups: [station]}", "line 13: evaluation.groups: is for binary models"),
        ("{}", "{threshold_by: f1}", "evaluation.threshold_by: is for binary models"),
        ("{}", "{threshold_by: luck}", "line 13: evaluation.threshold_by: .*not 'luck'"),
        ("{}", "{threshold: 2}", "line 13: evaluation.threshold: .*less than or equal to 1"),
        ("{}", "{resamples: 0}", "line 13: evaluation.resamples: "),
        ("{}", "{importance_rows: -1}", "line 13: evaluation.importance_rows: "),
        ("{}", "{costs: {false_alarm: 2}}", "line 13: evaluation.costs"),
    ],
)  # fmt: skip
def test_names_what_the_gate_cannot_judge_by(write, gate, evaluation, sentence):
    text = GOOD.replace("gate:\n  thresholds: {rmse: 5}\n", f"gate: {gate}\n")
    with pytest.raises(InputError, match=sentence):
        load_loop(write(f"{text}evaluation: {evaluation}\n"))


@pytest.mark.parametrize(
    ("performance", "sentence"),
    [
        ("{auc: {maximum_drop: 1}}", "line 12: monitoring.performance.auc: monitoring of regress.*"
         "measures mae, rmse"),
        ("{rmse: {max_drop: 1}}", "performance.rmse: takes maximum_drop, maximum_relative_drop"),
        ("{rmse: {}}", "performance.rmse: takes maximum_drop"),
        ("{rmse: 3}", "monitoring.performance.rmse: "),
    ],
)  # fmt: skip
def test_names_what_monitoring_cannot_judge_by(write, performance, sentence):
    text = GOOD.partition("gate:")[0]
    with pytest.raises(InputError, match=sentence):
        load_loop(write(f"{text}monitoring: {{performance: {performance}}}\n"))


def test_a_loop_may_limit_a_drop_as_a_share(write, tmp_path):
    text = GOOD + "monitoring: {performance: {mae: {maximum_relative_drop: 0.1}}}\n"
    loop, base = load_loop(write(text))
    arguments = pipeline_arguments("monitoring", loop, base, tmp_path)
    assert arguments["performance_thresholds"] == {"mae": {"maximum_relative_drop": 0.1}}


@pytest.mark.parametrize(
    ("hyperparameters", "sentence"),
    [
        ("{layers: 3}", "line 12: training.hyperparameters: Unknown hyperparameter 'layers'"),
        ("{hidden: 64}", "hyperparameters: .* hidden is 64; it must be a list"),
        ("{schedule: linear}", "hyperparameters: .* schedule is 'linear'; it must be one of"),
    ],
)
def test_names_a_mistake_of_a_hyperparameter(write, hyperparameters, sentence):
    text = GOOD.replace("  epochs: 3\n", f"  epochs: 3\n  hyperparameters: {hyperparameters}\n")
    with pytest.raises(InputError, match=sentence):
        load_loop(write(text))


def test_a_module_of_ones_own_reads_other_hyperparameters(write, tmp_path):
    (tmp_path / "net.py").write_text("")
    own = "  epochs: 3\n  module: net.py\n  hyperparameters: {layers: 3}\n"
    loop, _ = load_loop(write(GOOD.replace("  epochs: 3\n", own)))
    assert loop.training.hyperparameters == {"layers": 3}


def test_costs_belong_to_the_threshold_they_choose(write):
    text = GOOD.replace("regression", "binary").replace("{rmse: 5}", "{auc: 0.7}")
    with pytest.raises(InputError, match="costs: is for evaluation"):
        load_loop(write(text + "evaluation: {costs: {false_negative: 2}}\n"))
    with pytest.raises(InputError, match="threshold_by: cost needs"):
        load_loop(write(text + "evaluation: {threshold_by: cost}\n"))


def test_how_a_model_is_judged_reaches_both_pipelines(write, tmp_path):
    text = GOOD.replace("regression", "binary").replace(
        "gate:\n  thresholds: {rmse: 5}\n",
        "gate: {confident: true, metric: pr_auc, tolerance: 0.01, force: agreed}\n"
        "evaluation: {threshold_by: cost, costs: {false_negative: 5}, importance_rows: 0}\n",
    )
    loop, base = load_loop(write(text))
    for pipeline in ("training", "monitoring"):
        given = pipeline_arguments(pipeline, loop, base, tmp_path)
        assert (given["confident"], given["gate_metric"], given["tolerance"]) == (
            True, "pr_auc", 0.01
        )  # fmt: skip
        assert (given["threshold_by"], given["force_gate"]) == ("cost", "agreed")
        assert (given["false_positive_cost"], given["false_negative_cost"]) == (1.0, 5.0)
        assert given["importance_rows"] == 0


def test_a_search_space_reaches_the_pipeline_as_it_is_given(write, tmp_path):
    loop, base = load_loop(write(NO_TRAINING + TUNING))
    arguments = pipeline_arguments("training", loop, base, tmp_path)
    assert arguments["tuning_space"] == {
        "learning_rate": {"low": 0.0001, "high": 0.01, "log": True},
        "hidden": {"choices": [[64], [128, 64]]},
    }
    assert arguments["tuning_trials"] == 9
    assert arguments["tuning_study"] == str(base / "studies")
    assert "tuning_space" not in pipeline_arguments(
        "training", load_loop(write(GOOD))[0], base, tmp_path
    )


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("trials: 9", "trials: 0", "line 14: training.tuning.trials: .*or equal to 1"),
        ("high: 0.01", "hihg: 1", "line 17: training.tuning.space.learning_rate.hihg: there is no"),
        ("high: 0.01", "high: low", "line 17: training.tuning.space.learning_rate.high: .*number"),
        (", high: 0.01", "", "line 17: training.tuning.space.learning_rate: .*has no `high`"),
        ("hidden:", "hiden:", "line 18: training.tuning.space.hiden: .*cannot be tuned"),
        ("[64], [128", "[0], [128", "line 18: training.tuning.space.hidden: .*hidden holds 0"),
    ],
)
def test_names_a_mistake_of_a_search_space(write, old, new, sentence):
    assert old in TUNING
    with pytest.raises(InputError, match=sentence):
        load_loop(write(NO_TRAINING + TUNING.replace(old, new)))


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
        ("{uri: 's3://bucket/a', query: SELECT 1}", "query needs the URL of a database"),
        ("{uri: 'az://bucket/a'}", "az:// is not supported"),
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
        ("{uri: 's3://bucket/trips'}", {"uri": "s3://bucket/trips"}),
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


LOGGER = """\
serving:
  inference_log: http://kfloop-payload-logger.ml
  canary: {source: prometheus, prometheus_url: "http://prometheus:9090"}
monitoring:
  inference_log: /log/ml/bikes
"""


def test_what_a_payload_logger_gets_is_judged_and_read_elsewhere(write, tmp_path):
    loop, base = load_loop(write(GOOD + LOGGER))
    training, monitoring = (pipeline_arguments(name, loop, base, tmp_path)
                            for name in ("training", "monitoring"))  # fmt: skip
    assert training["inference_log"] == "http://kfloop-payload-logger.ml"
    assert monitoring["inference_log"] == "/log/ml/bikes"
    for arguments in (training, monitoring):
        assert arguments["canary_source"] == "prometheus"
        assert arguments["canary_prometheus_url"] == "http://prometheus:9090"


def test_a_payload_logger_that_would_be_asked_is_refused(write, tmp_path):
    unread, _, _ = LOGGER.partition("monitoring:")
    loop, base = load_loop(write(GOOD + unread))
    with pytest.raises(InputError, match=r"tells nothing back: .* in monitoring\.inference_log"):
        pipeline_arguments("monitoring", loop, base, tmp_path)
    unasked = "serving: {inference_log: http://kfloop-payload-logger.ml}\n"
    with pytest.raises(InputError, match=r"line 14: serving: .* canary\.source prometheus"):
        load_loop(write(GOOD + unasked))
    load_loop(write(GOOD + unasked.replace("ml}", "ml, canary: {steps: []}}")))
    with pytest.raises(InputError, match="source: prometheus and prometheus_url go together"):
        load_loop(write(GOOD + "serving: {canary: {source: prometheus}}\n"))


@pytest.mark.parametrize(
    ("text", "since"),
    [
        ("split: {at: 2013-06-01, until: 2013-07-01}\n", "2013-07-01"),
        ("split: {at: 2013-06-01}\n", "2013-06-01"),
        ("split: {at: 2013-06-01}\nreplay: {since: 2013-06-15}\n", "2013-06-15"),
        ("split: {fraction: 0.2}\n", ""),
    ],
)
def test_what_the_model_learned_from_is_not_replayed(write, tmp_path, text, since):
    loop, base = load_loop(write(GOOD + text))
    assert pipeline_arguments("replay", loop, base, tmp_path)["since"] == since


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


@pytest.mark.parametrize("pipeline", sorted(PIPELINES))
def test_a_loop_file_and_the_form_of_a_run_have_the_same_defaults(write, tmp_path, pipeline):
    loop, base = load_loop(write(GOOD.partition("training:")[0]))
    declared = load_pipeline(compiled_path(pipeline)).root["inputDefinitions"]["parameters"]
    of_this_loop = {"name", "timestamp", "entities", "history", "drift_history"}
    for name, value in pipeline_arguments(pipeline, loop, base, tmp_path).items():
        if name not in of_this_loop and "defaultValue" in declared[name]:
            assert value == declared[name]["defaultValue"], name


def test_the_docs_explain_every_key():
    text = (Path(__file__).parents[2] / "docs" / "loop-file.md").read_text()
    assert [
        each.name for each in fields(Hyperparameters) if f"\n| `{each.name}` |" not in text
    ] == []
    sections = [Loop]
    while sections:
        for name, field in sections.pop().model_fields.items():
            key = field.alias or name
            # In a table, as the key of an example, or as a heading.
            said = rf"`[\w.]*\b{key}[`.]|\b{key}:|^## .*\b{key}\b"
            assert re.search(said, text, re.MULTILINE), key
            for inner in [field.annotation, *get_args(field.annotation)]:
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    sections.append(inner)
