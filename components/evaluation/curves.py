"""The points of ROC, precision-recall and calibration curves, and confusion matrices."""

from dataclasses import dataclass

import numpy as np

from kfloop.components.evaluation.metrics import CALIBRATION_BINS, CALIBRATION_EDGES

# A curve of more points looks the same and swells the artifact's metadata.
MAXIMUM_POINTS = 100
# A larger matrix cannot be read.
MAXIMUM_CLASSES = 30

Point = tuple[float, float]


@dataclass
class BinaryCurves:
    """Curves of a binary model.

    Attributes:
        false_positive_rate: Of the ROC curve, rising; empty when the labels have only one class.
        true_positive_rate: Of the ROC curve, as long.
        threshold: Of each point of the ROC curve, falling from 1.
        precision_recall: (recall, precision).
        calibration: (mean score, share of positives) per bin that has rows.
    """

    false_positive_rate: list[float]
    true_positive_rate: list[float]
    threshold: list[float]
    precision_recall: list[Point]
    calibration: list[Point]


def binary_curves(labels: np.ndarray, scores: np.ndarray) -> BinaryCurves:
    """Returns the curves, thinned to at most `MAXIMUM_POINTS` each."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order].astype(np.float64)
    # Rows of one score cross a threshold together: a point stands after the last of them.
    last = np.flatnonzero(np.diff(ordered, append=-np.inf))
    found = labels[order].cumsum()[last]
    false_alarms = last + 1 - found
    positives, negatives = found[-1], false_alarms[-1]
    calibration = _calibration(labels, scores)
    if not positives or not negatives:
        return BinaryCurves([], [], [], [], calibration)
    kept = np.unique(np.linspace(0, len(last) - 1, min(len(last), MAXIMUM_POINTS - 1)).astype(int))
    found, false_alarms = found[kept], false_alarms[kept]
    return BinaryCurves(
        [0.0, *(false_alarms / negatives).tolist()],
        [0.0, *(found / positives).tolist()],
        [1.0, *ordered[last[kept]].tolist()],
        list(
            zip(
                (found / positives).tolist(), (found / (found + false_alarms)).tolist(), strict=True
            )
        ),
        calibration,
    )


def confusion_matrix(positions: np.ndarray, predicted: np.ndarray, classes: int) -> list[list[int]]:
    """Returns counts: one line per true class, one column per predicted class."""
    counts = np.bincount(positions * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes).tolist()


def regression_calibration(labels: np.ndarray, values: np.ndarray) -> list[Point]:
    """Returns (mean prediction, mean label) per tenth of the rows, ordered by prediction."""
    parts = np.array_split(np.argsort(values, kind="stable"), CALIBRATION_BINS)
    return [(float(values[part].mean()), float(labels[part].mean())) for part in parts if len(part)]


def _calibration(labels: np.ndarray, scores: np.ndarray) -> list[Point]:
    bins = np.searchsorted(CALIBRATION_EDGES, scores, side="right") - 1
    rows = np.bincount(bins, minlength=CALIBRATION_BINS)
    means = np.bincount(bins, scores, CALIBRATION_BINS)
    shares = np.bincount(bins, labels, CALIBRATION_BINS)
    return [
        (float(means[index] / rows[index]), float(shares[index] / rows[index]))
        for index in np.flatnonzero(rows)
    ]
