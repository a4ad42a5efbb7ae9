# SPDX-License-Identifier: Apache-2.0
"""The metrics of the three tasks, on all rows and for many weightings of them at once.

A measure is prepared once (sorting, grouping) and then called with weights, one column per
weighting: Poisson draws for the bootstrap. A metric that a weighting leaves undefined is NaN there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kfloop.components.contracts.metrics import HIGHER_IS_BETTER
from kfloop.components.evaluation.cells import (
    CALIBRATION_BINS,
    CALIBRATION_EDGES,
    CELLS,
    SMALLEST_PROBABILITY,
    Cells,
    GroupSums,
    average_precision,
    ratio,
    roc_auc,
    weighted_sums,
)

# One array per metric, with one value per weighting.
Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class Measure:
    """The metrics of some rows.

    Attributes:
        values: Of the rows as they are; NaN where undefined.
        resample: The metrics for weights, an array of counts: rows × weightings.
    """

    values: dict[str, float]
    resample: Callable[[np.ndarray], Values]


def binary_measure(labels: np.ndarray, scores: np.ndarray, threshold: float) -> Measure:
    """Prepares the binary metrics.

    Args:
        labels: 0 or 1 per row.
        scores: Probability of 1 per row.
        threshold: Rows with at least this score are called positive.

    Returns:
        A measure of `auc` (ROC; ties count half, as in Mann-Whitney), `pr_auc` (average precision:
        sum of precision times the step in recall), `log_loss`, `brier`, `accuracy`, `precision`,
        `recall`, `f1` and `ece` (expected calibration error over `CALIBRATION_BINS` bins of equal
        width, Guo et al. 2017). The values are exact; resamples are of at least `CELLS` cells of
        neighbouring scores, see `cells`.
    """
    exact = Cells(labels, scores)
    values = _binary_values(exact, exact.positives[:, None], exact.negatives[:, None], threshold)
    coarse = Cells(labels, scores, CELLS, (*CALIBRATION_EDGES, threshold))
    positives, negatives = coarse.sums()
    near = _binary_values(coarse, coarse.positives[:, None], coarse.negatives[:, None], threshold)

    def resample(weights: np.ndarray) -> Values:
        found = _binary_values(coarse, positives(weights), negatives(weights), threshold)
        # What the cells leave out of the value, they leave out of every resample alike.
        return {name: found[name] + (values[name] - near[name]) for name in found}

    return Measure(_numbers(values), resample)


def _binary_values(
    cells: Cells, positive: np.ndarray, negative: np.ndarray, threshold: float
) -> Values:
    """Returns the metrics from the weight of each cell's positives and negatives."""
    first_called = int(np.searchsorted(cells.lowest, threshold))
    positives, negatives = positive.sum(axis=0), negative.sum(axis=0)
    total = positives + negatives
    found = positive[first_called:].sum(axis=0)
    false_alarms = negative[first_called:].sum(axis=0)
    costs = cells.positive_costs.T @ positive + cells.negative_costs.T @ negative
    # Per cell: positives less what the scores promise.
    gap = positive * (1 - cells.positive_costs[:, 2:]) - negative * cells.negative_costs[:, 2:]
    bins = np.searchsorted(CALIBRATION_EDGES, cells.lowest, side="right") - 1
    starts = np.flatnonzero(np.diff(bins, prepend=-1))
    gaps = np.add.reduceat(gap, starts, axis=0) if len(starts) else gap
    return {
        "auc": roc_auc(positive, negative),
        "pr_auc": average_precision(positive, negative),
        "log_loss": ratio(costs[0], total),
        "brier": ratio(costs[1], total),
        "accuracy": ratio(found + negatives - false_alarms, total),
        "precision": ratio(found, found + false_alarms),
        "recall": ratio(found, positives),
        "f1": ratio(2 * found, found + false_alarms + positives),
        "ece": ratio(np.abs(gaps).sum(axis=0), total),
    }


