"""The metrics of the three tasks, for many weightings of the same rows at once.

A measure is prepared once (sorting, grouping) and then called with a matrix of row weights, one
weighting per line: all ones for the value itself, Poisson draws for its bootstrap. A metric that
a weighting leaves undefined is NaN there.
"""

from collections.abc import Callable

import numpy as np

# One array per metric, with one value per weighting.
Values = dict[str, np.ndarray]
Measure = Callable[[np.ndarray], Values]

HIGHER_IS_BETTER = {
    "auc", "pr_auc", "accuracy", "precision", "recall", "f1", "macro_f1", "macro_auc", "r2",
}  # fmt: skip
LOWER_IS_BETTER = {"log_loss", "brier", "ece", "mae", "rmse"}
# mean_error is neither: it is best at 0.
# The metric by which two models are compared unless another one is named.
MAIN_METRIC = {"binary": "auc", "multiclass": "macro_auc", "regression": "rmse"}
CALIBRATION_BINS = 10
# Lower edges; a score on an edge belongs to the bin above it, here and in the curve.
CALIBRATION_EDGES = np.arange(CALIBRATION_BINS) / CALIBRATION_BINS
# Keeps the log loss of a confident mistake finite; float32 probabilities end near here.
_SMALLEST_PROBABILITY = 1e-7


def binary_measure(labels: np.ndarray, scores: np.ndarray, threshold: float) -> Measure:
    """Prepares the binary metrics.

    Args:
        labels: 0 or 1 per row.
        scores: Probability of 1 per row. The measure's weights belong to the rows in the order of
            rising scores, which saves sorting every resample: draws do not depend on rows.
        threshold: Rows with at least this score are called positive.

    Returns:
        A measure of `auc` (ROC; ties count half, as in Mann-Whitney), `pr_auc` (average precision:
        sum of precision times the step in recall), `log_loss`, `brier`, `accuracy`, `precision`,
        `recall`, `f1` and `ece` (expected calibration error over `CALIBRATION_BINS` bins of equal
        width, Guo et al. 2017).
    """
    order = np.argsort(scores, kind="stable")
    labels, scores = labels[order].astype(np.float64), scores[order].astype(np.float64)
    # Rows of one score cannot be told apart, so every metric is a function of the positives and
    # negatives per distinct score.
    starts = np.flatnonzero(np.diff(scores, prepend=-np.inf)) if len(scores) else np.zeros(0, int)
    score = scores[starts]
    clipped = np.clip(score, _SMALLEST_PROBABILITY, 1 - _SMALLEST_PROBABILITY)
    # Log loss and Brier score of one positive and of one negative at each score.
    positive_costs = np.stack([-np.log(clipped), (1 - score) ** 2], axis=1)
    negative_costs = np.stack([-np.log1p(-clipped), score**2], axis=1)
    bin_starts = np.searchsorted(score, CALIBRATION_EDGES)
    first_positive = int(np.searchsorted(score, threshold))

    def measure(weights: np.ndarray) -> Values:
        positive_rows = weights * labels
        positive = _sums(positive_rows, starts)
        negative = _sums(weights - positive_rows, starts)
        positives_below, negatives_below = positive.cumsum(axis=1), negative.cumsum(axis=1)
        positives, negatives = positives_below[:, -1], negatives_below[:, -1]
        total = positives + negatives
        found = positives - _before(positives_below, first_positive)
        false_alarms = negatives - _before(negatives_below, first_positive)
        precision = _ratio(found, found + false_alarms)
        recall = _ratio(found, positives)
        costs = positive @ positive_costs + negative @ negative_costs
        return {
            "auc": _ratio(
                (positive * (negatives_below - 0.5 * negative)).sum(axis=1), positives * negatives
            ),
            "pr_auc": _average_precision(positive, negative, positives_below, negatives_below),
            "log_loss": _ratio(costs[:, 0], total),
            "brier": _ratio(costs[:, 1], total),
            "accuracy": _ratio(found + negatives - false_alarms, total),
            "precision": precision,
            "recall": recall,
            "f1": _ratio(2 * found, found + false_alarms + positives),
            "ece": _ratio(_calibration_gap(positive, negative, score, bin_starts), total),
        }

    return measure


