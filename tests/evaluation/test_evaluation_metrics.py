# SPDX-License-Identifier: Apache-2.0
"""The metrics against their definitions, and the intervals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kfloop.components.evaluation.bootstrap import estimate, estimate_parts
from kfloop.components.evaluation.cells import CELLS
from kfloop.components.evaluation.curves import (
    MAXIMUM_POINTS,
    binary_curves,
    class_curves,
    class_table,
)
from kfloop.components.evaluation.metrics import (
    binary_measure,
    multiclass_measure,
    regression_measure,
)
from kfloop.components.evaluation.thresholds import best_threshold

# Few distinct scores, so that ties are common.
SCORES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.5000001, 0.7, 0.9, 1.0])
ROWS = st.lists(st.tuples(st.booleans(), SCORES), min_size=1, max_size=40)


def weighed(measure, counts):
    """The metrics under one weighting."""
    found = measure.resample(np.asarray(counts, np.uint8)[:, None])
    return {name: value[0] for name, value in found.items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9, nan_ok=True), name


def brute_auc(labels, scores):
    positives, negatives = scores[labels == 1], scores[labels == 0]
    if not len(positives) or not len(negatives):
        return np.nan
    difference = positives[:, None] - negatives[None, :]
    return ((difference > 0) + 0.5 * (difference == 0)).mean()


def brute_average_precision(labels, scores):
    total, found_before, area = labels.sum(), 0.0, 0.0
    if not total:
        return np.nan
    for threshold in sorted(set(scores.tolist()), reverse=True):
        called = scores >= threshold
        found = labels[called].sum()
        area += (found - found_before) / total * (found / called.sum())
        found_before = found
    return area


@settings(max_examples=300, deadline=None)
@given(ROWS, st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_binary_metrics_equal_their_definitions(rows, threshold):
    labels = np.array([float(label) for label, _ in rows])
    scores = np.array([score for _, score in rows])
    found = binary_measure(labels, scores, threshold).values
    called = scores >= threshold
    hits = (called & (labels == 1)).sum()
    clipped = np.clip(scores, 1e-7, 1 - 1e-7)
    bins = np.minimum(np.floor(scores * 10 + 1e-12), 9)
    expected = {
        "auc": brute_auc(labels, scores),
        "pr_auc": brute_average_precision(labels, scores),
        "log_loss": -np.mean(np.where(labels == 1, np.log(clipped), np.log1p(-clipped))),
        "brier": np.mean((scores - labels) ** 2),
        "accuracy": np.mean(called == (labels == 1)),
        "precision": hits / called.sum() if called.any() else np.nan,
        "recall": hits / labels.sum() if labels.any() else np.nan,
        "f1": 2 * hits / (called.sum() + labels.sum()) if called.any() or labels.any() else np.nan,
        "ece": sum(abs((labels - scores)[bins == k].sum()) for k in range(10)) / len(rows),
    }
    assert_equal(found, expected)


@settings(max_examples=100, deadline=None)
@given(ROWS, st.integers(0, 1000))
def test_weighing_rows_is_repeating_them(rows, seed):
    labels = np.array([float(label) for label, _ in rows])
    scores = np.array([score for _, score in rows])
    counts = np.random.default_rng(seed).integers(0, 4, len(rows))
    counts[0] = 1
    repeated = binary_measure(np.repeat(labels, counts), np.repeat(scores, counts), 0.5)
    assert_equal(weighed(binary_measure(labels, scores, 0.5), counts), repeated.values)


def test_weighing_rows_is_repeating_them_for_classes_and_numbers_too():
    random = np.random.default_rng(0)
    counts = random.integers(0, 4, 300)
    positions, probabilities = random.integers(0, 3, 300), random.dirichlet(np.ones(3), 300)
    both = [np.repeat(each, counts, axis=0) for each in (positions, probabilities)]
    found = weighed(multiclass_measure(positions, probabilities), counts)
    assert_equal(found, multiclass_measure(*both).values)
    labels, values = random.normal(size=300), random.normal(size=300)
    both = [np.repeat(each, counts) for each in (labels, values)]
    found = weighed(regression_measure(labels, values), counts)
    expected = regression_measure(*both).values
    # A constant label's spread is around another mean.
    assert found.pop("r2") == pytest.approx(expected.pop("r2"), abs=1e-6)
    assert_equal(found, expected)


def test_resamples_in_cells_are_those_of_single_rows():
    """More distinct scores than cells: only the order within a cell is lost."""
    random = np.random.default_rng(0)
    rows = 20 * CELLS
    labels = (random.random(rows) < 0.3).astype(float)
    scores = 1 / (1 + np.exp(1 - labels - random.normal(size=rows)))
    counts = random.poisson(1.0, rows)
    exact = binary_measure(np.repeat(labels, counts), np.repeat(scores, counts), 0.37).values
    found = weighed(binary_measure(labels, scores, 0.37), counts)
    # Counts at the threshold are exact, since a cell begins there.
    for name in ("accuracy", "precision", "recall", "f1"):
        assert found[name] == pytest.approx(exact[name], abs=1e-12), name
    for name in ("auc", "log_loss", "brier", "ece"):
        assert found[name] == pytest.approx(exact[name], abs=1e-4), name
    assert found["pr_auc"] == pytest.approx(exact["pr_auc"], abs=3e-4)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 40))
def test_multiclass_metrics_equal_their_definitions(seed, classes, rows):
    random = np.random.default_rng(seed)
    positions = random.integers(0, classes, rows)
    probabilities = np.round(random.dirichlet(np.ones(classes), rows), 1)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    found = multiclass_measure(positions, probabilities).values
    predicted = probabilities.argmax(axis=1)
    own = np.clip(probabilities[np.arange(rows), positions], 1e-7, 1)
    f1 = []
    for k in set(positions) | set(predicted):
        true, called = positions == k, predicted == k
        f1.append(2 * (true & called).sum() / (true.sum() + called.sum()))
    aucs = [brute_auc((positions == k).astype(float), probabilities[:, k]) for k in range(classes)]
    known = [auc for auc in aucs if not np.isnan(auc)]
    areas = [brute_average_precision(positions == k, probabilities[:, k]) for k in range(classes)]
    sure = probabilities.max(axis=1)
    bins = np.searchsorted(np.arange(10) / 10, sure, side="right") - 1
    gaps = [abs(((predicted == positions) - sure)[bins == k].sum()) for k in range(10)]
    assert found["accuracy"] == pytest.approx((predicted == positions).mean())
    assert found["log_loss"] == pytest.approx(-np.log(own).mean())
    assert found["macro_f1"] == pytest.approx(np.mean(f1))
    assert found["macro_auc"] == pytest.approx(np.mean(known) if known else np.nan, nan_ok=True)
    assert found["macro_pr_auc"] == pytest.approx(np.nanmean(areas))
    assert found["ece"] == pytest.approx(sum(gaps) / rows)
    table = class_table(positions, probabilities, [str(k) for k in range(classes)])
    for entry, auc, area in zip(table, aucs, areas, strict=True):
        for name, value in (("auc", auc), ("pr_auc", area)):
            assert (np.nan if entry[name] is None else entry[name]) == pytest.approx(
                value, nan_ok=True
            )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=2, max_size=40))
def test_regression_metrics_equal_their_definitions(rows):
    labels, predicted = np.array(rows).T
    found = regression_measure(labels, predicted).values
    error = predicted - labels
    assert found["mae"] == pytest.approx(np.abs(error).mean())
    assert found["rmse"] == pytest.approx(np.sqrt((error**2).mean()))
    assert found["mean_error"] == pytest.approx(error.mean(), abs=1e-6)
    if np.ptp(labels) > 1e-3:
        expected = 1 - (error**2).sum() / ((labels - labels.mean()) ** 2).sum()
        assert found["r2"] == pytest.approx(expected, rel=1e-6, abs=1e-6)
    if np.ptp(labels) == 0:
        assert np.isnan(found["r2"])


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """AUC of two unit normals one apart is Phi(1/sqrt 2) = 0.7602."""
    covered = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        labels = (random.random(400) < 0.4).astype(float)
        scores = 1 / (1 + np.exp(-(random.normal(size=400) + labels)))
        found = estimate(binary_measure(labels, scores, 0.5), 400, 200, seed)["auc"]
        covered += found.low <= 0.76025 <= found.high
    # 95 of 100 expected; fewer than 88 has a chance below 0.3 %.
    assert covered >= 88


def test_the_same_seed_gives_the_same_interval():
    random = np.random.default_rng(0)
    measure = regression_measure(random.normal(size=500), random.normal(size=500))
    assert estimate(measure, 500, 50, 3) == estimate(measure, 500, 50, 3)
    assert estimate(measure, 500, 50, 3) != estimate(measure, 500, 50, 4)


def test_an_undefined_metric_has_no_value_and_no_interval():
    found = estimate(binary_measure(np.ones(10), np.linspace(0, 1, 10), 0.5), 10, 20, 0)
    assert found["auc"].value is found["auc"].low is found["auc"].high is None
    assert found["accuracy"].value == 0.5


def test_without_resamples_there_is_a_value_and_no_interval():
    found = estimate(regression_measure(np.arange(5.0), np.zeros(5)), 5, 0, 0)["mae"]
    assert (found.value, found.low, found.high) == (2.0, None, None)


@settings(max_examples=200, deadline=None)
@given(ROWS, st.sampled_from(["f1", "accuracy", "youden", "cost"]), st.floats(0.1, 10))
def test_no_threshold_is_better_by_the_rule_than_the_chosen_one(rows, rule, miss):
    labels = np.array([float(label) for label, _ in rows])
    scores = np.array([score for _, score in rows])

    def gain(threshold):
        called = scores >= threshold
        wrong, missed = (called & (labels == 0)).sum(), (~called & (labels == 1)).sum()
        return {
            "f1": 2 * (called & (labels == 1)).sum() / max(called.sum() + labels.sum(), 1),
            "accuracy": -wrong - missed,
            "youden": -wrong / max((labels == 0).sum(), 1) - missed / max(labels.sum(), 1),
            "cost": -2 * wrong - miss * missed,
        }[rule]

    best = gain(best_threshold(labels, scores, rule, 2.0, miss))
    assert best == pytest.approx(max(gain(threshold) for threshold in [*scores, 1.1]))


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_the_roc_curve_encloses_the_auc(rows):
    labels = np.array([float(label) for label, _ in rows])
    scores = np.array([score for _, score in rows])
    curves = binary_curves(labels, scores)
    if labels.min() == labels.max():
        assert curves.threshold == []
        return
    area = np.trapezoid(curves.true_positive_rate, curves.false_positive_rate)
    assert area == pytest.approx(brute_auc(labels, scores))
    assert (curves.false_positive_rate[-1], curves.true_positive_rate[-1]) == (1.0, 1.0)


def test_long_curves_are_thinned():
    random = np.random.default_rng(0)
    curves = binary_curves((random.random(5000) < 0.5).astype(float), random.random(5000))
    assert len(curves.threshold) == MAXIMUM_POINTS
    assert (curves.false_positive_rate[-1], curves.true_positive_rate[-1]) == (1.0, 1.0)


def test_parts_of_the_rows_have_the_interval_of_their_own_rows():
    """The draws are shared; a part's interval is as wide as that of its rows alone."""
    random = np.random.default_rng(0)
    labels, values = random.normal(size=4000), random.normal(size=4000)
    half = np.arange(0, 4000, 2)
    measures = [regression_measure(labels, values), regression_measure(labels[half], values[half])]
    whole, part = estimate_parts([(measures[0], None), (measures[1], half)], 4000, 300, 1)
    assert whole == estimate(measures[0], 4000, 300, 1)
    alone = estimate(measures[1], 2000, 300, 2)
    for name, found in part.items():
        assert found.value == alone[name].value
        width, expected = found.high - found.low, alone[name].high - alone[name].low
        assert width == pytest.approx(expected, rel=0.3), name


