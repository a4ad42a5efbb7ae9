# SPDX-License-Identifier: Apache-2.0
"""Effect sizes: how far two samples are apart, whatever their number of rows."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance

from kfloop.components.monitoring.window import Codes, Numbers

# Half a row in every bin keeps the logarithm finite where one side has no rows (Jeffreys' prior).
PSEUDO_COUNT = 0.5


def quantile_edges(reference: Numbers, bins: int = 10) -> Numbers:
    """Returns the inner edges of bins with equal shares of the reference.

    The lowest bin holds what lies below the reference's minimum and the highest what lies above
    its maximum, so that values outside of the reference are not mixed with its tails.
    """
    quantiles = np.quantile(reference, np.linspace(0, 1, bins + 1)[1:-1])
    lowest = np.nextafter(reference.min(), -np.inf)
    edges: Numbers = np.unique(np.concatenate([[lowest], quantiles, [reference.max()]]))
    return edges


def bin_numbers(values: Numbers, edges: Numbers) -> Codes:
    """Returns the bin of each value: bin i holds edges[i-1] < value <= edges[i]."""
    return np.searchsorted(edges, values, side="left").astype(np.int64)


def common_categories(counts: Codes, minimum: float, limit: int = 50) -> Codes:
    """Maps every category to its bin; rare ones share the last bin.

    Args:
        counts: Rows of each category in the reference.
        minimum: A category with fewer rows is rare. A chi-square test wants an expected count of
            at least 5 in each cell (Cochran 1954).
        limit: At most this many categories keep a bin of their own, the most frequent first.

    Returns:
        The bin of each category; the bin of the rare ones is one past the highest other.
    """
    order = np.argsort(-counts, kind="stable")
    kept = [category for category in order[:limit] if counts[category] >= minimum]
    bins = np.full(len(counts), len(kept), dtype=np.int64)
    bins[kept] = np.arange(len(kept))
    return bins


def shares(codes: Codes, bins: int) -> Numbers:
    """Returns the share of each of `bins` bins."""
    return np.bincount(codes, minlength=bins) / max(len(codes), 1)


def population_stability_index(reference: Codes, current: Codes, bins: int) -> float:
    """Returns the PSI of two binned samples: the sum of (q - p) ln(q / p) over the bins."""
    p = _smoothed(reference, bins)
    q = _smoothed(current, bins)
    return float(np.sum((q - p) * np.log(q / p)))


def jensen_shannon(reference: Codes, current: Codes, bins: int) -> float:
    """Returns the Jensen-Shannon distance in base 2: 0 for equal shares, 1 for disjoint ones."""
    return float(jensenshannon(shares(reference, bins), shares(current, bins), base=2))


def scaled_wasserstein(reference: Numbers, current: Numbers, scale: float) -> float:
    """Returns the 1-Wasserstein distance divided by `scale`: a shift in standard deviations."""
    return float(wasserstein_distance(reference, current)) / scale


def outside(reference: Numbers, current: Numbers) -> float:
    """Returns the share of `current` below the reference's minimum or above its maximum."""
    return float(np.mean((current < reference.min()) | (current > reference.max())))


def unseen(reference: Codes, current: Codes) -> float:
    """Returns the share of `current` in categories that the reference does not have."""
    size = int(max(reference.max(), current.max())) + 1
    known = np.bincount(reference, minlength=size) > 0
    return float(np.mean(~known[current]))


@dataclass(frozen=True)
class NumberSplits:
    """Splits of one sample of numbers, without sorting it again for each.

    Attributes:
        codes: Bin of each value, in the values' order.
        gaps: Differences between neighbouring values, in standard deviations.
        bins: Number of bins.
    """

    codes: Codes
    gaps: Numbers
    bins: int

    @classmethod
    def of(cls, values: Numbers, edges: Numbers, spread: float) -> "NumberSplits":
        """Prepares the splits of `values`; `spread` is their standard deviation."""
        ordered = np.sort(values)
        gaps = np.diff(ordered) / spread if spread > 0 else np.zeros(len(values) - 1)
        return cls(bin_numbers(ordered, edges), gaps, len(edges) + 1)

    def effects(self, taken: npt.NDArray[np.bool_]) -> dict[str, float]:
        """Returns the effects between the values that are taken and those that are left."""
        size = int(taken.sum())
        old, new = self.codes[~taken], self.codes[taken]
        rises = np.where(taken, 1 / size, -1 / (len(taken) - size))
        # Below the least value left and above the greatest one.
        outer = int(taken.argmin()) + int(taken[::-1].argmin())
        return {
            "psi": population_stability_index(old, new, self.bins),
            "jensen_shannon": jensen_shannon(old, new, self.bins),
            "wasserstein": float(np.abs(np.cumsum(rises)[:-1]) @ self.gaps),
            "out_of_range": outer / size,
        }


def _smoothed(codes: Codes, bins: int) -> Numbers:
    counts = np.bincount(codes, minlength=bins) + PSEUDO_COUNT
    smoothed: Numbers = counts / counts.sum()
    return smoothed