def multiclass_measure(positions: np.ndarray, probabilities: np.ndarray) -> Measure:
    """Prepares the multiclass metrics.

    Args:
        positions: Position of the true class per row.
        probabilities: One line per row, one column per class.

    Returns:
        A measure of `accuracy`, `log_loss`, `macro_f1` (mean over the classes that occur among
        the labels or predictions) and `macro_auc` (mean of the one-versus-rest ROC AUC over the
        classes that occur; undefined when fewer than two do).
    """
    classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    correct = (predicted == positions).astype(np.float64)
    own = probabilities[np.arange(len(positions)), positions].astype(np.float64)
    losses = -np.log(np.clip(own, _SMALLEST_PROBABILITY, 1.0))
    one_hot = np.eye(classes)
    is_true, is_predicted = one_hot[positions], one_hot[predicted]
    versus_rest = [auc_measure(is_true[:, k], probabilities[:, k]) for k in range(classes)]

    def measure(weights: np.ndarray) -> Values:
        total = weights.sum(axis=1)
        hits = weights @ (is_true * is_predicted)
        named = weights @ is_true + weights @ is_predicted
        aucs = np.stack([auc(weights) for auc in versus_rest], axis=1)
        return {
            "accuracy": _ratio(weights @ correct, total),
            "log_loss": _ratio(weights @ losses, total),
            "macro_f1": _mean(_ratio(2 * hits, named)),
            "macro_auc": _mean(aucs),
        }

    return measure


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

    def measure(weights: np.ndarray) -> Values:
        total, absolute, squared, signed, label, label_squared = (weights @ columns).T
        spread = label_squared - _ratio(label**2, total)
        # Rounding leaves a constant label with a tiny spread instead of none.
        spread = np.where(spread > 1e-12 * label_squared, spread, 0.0)
        return {
            "mae": _ratio(absolute, total),
            "rmse": np.sqrt(_ratio(squared, total)),
            "r2": 1 - _ratio(squared, spread),
            "mean_error": _ratio(signed, total),
        }

    return measure


def measure_of(task: str, labels: np.ndarray, outputs: np.ndarray, threshold: float) -> Measure:
    """Prepares the metrics of a task; `threshold` is for binary models."""
    if task == "binary":
        return binary_measure(labels, outputs, threshold)
    return (multiclass_measure if task == "multiclass" else regression_measure)(labels, outputs)


def improvement_measure(
    task: str,
    labels: np.ndarray,
    candidate: np.ndarray,
    champion: np.ndarray,
    threshold: float,
) -> Measure:
    """Prepares how much better one model is than another on the same rows.

    Every weighting weighs a row alike for both models, so what both find hard cancels out: the
    paired bootstrap (Efron & Tibshirani 1993, ch. 8).

    Returns:
        A measure with the metrics of the task, each as the improvement: the difference that is
        positive when the candidate is better. Of `mean_error` it is the fall of its distance to 0.
    """
    measures = [
        _by_row(measure_of(task, labels, outputs, threshold), task, outputs)
        for outputs in (candidate, champion)
    ]

    def measure(weights: np.ndarray) -> Values:
        new, old = (each(weights) for each in measures)
        return {name: improvement(name, new[name], old[name]) for name in new}

    return measure


def improvement(metric: str, candidate: np.ndarray, champion: np.ndarray) -> np.ndarray:
    """Returns by how much the candidate is better; negative when it is worse."""
    if metric in HIGHER_IS_BETTER:
        return candidate - champion
    return np.abs(champion) - np.abs(candidate)


