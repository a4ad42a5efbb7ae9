# SPDX-License-Identifier: Apache-2.0
"""Mean and deviation of numbers that come in pieces."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Moments:
    """Count, mean and squared deviations of the finite values, merged by Chan et al. (1979)."""

    rows: int = 0
    finite: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def update(self, values: np.ndarray) -> None:
        """Takes in further values."""
        finite = values[np.isfinite(values)].astype(np.float64)
        self.rows += len(values)
        if not len(finite):
            return
        mean = float(finite.mean())
        squares = float(((finite - mean) ** 2).sum())
        total = self.finite + len(finite)
        step = mean - self.mean
        self.squares += squares + step**2 * self.finite * len(finite) / total
        self.mean += step * len(finite) / total
        self.finite = total

    @property
    def deviation(self) -> float:
        """Standard deviation of the finite values (0 when there is none)."""
        return (self.squares / self.finite) ** 0.5 if self.finite else 0.0
