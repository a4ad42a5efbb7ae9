# SPDX-License-Identifier: Apache-2.0
"""Evaluation, scoring and the gate on a small hand-made model package."""

import json

import numpy as np
import pyarrow as pa
import pytest
from evaluation_toys import FEATURES, make_package, toy_table

from kfloop.components.contracts.dataset import read_dataset, write_dataset
from kfloop.components.contracts.decision import read_decision
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import ModelPackage, write_model_json
from kfloop.components.evaluation.evaluate import EvaluateSettings, evaluate
from kfloop.components.evaluation.gate import gate
from kfloop.components.evaluation.gate_checks import GateRules
from kfloop.components.evaluation.score import score_data


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {
        task: make_package(tmp_path_factory.mktemp(task), task)
        for task in ("binary", "multiclass", "regression")
    }


class Workspace:
    def __init__(self, root, models):
        self.root, self.models = root, models

    def evaluate(self, table, task="binary", model=None, **settings):
        write_dataset(table, self.root / "data")
        return evaluate(
            model or self.models[task],
            self.root / "data",
            self.root / "evaluation.json",
            self.root / "report.html",
            self.root / "predictions",
            EvaluateSettings(**({"resamples": 50} | settings)),
        )

    def gate(self, thresholds=None, slice_thresholds=None, **options):
        return gate(
            self.root / "evaluation.json",
            self.root / "decision.json",
            self.root / "decision.html",
            GateRules(thresholds or {}, slice_thresholds or {}, **options),
        )

    def score(self, table, task="binary"):
        write_dataset(table, self.root / "data")
        uri = self.models[task].as_uri()
        return score_data(uri, self.root / "data", self.root / "predictions")


@pytest.fixture
def workspace(tmp_path, models):
    return Workspace(tmp_path, models)


@pytest.mark.parametrize(
    ("task", "metric", "low", "high"),
    [
        ("binary", "auc", 0.7, 0.9),
        ("multiclass", "macro_auc", 0.6, 0.9),
        ("regression", "r2", 0.8, 1.0),
    ],
)
def test_each_task_is_judged_and_reported(workspace, task, metric, low, high):
    result = workspace.evaluate(toy_table(task), task, slices=["colour"])
    document = json.loads((workspace.root / "evaluation.json").read_text())
    assert document == json.loads(json.dumps(result.document))
    assert document["rows"] == 1200
    assert document["window"]["since"] == "1970-01-01T00:00:00+00:00"
    assert document["model"]["version"] == "3"
    for entry in document["metrics"].values():
        assert entry["low"] <= entry["value"] <= entry["high"]
    assert low < document["metrics"][metric]["value"] < high
    assert result.scalars[metric] == document["metrics"][metric]["value"]
    report = (workspace.root / "report.html").read_text()
    assert "http" not in report
    assert "<svg" in report
    assert ("Each class against the rest: " in report) == (task == "multiclass")
    json.dumps([result.metadata, result.classification_metadata, result.scalars], allow_nan=False)
    predictions = read_dataset(workspace.root / "predictions")
    assert predictions.column_names == ["at", "machine", "label", "prediction"]
    expected = pa.string() if task == "multiclass" else pa.float64()
    assert predictions["prediction"].type == expected
    assert result.predictions["rows"] == 1200


def test_predictions_are_the_models_own(workspace):
    table = toy_table("binary")
    workspace.evaluate(table)
    x = np.nan_to_num(table["x"].to_numpy())
    red = np.array(table["colour"].to_pylist()) == "red"
    expected = 1 / (1 + np.exp(-(x + red)))
    found = read_dataset(workspace.root / "predictions")["prediction"].to_numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_kfp_gets_the_roc_curve_and_the_confusion_matrix(workspace):
    pooled = workspace.evaluate(toy_table("multiclass"), "multiclass").classification_metadata
    assert len(pooled["confidenceMetrics"]) == 100
    assert len(pooled["confusionMatrix"]["rows"]) == 3
    metadata = workspace.evaluate(toy_table("binary")).classification_metadata
    assert 10 < len(metadata["confidenceMetrics"]) <= 100
    assert set(metadata["confidenceMetrics"][0]) == {
        "confidenceThreshold",
        "falsePositiveRate",
        "recall",
    }
    matrix = [row["row"] for row in metadata["confusionMatrix"]["rows"]]
    assert sum(map(sum, matrix)) == 1200
    metadata = workspace.evaluate(toy_table("multiclass"), "multiclass").classification_metadata
    names = [entry["displayName"] for entry in metadata["confusionMatrix"]["annotationSpecs"]]
    assert names == ["high", "low", "mid"]
    assert workspace.evaluate(toy_table("regression"), "regression").classification_metadata == {}