def _by_row(measure: Measure, task: str, outputs: np.ndarray) -> Measure:
    """Makes a measure take its weights in the order of the rows."""
    if task != "binary":
        return measure
    order = np.argsort(outputs, kind="stable")
    return lambda weights: measure(weights[:, order])


def auc_measure(labels: np.ndarray, scores: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Prepares the ROC AUC alone: one value per weighting."""
    order = np.argsort(scores, kind="stable")
    labels, scores = labels[order], scores[order]
    starts = np.flatnonzero(np.diff(scores, prepend=-np.inf)) if len(scores) else np.zeros(0, int)

    def measure(weights: np.ndarray) -> np.ndarray:
        weights = weights[:, order]
        positive_rows = weights * labels
        positive = _sums(positive_rows, starts)
        negative = _sums(weights - positive_rows, starts)
        wins = (positive * (negative.cumsum(axis=1) - 0.5 * negative)).sum(axis=1)
        return _ratio(wins, positive.sum(axis=1) * negative.sum(axis=1))

    return measure


def best_f1_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """Returns the score that maximises F1 when it and all above it are called positive."""
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    found = labels[order].cumsum()
    called = np.arange(1, len(scores) + 1)
    f1 = 2 * found / (called + labels.sum())
    # A threshold cannot part equal scores: only the last row of each counts.
    f1[:-1][scores[:-1] == scores[1:]] = -1.0
    return float(scores[f1.argmax()])


def cheapest_threshold(
    labels: np.ndarray, scores: np.ndarray, false_positive_cost: float, false_negative_cost: float
) -> float:
    """Returns the score from which calling rows positive costs least in total.

    It lies just above every score when calling none costs least; among equals the highest wins.
    """
    order = np.argsort(-scores, kind="stable")
    scores = scores[order].astype(np.float64)
    found = labels[order].cumsum()
    false_alarms = np.arange(1, len(scores) + 1) - found
    costs = false_positive_cost * false_alarms + false_negative_cost * (labels.sum() - found)
    # A threshold cannot part equal scores: only the last row of each counts.
    costs[:-1][scores[:-1] == scores[1:]] = np.inf
    if false_negative_cost * labels.sum() <= costs.min():
        return float(np.nextafter(scores[0], 2.0))
    return float(scores[costs.argmin()])


def _sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Sums `values` along each line, from each start to the next."""
    return values if len(starts) == values.shape[1] else np.add.reduceat(values, starts, axis=1)


def _before(sums: np.ndarray, position: int) -> np.ndarray:
    return sums[:, position - 1] if position else np.zeros(len(sums))


def _average_precision(
    positive: np.ndarray,
    negative: np.ndarray,
    positives_below: np.ndarray,
    negatives_below: np.ndarray,
) -> np.ndarray:
    positives = positives_below[:, -1]
    # Positives and negatives with at least this score.
    above = positives[:, None] - positives_below + positive
    false_alarms = negatives_below[:, -1:] - negatives_below + negative
    with np.errstate(invalid="ignore"):
        # 0/0 only where nothing is left above, and there the step in recall is 0 too.
        terms = positive * above / (above + false_alarms)
    return _ratio(np.nansum(terms, axis=1), positives)


def _calibration_gap(
    positive: np.ndarray, negative: np.ndarray, score: np.ndarray, bin_starts: np.ndarray
) -> np.ndarray:
    """Returns the sum over bins of |positives - sum of scores|."""
    difference = (positive - (positive + negative) * score).cumsum(axis=1)
    edges = [_before(difference, start) for start in bin_starts] + [difference[:, -1]]
    return np.abs(np.diff(np.stack(edges, axis=1), axis=1)).sum(axis=1)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divides; NaN where there is nothing to divide by."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)


def _mean(per_class: np.ndarray) -> np.ndarray:
    """Averages over the classes that have a value; NaN when none has."""
    defined = ~np.isnan(per_class)
    return _ratio(np.where(defined, per_class, 0.0).sum(axis=1), defined.sum(axis=1))
