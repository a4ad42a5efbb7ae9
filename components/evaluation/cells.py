# SPDX-License-Identifier: Apache-2.0
"""Rows of like score as positives and negatives per cell: what every ranking metric is made of.

Rows of one score cannot be told apart, so a cell per distinct score loses nothing. The bootstrap
needs less: with `CELLS` cells of equally many rows its intervals of the ROC AUC differ in the sixth
digit, since only the order within a cell is lost, and a resample costs a thousand sums instead of
one pass over sorted rows for every metric.
"""

import numpy as np

CELLS = 1000
CALIBRATION_BINS = 10
# Lower edges; a score on an edge belongs to the bin above it, here and in the curve.
CALIBRATION_EDGES = np.arange(CALIBRATION_BINS) / CALIBRATION_BINS
# Keeps the log loss of a confident mistake finite; float32 probabilities end near here.
SMALLEST_PROBABILITY = 1e-7
# Rows whose weights are turned into floats at once; more would leave the processor's cache.
_ROWS_AT_ONCE = 4096


class GroupSums:
    """Sums the weights of the rows of every group, for many weightings at once."""

    def __init__(self, codes: np.ndarray, groups: int) -> None:
        """Prepares for one group number per row; rows with -1 are in none."""
        order = np.argsort(codes, kind="stable")
        self._rows = order[np.searchsorted(codes[order], 0) :]
        ordered = codes[self._rows]
        self._starts = np.flatnonzero(np.diff(ordered, prepend=-1))
        self._present = ordered[self._starts]
        self._groups = groups

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """Returns groups × weightings; `weights` are counts, rows × weightings."""
        sums = np.zeros((self._groups, weights.shape[1]))
        if len(self._rows):
            sums[self._present] = np.add.reduceat(
                weights[self._rows], self._starts, axis=0, dtype=np.int32
            )
        return sums


def weighted_sums(columns: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the weighted sum of every column: columns × weightings."""
    sums = np.zeros((columns.shape[1], weights.shape[1]))
    for start in range(0, len(columns), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        sums += columns[part].T @ weights[part].astype(np.float64)
    return sums


class Cells:
    """The cells of a binary label and a score.

    Attributes:
        lowest: Lowest score of each cell, rising.
        positives, negatives: Number of rows of each cell.
        positive_costs, negative_costs: Log loss, Brier score and score of one positive and of one
            negative row: one line per cell, the mean over its rows.
    """

    def __init__(
        self,
        labels: np.ndarray,
        scores: np.ndarray,
        at_most: int | None = None,
        edges: tuple[float, ...] = (),
    ) -> None:
        """Makes a cell per distinct score, or about `at_most` cells.

        Args:
            labels: 0 or 1 per row.
            scores: Probability of 1 per row.
            at_most: Cells; None for no limit. Equal scores are never parted.
            edges: Scores at which a cell must begin.
        """
        distinct, of_row = np.unique(scores.astype(np.float64), return_inverse=True)
        if at_most and len(distinct) > at_most:
            ranks = np.bincount(of_row).cumsum() * at_most // max(len(scores), 1)
            starts = np.flatnonzero(np.diff(ranks, prepend=-1))
            inner = np.searchsorted(distinct, edges)
            starts = np.union1d(starts, inner[inner < len(distinct)])
            of_row = (np.searchsorted(starts, np.arange(len(distinct)), side="right") - 1)[of_row]
            distinct = distinct[starts]
        self.lowest, self._of_row = distinct, of_row
        self._positive = labels == 1
        clipped = np.clip(scores, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY).astype(np.float64)
        self.positives, self.positive_costs = self._means(
            self._positive, (-np.log(clipped), (1 - scores) ** 2, scores)
        )
        self.negatives, self.negative_costs = self._means(
            ~self._positive, (-np.log1p(-clipped), scores**2, scores)
        )

    def _means(
        self, chosen: np.ndarray, costs: tuple[np.ndarray, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        cells, size = self._of_row[chosen], len(self.lowest)
        rows = np.bincount(cells, minlength=size)
        sums = [np.bincount(cells, cost[chosen], size) for cost in costs]
        return rows.astype(np.float64), np.stack(sums, axis=1) / np.maximum(rows, 1)[:, None]

    def sums(self) -> tuple[GroupSums, GroupSums]:
        """Returns what sums weights over the positives and over the negatives of the cells."""
        size = len(self.lowest)
        return (
            GroupSums(np.where(self._positive, self._of_row, -1), size),
            GroupSums(np.where(self._positive, -1, self._of_row), size),
        )


def roc_auc(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Returns the ROC AUC per weighting; ties count half, as in Mann-Whitney.

    Args:
        positive: Weight of the positives, cells (rising) × weightings.
        negative: Of the negatives.
    """
    wins = (positive * (negative.cumsum(axis=0) - 0.5 * negative)).sum(axis=0)
    return ratio(wins, positive.sum(axis=0) * negative.sum(axis=0))


def average_precision(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Returns the sum of precision times the step in recall, per weighting; see `roc_auc`."""
    found = positive[::-1].cumsum(axis=0)[::-1]
    called = found + negative[::-1].cumsum(axis=0)[::-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        # 0/0 only where nothing is left above, and there the step in recall is 0 too.
        terms = np.where(called > 0, positive * found / called, 0.0)
    return ratio(terms.sum(axis=0), found[0] if len(found) else np.zeros(positive.shape[1]))


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divides; NaN where there is nothing to divide by."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)