def multiclass_measure(positions: np.ndarray, probabilities: np.ndarray) -> Measure:
    """Prepares the multiclass metrics.

    Args:
        positions: Position of the true class per row.
        probabilities: One line per row, one column per class.

    Returns:
        A measure of `accuracy`, `log_loss`, `macro_f1` (mean over the classes that occur among
        the labels or predictions), `macro_auc` and `macro_pr_auc` (mean of each class's ROC AUC and
        average precision against the rest, over the classes for which it is defined) and `ece`
        (of the probability of the predicted class, Guo et al. 2017).
    """
    rows, classes = probabilities.shape
    predicted = probabilities.argmax(axis=1)
    sure = probabilities[np.arange(rows), predicted].astype(np.float64)
    own = probabilities[np.arange(rows), positions].astype(np.float64)
    losses = -np.log(np.clip(own, SMALLEST_PROBABILITY, 1.0))
    bins = np.searchsorted(CALIBRATION_EDGES, sure, side="right") - 1
    gaps = np.zeros((rows, CALIBRATION_BINS))
    gaps[np.arange(rows), bins] = (predicted == positions) - sure
    columns = np.column_stack([losses, gaps])
    true, called = GroupSums(positions, classes), GroupSums(predicted, classes)
    both = GroupSums(np.where(predicted == positions, positions, -1), classes)
    of_class = [(positions == k, probabilities[:, k]) for k in range(classes)]
    exact = [Cells(*rest) for rest in of_class]
    sums = [Cells(*rest, CELLS).sums() for rest in of_class]

    def values(weights: np.ndarray, cells: list[tuple[np.ndarray, np.ndarray]]) -> Values:
        total = weights.sum(axis=0, dtype=np.float64)
        hits = both(weights)
        costs = weighted_sums(columns, weights)
        return {
            "accuracy": ratio(hits.sum(axis=0), total),
            "log_loss": ratio(costs[0], total),
            "macro_f1": _mean(ratio(2 * hits, true(weights) + called(weights))),
            "macro_auc": _mean(np.stack([roc_auc(*pair) for pair in cells])),
            "macro_pr_auc": _mean(np.stack([average_precision(*pair) for pair in cells])),
            "ece": ratio(np.abs(costs[1:]).sum(axis=0), total),
        }

    once = [(each.positives[:, None], each.negatives[:, None]) for each in exact]
    return Measure(
        _numbers(values(np.ones((rows, 1), np.uint8), once)),
        lambda weights: values(weights, [(pos(weights), neg(weights)) for pos, neg in sums]),
    )


def regression_measure(labels: np.ndarray, values: np.ndarray) -> Measure:
    """Prepares the regression metrics.

    Returns:
        A measure of `mae`, `rmse`, `mean_error` (prediction minus label) and `r2` (undefined for a
        constant label).
    """
    error = values.astype(np.float64) - labels
    # Around the mean, so that the variance does not drown in the square of a large label.
    centred = labels - labels.mean() if len(labels) else labels
    columns = np.stack(
        [np.ones_like(error), np.abs(error), error**2, error, centred, centred**2], axis=1
    )

    def resample(weights: np.ndarray) -> Values:
        sums = weighted_sums(columns, weights)
        total, absolute, squared, signed, label, label_squared = sums
        spread = label_squared - ratio(label**2, total)
        # Rounding leaves a constant label with a tiny spread instead of none.
        spread = np.where(spread > 1e-12 * label_squared, spread, 0.0)
        return {
            "mae": ratio(absolute, total),
            "rmse": np.sqrt(ratio(squared, total)),
            "r2": 1 - ratio(squared, spread),
            "mean_error": ratio(signed, total),
        }

    return Measure(_numbers(resample(np.ones((len(labels), 1)))), resample)


def measure_of(task: str, labels: np.ndarray, outputs: np.ndarray, threshold: float) -> Measure:
    """Prepares the metrics of a task; `threshold` is for binary models."""
    if task == "binary":
        return binary_measure(labels, outputs, threshold)
    return (multiclass_measure if task == "multiclass" else regression_measure)(labels, outputs)


def improvement_measure(candidate: Measure, champion: Measure) -> Measure:
    """Prepares how much better one model is than another on the same rows.

    Every weighting weighs a row alike for both models, so what both find hard cancels out: the
    paired bootstrap (Efron & Tibshirani 1993, ch. 8).

    Returns:
        A measure with the metrics of both, each as the improvement: the difference that is
        positive when the candidate is better. Of `mean_error` it is the fall of its distance to 0.
    """

    def resample(weights: np.ndarray) -> Values:
        new, old = candidate.resample(weights), champion.resample(weights)
        return {name: improvement(name, new[name], old[name]) for name in new}

    return Measure(
        {
            name: float(improvement(name, value, champion.values[name]))
            for name, value in candidate.values.items()
        },
        resample,
    )


def improvement(metric: str, candidate: Any, champion: Any) -> Any:
    """Returns by how much the candidate is better; negative when it is worse."""
    if metric in HIGHER_IS_BETTER:
        return candidate - champion
    return abs(champion) - abs(candidate)


def _numbers(values: Values) -> dict[str, float]:
    return {name: float(value[0]) for name, value in values.items()}


def _mean(per_class: np.ndarray) -> np.ndarray:
    """Averages over the classes (lines) that have a value; NaN when none has."""
    defined = ~np.isnan(per_class)
    return ratio(np.where(defined, per_class, 0.0).sum(axis=0), defined.sum(axis=0))
