# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from monitoring_world import Columns, log, people, publish
from sklearn.metrics import f1_score, roc_auc_score

from kfloop.components.contracts.errors import InputError
from kfloop.components.monitoring.metrics import binary_metrics, multiclass_metrics
from kfloop.components.monitoring.performance import Report, measure_performance

RELEASE = {
    "auc": {"value": 0.79, "low": 0.77, "high": 0.81},
    "log_loss": {"value": 0.5, "low": 0.48, "high": 0.52},
}


@pytest.fixture
def model(tmp_path: Path) -> str:
    return publish(tmp_path / "model", evaluation=RELEASE)


def measure(tmp_path: Path, model: str, columns: Columns, **settings: Any) -> Report:
    joined = log(tmp_path / "joined", columns)
    return measure_performance(joined, model, tmp_path / "d.json", tmp_path / "p.html", **settings)


def mislead(columns: Columns, share: float) -> Columns:
    """Replaces the labels of a share of the rows by a coin, so that nothing predicts them."""
    rng = np.random.default_rng(5)
    rows = len(columns["churned"])
    coin = rng.random(rows) < 0.5
    return columns | {"churned": np.where(rng.random(rows) < share, coin, columns["churned"])}


def test_a_model_as_good_as_at_release_passes(tmp_path: Path, model: str) -> None:
    report = measure(tmp_path, model, people(4000, seed=1))
    assert report.decision.decision == "pass"
    assert report.metrics["auc_low"] < report.metrics["auc"] < report.metrics["auc_high"]
    assert report.metrics["ece"] < 0.03