def test_slices_hold_every_row_once_and_small_ones_are_named(workspace):
    table = toy_table("binary")
    document = workspace.evaluate(table, slices=["colour", "size", "machine"]).document
    for column in ("colour", "size", "machine"):
        parts = [part for part in document["slices"] if part["slice"].startswith(f"{column}=")]
        assert sum(part["rows"] for part in parts) == 1200
    by_name = {part["slice"]: part for part in document["slices"]}
    assert by_name["colour=red"]["metrics"]["auc"]["low"] > 0.5
    assert by_name["colour=(missing)"]["rows"] > 100
    assert by_name["colour=blue"]["metrics"] == {}
    assert by_name["colour=blue"]["why"] == "fewer than 100 rows"
    assert sum(name.startswith("size=[") for name in by_name) == 4


def test_values_beyond_the_twenty_largest_are_judged_together(workspace):
    table = toy_table("binary")
    names = pa.array([f"c{index % 50:02}" for index in range(1200)])
    table = table.append_column("city", names)
    slices = workspace.evaluate(table, slices=["city"], minimum_slice_size=10).document["slices"]
    assert len(slices) == 21
    assert slices[-1]["slice"] == "city=(30 other values)"
    assert slices[-1]["rows"] == 720


def test_the_threshold_is_given_or_chosen(workspace):
    table = toy_table("binary")
    given = workspace.evaluate(table, threshold=0.9).document
    chosen = workspace.evaluate(table, threshold_by="f1").document
    assert given["threshold"] == 0.9
    assert chosen["metrics"]["f1"]["value"] > given["metrics"]["f1"]["value"]
    assert workspace.evaluate(toy_table("regression"), "regression").document["threshold"] is None


def test_no_rows_is_an_outcome_and_not_a_pass(workspace):
    result = workspace.evaluate(toy_table("binary").slice(0, 0), slices=["colour"])
    assert result.document["rows"] == 0
    assert result.document["metrics"]["auc"]["why"] == "the dataset has no rows"
    assert workspace.gate({"auc": 0.5}).decision == "no_data"
    assert workspace.gate().decision == "no_data"
    workspace.evaluate(toy_table("regression").slice(0, 0), "regression")
    assert workspace.gate().decision == "no_data"


def test_whole_numbers_beyond_those_of_a_float_are_rounded(workspace):
    table = toy_table("regression")
    index = table.column_names.index("label")
    table = table.set_column(index, "label", pa.array([2**60 + 1] * table.num_rows))
    document = workspace.evaluate(table, "regression").document
    assert document["metrics"]["mae"]["value"] == pytest.approx(2**60)


def test_a_label_with_one_value_leaves_the_auc_unknown_and_the_gate_without_data(workspace):
    table = toy_table("binary")
    index = table.column_names.index("label")
    table = table.set_column(index, "label", pa.array([True] * table.num_rows))
    document = workspace.evaluate(table).document
    assert document["metrics"]["auc"] == {
        "value": None,
        "low": None,
        "high": None,
        "why": "the label is the same in all 1200 rows",
    }
    assert "only one value" in (workspace.root / "report.html").read_text()
    assert workspace.gate({"auc": 0.5, "log_loss": 99}).decision == "no_data"
    assert workspace.gate().decision == "no_data"
    # What is known to be wrong weighs more than what is unknown.
    assert workspace.gate({"auc": 0.5, "log_loss": 0.0001}).decision == "fail"


def set_label(table, values):
    return table.set_column(table.column_names.index("label"), "label", pa.array(values))


TABLE = toy_table("binary", rows=4)


