# SPDX-License-Identifier: Apache-2.0
"""The points of ROC, precision-recall and calibration curves, and confusion matrices."""

from dataclasses import dataclass, field

import numpy as np

from kfloop.components.evaluation.cells import (
    CALIBRATION_BINS,
    CALIBRATION_EDGES,
    Cells,
    average_precision,
    ratio,
    roc_auc,
)

# A curve of more points looks the same and swells the artifact's metadata.
MAXIMUM_POINTS = 100
# A larger matrix, and more curves, cannot be read.
MAXIMUM_CLASSES = 30

Point = tuple[float, float]


@dataclass
class BinaryCurves:
    """Curves of a binary model, or of one class against the rest.

    Attributes:
        false_positive_rate: Of the ROC curve, rising; empty when the labels have only one class.
        true_positive_rate: Of the ROC curve, as long.
        threshold: Of each point of the ROC curve, falling from 1.
        precision_recall: (recall, precision).
        calibration: (mean score, share of positives) per bin that has rows.
    """

    false_positive_rate: list[float] = field(default_factory=list)
    true_positive_rate: list[float] = field(default_factory=list)
    threshold: list[float] = field(default_factory=list)
    precision_recall: list[Point] = field(default_factory=list)
    calibration: list[Point] = field(default_factory=list)


@dataclass
class ClassCurves:
    """Curves of a multiclass model.

    Attributes:
        classes: Each class against the rest; empty when there are more than `MAXIMUM_CLASSES`.
        pooled: Every row counted once per class: is this its class? (The micro average.) Its
            calibration is of the predicted class alone.
        macro_roc: (false positive rate, mean true positive rate over the classes).
        macro_precision_recall: (recall, mean precision over the classes).
    """

    classes: dict[str, BinaryCurves]
    pooled: BinaryCurves
    macro_roc: list[Point]
    macro_precision_recall: list[Point]


def binary_curves(labels: np.ndarray, scores: np.ndarray) -> BinaryCurves:
    """Returns the curves, thinned to at most `MAXIMUM_POINTS` each."""
    found, false_alarms, thresholds = _called(labels, scores)
    calibration = _calibration(labels, scores)
    positives, negatives = found[-1], false_alarms[-1]
    if not positives or not negatives:
        return BinaryCurves(calibration=calibration)
    points = min(len(found), MAXIMUM_POINTS - 1)
    kept = np.unique(np.linspace(0, len(found) - 1, points).astype(int))
    found, false_alarms = found[kept], false_alarms[kept]
    recall, precision = found / positives, found / (found + false_alarms)
    return BinaryCurves(
        [0.0, *(false_alarms / negatives).tolist()],
        [0.0, *recall.tolist()],
        [1.0, *thresholds[kept].tolist()],
        list(zip(recall.tolist(), precision.tolist(), strict=True)),
        calibration,
    )


def class_curves(
    positions: np.ndarray, probabilities: np.ndarray, classes: list[str]
) -> ClassCurves:
    """Returns the curves of each class against the rest, pooled, and their means.

    Args:
        positions: Position of the true class per row.
        probabilities: One line per row, one column per class.
        classes: Names of the classes.
    """
    is_true = np.eye(len(classes))[positions]
    grid = np.linspace(0.0, 1.0, MAXIMUM_POINTS)
    rates, precisions = [], []
    for k in range(len(classes)):
        found, false_alarms, _ = _called(is_true[:, k], probabilities[:, k])
        if not found[-1] or not false_alarms[-1]:
            continue
        recall, alarm_rate = found / found[-1], false_alarms / false_alarms[-1]
        rates.append(np.interp(grid, [0.0, *alarm_rate], [0.0, *recall]))
        # The precision where the recall is first reached; a line between points would flatter.
        reached = np.searchsorted(recall, np.maximum(grid, 1e-12)).clip(max=len(recall) - 1)
        precisions.append((found / (found + false_alarms))[reached])
    pooled = binary_curves(is_true.ravel(), probabilities.ravel())
    predicted = probabilities.argmax(axis=1)
    pooled.calibration = _calibration(
        (predicted == positions).astype(float), probabilities.max(axis=1)
    )
    shown = classes if len(classes) <= MAXIMUM_CLASSES else []
    return ClassCurves(
        {name: binary_curves(is_true[:, k], probabilities[:, k]) for k, name in enumerate(shown)},
        pooled,
        _points(grid, rates),
        _points(grid, precisions),
    )


def class_table(
    positions: np.ndarray, probabilities: np.ndarray, classes: list[str]
) -> list[dict[str, float | str | None]]:
    """Returns `class`, `rows`, `auc`, `pr_auc`, `precision` and `recall` of every class."""
    predicted = probabilities.argmax(axis=1)
    entries: list[dict[str, float | str | None]] = []
    for k, name in enumerate(classes):
        true, called = positions == k, predicted == k
        cells = Cells(true, probabilities[:, k])
        pair = cells.positives[:, None], cells.negatives[:, None]
        hits = np.array([(true & called).sum()])
        values = {
            "auc": roc_auc(*pair),
            "pr_auc": average_precision(*pair),
            "precision": ratio(hits, called.sum(keepdims=True)),
            "recall": ratio(hits, true.sum(keepdims=True)),
        }
        told = {
            key: None if np.isnan(value[0]) else float(value[0]) for key, value in values.items()
        }
        entries.append({"class": name, "rows": int(true.sum()), **told})
    return entries


def confusion_matrix(positions: np.ndarray, predicted: np.ndarray, classes: int) -> list[list[int]]:
    """Returns counts: one line per true class, one column per predicted class."""
    counts = np.bincount(positions * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes).tolist()


def regression_calibration(labels: np.ndarray, values: np.ndarray) -> list[Point]:
    """Returns (mean prediction, mean label) per tenth of the rows, ordered by prediction."""
    parts = np.array_split(np.argsort(values, kind="stable"), CALIBRATION_BINS)
    return [(float(values[part].mean()), float(labels[part].mean())) for part in parts if len(part)]


def _called(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns hits, false alarms and threshold, with more and more rows called positive."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order].astype(np.float64)
    # Rows of one score cross a threshold together: a point stands after the last of them.
    last = np.flatnonzero(np.diff(ordered, append=-np.inf))
    found = labels[order].cumsum()[last]
    return found, last + 1 - found, ordered[last]


def _points(grid: np.ndarray, lines: list[np.ndarray]) -> list[Point]:
    if not lines:
        return []
    return list(zip(grid.tolist(), np.mean(lines, axis=0).tolist(), strict=True))


def _calibration(labels: np.ndarray, scores: np.ndarray) -> list[Point]:
    bins = np.searchsorted(CALIBRATION_EDGES, scores, side="right") - 1
    rows = np.bincount(bins, minlength=CALIBRATION_BINS)
    means = np.bincount(bins, scores, CALIBRATION_BINS)
    shares = np.bincount(bins, labels, CALIBRATION_BINS)
    return [
        (float(means[index] / rows[index]), float(shares[index] / rows[index]))
        for index in np.flatnonzero(rows)
    ]
