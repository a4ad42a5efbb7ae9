# SPDX-License-Identifier: Apache-2.0
"""Metrics of predictions, as functions of row weights so that a bootstrap is cheap.

A metric is prepared once from labels and predictions, then evaluated under many weights: ones for
the estimate, draw counts for a bootstrap resample. The metrics of binary models also accept labels
between 0 and 1, the chance that the label is positive: with the model's own probabilities as labels
they give the performance that the model expects of itself (see `performance.estimate`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kfloop.components.monitoring.window import Codes, Numbers

Metric = Callable[[Numbers], float]
CALIBRATION_BINS = 10
# Keeps the logarithm finite where a model is certain and wrong.
CERTAINTY = 1e-7


@dataclass(frozen=True)
class Estimate:
    """A metric with its confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


def binary_metrics(labels: Numbers, scores: Numbers, threshold: float = 0.5) -> dict[str, Metric]:
    """Returns the metrics of probabilities of the positive class.

    Args:
        labels: 1 or 0, or a share between them.
        scores: Probabilities.
        threshold: A score of at least this counts as positive in `accuracy`.
    """
    clipped = np.clip(scores, CERTAINTY, 1 - CERTAINTY)
    losses = -(labels * np.log(clipped) + (1 - labels) * np.log1p(-clipped))
    squares = labels * np.square(1 - scores) + (1 - labels) * np.square(scores)
    positive = np.where(scores >= threshold, 1.0, 0.0)
    correct = labels * positive + (1 - labels) * (1 - positive)
    return {
        "auc": _auc(labels, scores),
        "log_loss": _mean(losses),
        "brier": _mean(squares),
        "accuracy": _mean(correct),
        "ece": _calibration_error(labels, scores),
    }


def multiclass_metrics(labels: Codes, predictions: Codes, classes: int) -> dict[str, Metric]:
    """Returns the metrics of predicted classes, both as codes below `classes`."""

    def macro_f1(weights: Numbers) -> float:
        cells = np.bincount(labels * classes + predictions, weights, classes * classes)
        confusion = cells.reshape(classes, classes)
        support = confusion.sum(axis=0) + confusion.sum(axis=1)
        present = support > 0
        return float(np.mean(2 * confusion.diagonal()[present] / support[present]))

    return {"accuracy": _mean(np.where(labels == predictions, 1.0, 0.0)), "macro_f1": macro_f1}


def regression_metrics(labels: Numbers, predictions: Numbers) -> dict[str, Metric]:
    """Returns the metrics of predicted values, in the label's unit."""
    squares = _mean((labels - predictions) ** 2)
    return {
        "mae": _mean(np.abs(labels - predictions)),
        "rmse": lambda weights: float(np.sqrt(squares(weights))),
    }


def bootstrap(
    metrics: dict[str, Metric], rows: int, resamples: int, confidence: float, seed: int
) -> dict[str, Estimate]:
    """Returns every metric with its percentile interval (Efron and Tibshirani 1993).

    A metric that is undefined on the rows (AUC of a single class) is left out. Resamples on which
    it is undefined are left out of its interval.
    """
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in metrics}
    for _ in range(resamples):
        weights = np.bincount(rng.integers(0, rows, rows), minlength=rows).astype(np.float64)
        for name, metric in metrics.items():
            drawn[name].append(metric(weights))
    tails = (1 - confidence) / 2
    estimates = {}
    for name, metric in metrics.items():
        value = metric(np.ones(rows))
        if np.isfinite(value):
            low, high = np.nanquantile(drawn[name], [tails, 1 - tails])
            estimates[name] = Estimate(value, float(low), float(high))
    return estimates


def calibration_bins(scores: Numbers) -> Codes:
    """Returns the bin of each score: `CALIBRATION_BINS` bins of equal width."""
    return np.minimum(scores * CALIBRATION_BINS, CALIBRATION_BINS - 1).astype(np.int64)


def _mean(values: Numbers) -> Metric:
    return lambda weights: float(values @ weights / weights.sum())


def _auc(labels: Numbers, scores: Numbers) -> Metric:
    """The chance that a positive row scores above a negative one; a tie counts half."""
    ranks = np.unique(scores, return_inverse=True)[1]

    def auc(weights: Numbers) -> float:
        positive = np.bincount(ranks, weights * labels)
        negative = np.bincount(ranks, weights * (1 - labels))
        pairs = positive.sum() * negative.sum()
        if pairs == 0:
            return float("nan")
        below = np.cumsum(negative) - negative
        return float(positive @ (below + negative / 2) / pairs)

    return auc


def _calibration_error(labels: Numbers, scores: Numbers) -> Metric:
    """Expected calibration error (Guo et al. 2017)."""
    bins = calibration_bins(scores)

    def calibration_error(weights: Numbers) -> float:
        gaps = np.bincount(bins, weights * (labels - scores))
        return float(np.abs(gaps).sum() / weights.sum())

    return calibration_error
