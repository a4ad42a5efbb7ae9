# SPDX-License-Identifier: Apache-2.0
"""The gate against the champion, between groups and on latency."""

import numpy as np
import pyarrow as pa
import pytest
from evaluation_toys import make_package, toy_table

from kfloop.components.contracts.dataset import write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import read_json, write_json
from kfloop.components.evaluation.compare import CompareSettings, compare_models
from kfloop.components.evaluation.evaluate import EvaluateSettings, evaluate
from kfloop.components.evaluation.fairness import fairness_gaps
from kfloop.components.evaluation.gate import gate
from kfloop.components.evaluation.gate_checks import GateRules


class Judged:
    """A candidate that was evaluated, and compared with a better, a worse and no champion."""

    def __init__(self, root):
        self.root = root
        candidate = make_package(root / "candidate", "binary", red=0.0)
        champions = {"better": 1.0, "worse": -3.0}
        write_dataset(toy_table("binary", rows=2000), root / "data")
        settings = EvaluateSettings(slices=["colour"], groups=["colour"], resamples=50)
        paths = [root / name for name in ("evaluation.json", "report.html", "predictions")]
        evaluate(candidate, root / "data", *paths, settings)
        for name in ("better", "worse", "none"):
            uri = ""
            if name in champions:
                uri = str(make_package(root / name, "binary", red=champions[name]))
            outputs = [root / f"{name}.json", root / "decision.json", root / "page.html"]
            options = CompareSettings(slices=["colour"], resamples=50)
            compare_models(candidate, root / "data", uri, *outputs, options)

    def gate(self, champion="", evaluation="evaluation.json", **rules):
        return gate(
            self.root / evaluation,
            self.root / "decision.json",
            self.root / "page.html",
            GateRules(**({"thresholds": {"auc": 0.5}} | rules)),
            self.root / f"{champion}.json" if champion else None,
        )

    @property
    def page(self):
        return (self.root / "page.html").read_text()


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    return Judged(tmp_path_factory.mktemp("judged"))


def test_a_model_that_is_surely_worse_than_the_champion_does_not_pass(judged):
    assert judged.gate().decision == "pass"
    assert judged.gate("worse").decision == "pass"
    failed = judged.gate("better")
    assert failed.decision == "fail"
    assert "surely worse" in failed.summary
    assert "Compared with version 3 at" in judged.page


def test_the_improvement_must_reach_its_minimum(judged):
    assert judged.gate("worse", minimum_improvement={"auc": 0.01}).decision == "pass"
    failed = judged.gate("worse", minimum_improvement={"auc": 0.9})
    assert failed.decision == "fail"
    assert "below the minimum 0.9" in failed.summary
    assert judged.gate("better", minimum_improvement={"auc": -0.9}).decision == "pass"
    bar = read_json(judged.root / "worse.json")["metrics"]["auc"]["improvement"]["value"]
    rules = {"minimum_improvement": {"auc": bar - 1e-9}}
    assert judged.gate("worse", **rules).decision == "pass"
    assert judged.gate("worse", confident=True, **rules).decision == "fail"


def test_a_slice_that_gets_worse_than_the_champions_is_named(judged):
    rules = {"minimum_improvement": {"auc": -1}}
    found = judged.gate("better", maximum_slice_regression={"log_loss": 0.01}, **rules)
    assert {r.slice for r in found.reasons if not r.passed} == {"colour=red"}
    assert any("too few to judge" in reason.why for reason in found.reasons)
    rules["maximum_slice_regression"] = {"log_loss": 0.9}
    assert judged.gate("better", **rules).decision == "pass"


def test_having_no_champion_is_what_the_policy_says(judged):
    assert judged.gate("none").decision == "pass"
    assert "there is no champion yet" in judged.page
    failed = judged.gate("none", no_baseline="fail")
    assert failed.decision == "fail"
    with pytest.raises(InputError, match="must be 'pass' or 'fail'"):
        judged.gate("none", no_baseline="maybe")


def test_fairness_and_latency_limits_hold_or_say_why_not(judged):
    document = read_json(judged.root / "evaluation.json")
    assert 0 < document["latency"]["row_ms"] < document["latency"]["batch_ms"] * 100
    assert judged.gate(latency_ms={"row": 60_000, "batch": 60_000}).decision == "pass"
    failed = judged.gate(latency_ms={"row": 1e-6})
    assert "above the budget 1e-06 ms" in failed.summary
    gap = document["fairness"]["colour"]["gaps"]["true_positive_rate"]
    assert judged.gate(fairness={"true_positive_rate": gap}).decision == "pass"
    failed = judged.gate(fairness={"true_positive_rate": gap / 2})
    assert failed.decision == "fail"
    assert "the true positive rate of colour" in failed.summary
    assert "Groups of colour" in (judged.root / "report.html").read_text()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"minimum_improvement": {"auc": 0.1}}, "no comparison"),
        ({"champion": "worse", "minimum_improvement": {"rmse": 0}}, "not a metric of this task"),
        ({"champion": "worse", "maximum_slice_regression": {"auc": "x"}}, "must be a number"),
        ({"fairness": {"odds": 0.1}}, "fairness names 'odds'"),
        ({"latency_ms": {"second": 1}}, "it knows row and batch"),
    ],
)
def test_a_wrong_rule_is_named(judged, rules, message):
    with pytest.raises(InputError, match=message):
        judged.gate(**rules)


def test_an_unknown_improvement_is_no_data_and_not_a_pass(judged):
    document = read_json(judged.root / "worse.json")
    document["metrics"]["auc"]["improvement"] = {"value": None, "low": None, "high": None}
    write_json(judged.root / "unknown.json", document)
    assert judged.gate("unknown").decision == "no_data"
    assert judged.gate("unknown", minimum_improvement={"auc": 0}).decision == "no_data"


def test_one_page_answers_why_a_model_was_not_blessed(judged):
    judged.gate(
        "better",
        thresholds={"auc": 0.99, "ece": {"maximum": 1e-6}},
        slice_thresholds={"accuracy": 0.99},
        maximum_slice_regression={"log_loss": 0.01},
        fairness={"selection_rate": 0.0},
        latency_ms={"batch": 1e-6},
    )
    told = judged.page.split("<details>")[0]
    for check in ("below the minimum 0.99", "ece is", "colour=red", "surely worse", "budget"):
        assert check in told


def test_gaps_equal_their_definitions():
    table = pa.table({"group": ["a"] * 4 + ["b"] * 4 + ["c"]})
    labels = np.array([1, 1, 0, 0, 1, 0, 0, 0, 1.0])
    outputs = np.array([0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.1, 0.1, 0.9])
    found = fairness_gaps(table, labels, outputs, 0.5, ["group"], 2)["group"]
    assert found["gaps"] == {
        "selection_rate": 0.5 - 0.25,
        "true_positive_rate": 1.0 - 0.5,
        "false_positive_rate": 0.5 - 0.0,
    }
    assert found["groups"][2]["why"] == "fewer than 2 rows"
    alone = fairness_gaps(table.slice(0, 4), labels[:4], outputs[:4], 0.5, ["group"], 2)["group"]
    assert alone["gaps"]["selection_rate"] is None