def test_the_mean_curves_enclose_the_macro_areas():
    random = np.random.default_rng(0)
    positions = random.integers(0, 3, 3000)
    probabilities = random.dirichlet(np.ones(3), 3000) + 0.3 * np.eye(3)[positions]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    curves = class_curves(positions, probabilities, ["a", "b", "c"])
    values = multiclass_measure(positions, probabilities).values
    rates, means = np.array(curves.macro_roc).T
    assert np.trapezoid(means, rates) == pytest.approx(values["macro_auc"], abs=0.005)
    recall, precision = np.array(curves.macro_precision_recall).T
    assert np.trapezoid(precision, recall) == pytest.approx(values["macro_pr_auc"], abs=0.01)
    area = np.trapezoid(curves.pooled.true_positive_rate, curves.pooled.false_positive_rate)
    assert area == pytest.approx(
        brute_auc(np.eye(3)[positions].ravel(), probabilities.ravel()), abs=0.005
    )
    assert set(curves.classes) == {"a", "b", "c"}


def test_the_calibration_curve_and_its_error_use_the_same_bins():
    """3 * 0.1 is a little more than 0.3, and 0.7 * 10 a little less than 7."""
    scores = np.sort(np.concatenate([np.arange(11) / 10, 0.1 * np.arange(11)]).clip(0, 1))
    scores = np.concatenate([scores, np.nextafter(scores, 0), np.nextafter(scores, 1)])
    labels = np.random.default_rng(0).integers(0, 2, len(scores)).astype(float)
    edges = np.arange(10) / 10
    bins = np.searchsorted(edges, scores, side="right") - 1
    curve = binary_curves(labels, scores).calibration
    for index, (mean, share) in zip(np.unique(bins), curve, strict=True):
        assert mean == pytest.approx(scores[bins == index].mean())
        assert share == pytest.approx(labels[bins == index].mean())
    gap = sum(
        abs(share - mean) * (bins == index).sum()
        for index, (mean, share) in zip(np.unique(bins), curve, strict=True)
    )
    found = binary_measure(labels, scores, 0.5).values
    assert found["ece"] == pytest.approx(gap / len(scores), abs=1e-12)