@pytest.mark.parametrize(
    ("table", "task", "settings", "message"),
    [
        (TABLE.drop_columns("label"), "binary", {}, "label 'label' is not in the evaluation data"),
        (set_label(TABLE, [True, None, True, None]), "binary", {}, "null in 2 of 4"),
        (set_label(TABLE, [1, 2, 3, 4]), "binary", {}, "boolean or 0 and 1"),
        (set_label(TABLE, ["a"] * 4), "regression", {}, "predicts a number"),
        (set_label(TABLE, [1.0, float("nan"), 2, 3]), "regression", {}, "NaN or infinity in 1"),
        (set_label(TABLE, ["low", "huge", "mid", "low"]), "multiclass", {}, "'huge', which the"),
        (TABLE.drop_columns("x"), "binary", {}, "needs 'x'"),
        (TABLE, "binary", {"slices": ["shape"]}, "slice column 'shape' is not in"),
        (TABLE, "binary", {"slices": ["at"]}, "slice column 'at' holds timestamp"),
        (TABLE, "binary", {"threshold": 2.0}, "threshold is 2.0"),
        (TABLE, "binary", {"threshold_by": "luck"}, "threshold_by is 'luck'"),
        (TABLE, "binary", {"minimum_slice_size": 0}, "minimum_slice_size"),
    ],
)
def test_what_cannot_be_evaluated_is_said(workspace, table, task, settings, message):
    with pytest.raises(InputError, match=message):
        workspace.evaluate(table, task, **settings)


def test_a_package_without_its_graph_is_named(workspace, tmp_path):
    package = ModelPackage("toy", "binary", "label", FEATURES)
    write_model_json(package, tmp_path)
    with pytest.raises(InputError, match="holds no SavedModel"):
        workspace.evaluate(TABLE, model=tmp_path)


def test_thresholds_pass_and_fail_with_reasons(workspace):
    workspace.evaluate(toy_table("binary"))
    assert workspace.gate({"auc": {"minimum": 0.6}, "log_loss": 2}).decision == "pass"
    failed = workspace.gate({"auc": 0.99, "ece": {"minimum": 0, "maximum": 1.0}})
    assert failed.decision == "fail"
    assert [reason.passed for reason in failed.reasons] == [False, True, True]
    assert "below the minimum 0.99" in failed.summary
    assert read_decision(workspace.root / "decision.json") == failed
    assert "below the minimum 0.99" in (workspace.root / "decision.html").read_text()


def test_with_confidence_the_interval_must_clear_the_threshold(workspace):
    document = workspace.evaluate(toy_table("binary")).document
    bar = (document["metrics"]["auc"]["low"] + document["metrics"]["auc"]["value"]) / 2
    assert workspace.gate({"auc": bar}).decision == "pass"
    assert workspace.gate({"auc": bar}, confident=True).decision == "fail"


def test_slice_thresholds_hold_for_every_large_slice(workspace):
    workspace.evaluate(toy_table("binary"), slices=["colour"])
    passed = workspace.gate({}, {"auc": 0.5})
    assert passed.decision == "pass"
    assert any("colour=blue has" in reason.why for reason in passed.reasons)
    failed = workspace.gate({"auc": 0.5}, {"accuracy": {"minimum": 0.99}})
    assert failed.decision == "fail"
    assert {r.slice for r in failed.reasons if not r.passed} >= {"colour=red", "colour=green"}


def test_without_thresholds_the_model_must_beat_one_that_knows_nothing(workspace):
    workspace.evaluate(toy_table("binary"))
    assert workspace.gate().decision == "pass"
    random = np.random.default_rng(1)
    workspace.evaluate(set_label(toy_table("binary"), random.random(1200) < 0.5))
    failed = workspace.gate()
    assert failed.decision == "fail"
    assert "not surely better than the 0.5" in failed.summary
    workspace.evaluate(toy_table("regression"), "regression")
    assert workspace.gate().decision == "pass"
    workspace.evaluate(set_label(toy_table("regression"), random.normal(size=1200)), "regression")
    assert workspace.gate().decision == "fail"


def test_force_overrules_a_failure_and_is_recorded(workspace):
    workspace.evaluate(toy_table("binary"))
    forced = workspace.gate({"auc": 0.99}, force="holiday data, agreed with the owner")
    assert (forced.decision, forced.forced) == ("pass", "holiday data, agreed with the owner")
    assert [reason.passed for reason in forced.reasons] == [False]
    assert workspace.gate({"auc": 0.5}, force="not needed").forced is None