def test_a_model_on_a_volume_is_found_where_it_is_mounted(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFLOOP_PVC_ROOT", str(tmp_path.parent))
    report = measure(tmp_path, f"pvc://{tmp_path.name}/model", mislead(people(4000, seed=1), 0.6))
    assert "at release 0.79: worse by" in report.decision.summary


def test_a_model_that_became_worse_fails_and_says_by_how_much(tmp_path: Path, model: str) -> None:
    report = measure(tmp_path, model, mislead(people(4000, seed=1), 0.6))
    assert report.decision.decision == "fail"
    assert "at release 0.79: worse by" in report.decision.summary


def test_a_share_of_the_value_at_release_is_told_as_one(tmp_path: Path, model: str) -> None:
    limits = {"auc": {"maximum_relative_drop": 0.125}}
    report = measure(tmp_path, model, mislead(people(4000, seed=1), 0.6), thresholds=limits)
    (reason,) = [one for one in report.decision.reasons if one.check == "maximum_relative_drop"]
    assert isinstance(reason.value, float) and reason.value > 0.125
    assert f"worse by {reason.value:.1%}, allowed 12.5%" in report.decision.summary


def test_a_model_that_became_better_is_told_so(tmp_path: Path, model: str) -> None:
    columns = people(4000, seed=1)
    right = columns | {"churned": np.asarray(columns["prediction"]) > 0.5}
    report = measure(tmp_path, model, right)
    assert "auc is 1" in report.decision.summary
    assert "at release 0.79: better by 0.21, allowed" in report.decision.summary


def test_a_drop_within_chance_is_not_a_failure(tmp_path: Path, model: str) -> None:
    columns = mislead(people(60, seed=2), 0.15)
    report = measure(tmp_path, model, columns, minimum_rows=50)
    drop = report.decision.reasons[0]
    assert isinstance(drop.value, float) and drop.value > 0.05
    assert report.decision.decision == "pass"
    assert "the interval includes no change" in drop.why


def test_too_few_labels_are_no_data_with_an_estimate(tmp_path: Path, model: str) -> None:
    columns = people(4000, seed=1)
    known = [bool(label) if row < 50 else None for row, label in enumerate(columns["churned"])]
    report = measure(tmp_path, model, columns | {"churned": pa.array(known)})
    assert report.decision.decision == "no_data"
    assert report.metadata["rows_labelled"] == 50
    assert "auc" not in report.metrics
    assert any(reason.check == "estimate" for reason in report.decision.reasons)


def test_without_any_row_it_is_no_data(tmp_path: Path, model: str) -> None:
    report = measure(tmp_path, model, people(0, seed=1))
    assert report.decision.decision == "no_data"
    assert report.metrics == {}


def test_the_estimate_without_labels_is_near_the_truth_while_calibrated(
    tmp_path: Path, model: str
) -> None:
    metrics = measure(tmp_path, model, people(20_000, seed=1)).metrics
    for name in ("auc", "log_loss", "brier", "accuracy"):
        assert metrics[f"estimated_{name}"] == pytest.approx(metrics[name], abs=0.015)


def test_labels_of_one_class_are_named(tmp_path: Path, model: str) -> None:
    report = measure(tmp_path, model, people(1000, seed=1) | {"churned": np.zeros(1000)})
    assert report.decision.decision == "no_data"
    assert "the labels hold a single class" in report.decision.summary
    assert "log_loss" in report.metrics
    assert "auc" not in report.metrics


def test_without_an_evaluation_at_release_it_is_no_baseline(tmp_path: Path) -> None:
    model = publish(tmp_path / "model")
    report = measure(tmp_path, model, people(1000, seed=1))
    assert report.decision.decision == "no_baseline"
    report = measure(tmp_path, model, people(1000, seed=1), thresholds={"auc": {"minimum": 0.9}})
    assert report.decision.decision == "fail"


def test_what_is_left_out_is_counted(tmp_path: Path, model: str) -> None:
    columns = people(1000, seed=1)
    columns["prediction"] = np.where(np.arange(1000) % 10 == 9, np.nan, columns["prediction"])
    joined = log(tmp_path / "joined", columns, failed=300)
    report = measure_performance(joined, model, tmp_path / "d.json", tmp_path / "p.html")
    assert report.metadata["failed_requests"] == 300
    assert report.metadata["rows_measured"] == 630
    assert report.metadata["rows_labelled"] == 700


def test_answers_of_another_version_are_not_measured(tmp_path: Path, model: str) -> None:
    joined = log(tmp_path / "joined", people(1000, seed=1), version="2")
    report = measure_performance(joined, model, tmp_path / "d.json", tmp_path / "p.html")
    assert report.decision.decision == "no_data"
    assert report.metadata["rows_labelled"] == 1000


@pytest.mark.parametrize(("noise", "decision"), [(1.0, "pass"), (1.5, "fail")])
def test_a_regression_is_held_against_its_error_at_release(
    tmp_path: Path, noise: float, decision: str
) -> None:
    error = {"value": 0.8, "low": 0.77, "high": 0.83}
    model = publish(tmp_path / "model", evaluation={"mae": error}, task="regression", label="price")
    rng = np.random.default_rng(0)
    price = rng.normal(100, 20, 2000)
    columns = {"price": price, "prediction": price + rng.normal(0, noise, 2000)}
    report = measure(tmp_path, model, columns)
    assert report.decision.decision == decision
    assert report.metrics["rmse"] == pytest.approx(noise, rel=0.1)


def test_classes_are_measured(tmp_path: Path) -> None:
    release = {"accuracy": {"value": 0.9, "low": 0.88, "high": 0.92}}
    model = publish(tmp_path / "model", evaluation=release, task="multiclass", label="kind")
    rng = np.random.default_rng(0)
    kind = rng.choice(["cat", "dog", "owl"], 2000)
    guess = np.where(rng.random(2000) < 0.7, kind, "cat")
    report = measure(tmp_path, model, {"kind": kind, "prediction": guess})
    assert report.decision.decision == "fail"
    assert report.metrics["accuracy"] == pytest.approx(0.8, abs=0.03)
    assert report.metrics["macro_f1"] == pytest.approx(f1_score(kind, guess, average="macro"))


def test_the_page_shows_metrics_and_reliability_offline(tmp_path: Path, model: str) -> None:
    measure(tmp_path, model, people(4000, seed=1))
    page = (tmp_path / "p.html").read_text()
    assert "ece" in page
    assert "<svg" in page
    assert "http" not in page


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"label": "left"}, "Column 'left' is missing"),
        ({"thresholds": {"mae": {"maximum": 1.0}}}, "'mae', which a binary model does not have"),
        ({"thresholds": {"auc": {"max_drop": 1.0}}}, "'max_drop'; there are maximum_drop"),
        ({"thresholds": {"auc": 0.7}}, "of auc is 0.7; write it like"),
        ({"thresholds": {"auc": {}}}, "of auc is {}; write it like"),
        ({"label": "visits"}, "'visits' of a binary model holds"),
    ],
)
def test_a_wrong_setting_gets_one_sentence(
    tmp_path: Path, model: str, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        measure(tmp_path, model, people(1000, seed=1), **settings)


rows = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 8), st.integers(1, 3)), min_size=2, max_size=40
)


@given(rows)
def test_weighted_auc_equals_scikit_learn_on_repeated_rows(
    drawn: list[tuple[int, int, int]],
) -> None:
    labels, scores, counts = (np.array(column) for column in zip(*drawn, strict=True))
    auc = binary_metrics(labels.astype(float), scores / 8)["auc"](counts.astype(float))
    if labels.min() == labels.max():
        assert np.isnan(auc)
    else:
        repeated = np.repeat(labels, counts), np.repeat(scores, counts)
        assert auc == pytest.approx(roc_auc_score(*repeated))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 3)), min_size=1))
def test_weighted_macro_f1_equals_scikit_learn_on_repeated_rows(
    drawn: list[tuple[int, int, int]],
) -> None:
    labels, guesses, counts = (np.array(column) for column in zip(*drawn, strict=True))
    measured = multiclass_metrics(labels, guesses, 4)["macro_f1"](counts.astype(float))
    repeated = np.repeat(labels, counts), np.repeat(guesses, counts)
    assert measured == pytest.approx(f1_score(*repeated, average="macro"))
