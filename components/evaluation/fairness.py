# SPDX-License-Identifier: Apache-2.0
"""How differently a binary model treats named groups."""

from typing import Any

import numpy as np
import pyarrow as pa

from kfloop.components.contracts.metrics import FAIRNESS_RATES
from kfloop.components.evaluation.slices import slices_of


def fairness_gaps(
    table: pa.Table,
    labels: np.ndarray,
    outputs: np.ndarray,
    threshold: float,
    columns: list[str],
    minimum_rows: int,
) -> dict[str, dict[str, Any]]:
    """Returns the rates of every group of each column, and the gap between the extreme groups.

    The selection rate is the share of rows called positive; its gap is the demographic parity
    difference. The gaps of the true and of the false positive rate are those of equalized odds
    (Hardt, Price, Srebro 2016); the first alone is equal opportunity. They are differences of the
    largest and the smallest rate, as in Fairlearn, and have no interval: of many small groups, two
    always differ by chance.

    Args:
        table: The rows.
        labels: 0 or 1 per row.
        outputs: Probability of 1 per row.
        threshold: Rows with at least this probability are called positive.
        columns: Columns whose values are the groups.
        minimum_rows: A smaller group is named, but takes no part; nor does one in which a rate is
            undefined, for that rate.

    Returns:
        `{column: {"groups": [{group, rows, and the rates}], "gaps": {rate: number or None}}}`;
        None where fewer than two groups can be compared.
    """
    called = outputs >= threshold
    found = {}
    for column in columns:
        groups = []
        for part in slices_of(table, [column]):
            group: dict[str, Any] = {"group": part.name, "rows": len(part.rows)}
            if len(part.rows) < minimum_rows:
                group["why"] = f"fewer than {minimum_rows} rows"
            else:
                group |= _rates(labels[part.rows], called[part.rows])
            groups.append(group)
        found[column] = {
            "groups": groups,
            "gaps": {rate: _gap(groups, rate) for rate in FAIRNESS_RATES},
        }
    return found


def _rates(labels: np.ndarray, called: np.ndarray) -> dict[str, float | None]:
    parts = (called, called[labels == 1], called[labels == 0])
    return {
        rate: float(part.mean()) if len(part) else None
        for rate, part in zip(FAIRNESS_RATES, parts, strict=True)
    }


def _gap(groups: list[dict[str, Any]], rate: str) -> float | None:
    rates = [group[rate] for group in groups if group.get(rate) is not None]
    return max(rates) - min(rates) if len(rates) > 1 else None