@pytest.mark.parametrize(
    ("thresholds", "slice_thresholds", "message"),
    [
        ({"rmse": 3}, {}, "'rmse', which is not a metric of the task binary; those are auc"),
        ({"auc": {"min": 0.7}}, {}, "takes `minimum` and `maximum`"),
        ({"auc": {}}, {}, "takes `minimum` and `maximum`"),
        ({"auc": "0.7"}, {}, "must be a number"),
        ({"auc": float("nan")}, {}, "must be a number"),
        ({}, {"auc": 0.5}, "has no slices"),
    ],
)
def test_a_wrong_threshold_is_named(workspace, thresholds, slice_thresholds, message):
    workspace.evaluate(toy_table("binary"), resamples=0)
    with pytest.raises(InputError, match=message):
        workspace.gate(thresholds, slice_thresholds)


def test_an_error_best_at_zero_needs_both_bounds(workspace):
    workspace.evaluate(toy_table("regression"), "regression")
    with pytest.raises(InputError, match="needs a minimum and a maximum"):
        workspace.gate({"mean_error": 1})
    assert workspace.gate({"mean_error": {"minimum": -1, "maximum": 1}}).decision == "pass"


def test_something_else_than_an_evaluation_is_named(workspace):
    (workspace.root / "evaluation.json").write_text("[]")
    with pytest.raises(InputError, match="is not an evaluation"):
        workspace.gate()


def test_scoring_keeps_every_column_and_says_the_version(workspace):
    table = toy_table("binary").drop_columns("label")
    metadata = workspace.score(table)
    scored = read_dataset(workspace.root / "predictions")
    assert scored.column_names == [*table.column_names, "prediction", "model_version"]
    assert scored["model_version"].unique().to_pylist() == ["3"]
    assert metadata["rows"] == 1200
    assert metadata["since"] == "1970-01-01T00:00:00+00:00"


def test_what_cannot_be_scored_is_said(workspace):
    with pytest.raises(InputError, match="no rows to score"):
        workspace.score(TABLE.slice(0, 0))
    with pytest.raises(InputError, match="already has a column 'prediction'"):
        workspace.score(TABLE.append_column("prediction", pa.array([1.0] * 4)))
    with pytest.raises(InputError, match="s3://"):
        score_data("s3://bucket/model", workspace.root, workspace.root / "out")


def test_crossed_slices_hold_every_row_once_and_have_a_minimum_size(workspace):
    table = toy_table("binary")
    slices = workspace.evaluate(table, slices=["colour,machine"]).document["slices"]
    assert sum(part["rows"] for part in slices) == 1200
    by_name = {part["slice"]: part for part in slices}
    colours, machines = (table[name].to_pylist() for name in ("colour", "machine"))
    both = sum(c == "green" and m == "m1" for c, m in zip(colours, machines, strict=True))
    assert by_name["colour=green, machine=m1"]["rows"] == both
    assert by_name["colour=green, machine=m1"]["metrics"]["auc"]["value"] > 0.5
    assert by_name["colour=blue, machine=m1"]["why"] == "fewer than 100 rows"
    assert workspace.evaluate(table.slice(0, 0), slices=["colour,machine"]).document["slices"] == []
    with pytest.raises(InputError, match="slice column 'shape'"):
        workspace.evaluate(table, slices=["colour,shape"])


def test_the_threshold_follows_the_stated_costs(workspace):
    table = toy_table("binary")

    def chosen(**costs):
        return workspace.evaluate(table, threshold_by="cost", **costs).document["threshold"]

    assert chosen(false_negative_cost=9.0) < chosen() < chosen(false_positive_cost=9.0)
    with pytest.raises(InputError, match="must be above 0"):
        chosen(false_positive_cost=0.0)


def test_shuffling_what_the_model_leans_on_costs_most(workspace):
    table = toy_table("binary")
    found = workspace.evaluate(table, importance_rows=1000).document["importance"]
    assert [entry["feature"] for entry in found["features"]] == ["x", "colour"]
    assert found["features"][0]["loss"] > 0.1
    assert (found["metric"], found["rows"]) == ("auc", 1000)
    assert workspace.evaluate(table, importance_rows=1000).document["importance"] == found
    assert "when one feature is shuffled" in (workspace.root / "report.html").read_text()
    assert workspace.evaluate(table, importance_rows=0).document["importance"] == {}
