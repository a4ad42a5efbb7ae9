# SPDX-License-Identifier: Apache-2.0
"""A small language of rules over statistics, for what a schema cannot say.

One rule is `[COLUMN.]STATISTIC COMPARISON NUMBER`::

    rows >= 1000
    price.mean < 30
    carrier.unique <= 20
    temp.missing < 0.1
    distance.p99 < 5000

Statistics: `rows` (of the dataset); of every column `count` (rows with a value) and `missing`
(share of the rows, 0 to 1); of strings `unique`; of numbers `mean`, `std`, `min`, `max`, `median`,
`zeros` (share of the values) and `p1` to `p99`. Times are numbers of seconds since 1970.
"""

import math
import operator
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kfloop.components.contracts.errors import InputError

if TYPE_CHECKING:
    from kfloop.components.validation.summary import Column, Summary

STATISTICS = ("count", "missing", "unique", "mean", "std", "min", "max", "median", "zeros")
_COMPARISONS = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
_RULE = re.compile(
    r"\s*(?:(?P<column>.+)\.)?(?P<statistic>\w+)\s*(?P<comparison><=|>=|==|!=|<|>)"
    r"\s*(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*"
)


@dataclass(frozen=True)
class Rule:
    """A parsed rule; `column` is empty for a statistic of the dataset."""

    text: str
    column: str
    statistic: str
    comparison: str
    number: float

    def value(self, summary: "Summary") -> float | None:
        """Returns the statistic, or None where the data does not have it."""
        if not self.column:
            return summary.rows
        column = summary.columns.get(self.column)
        return None if column is None else _statistic(column, self.statistic)

    def holds(self, value: float) -> bool:
        """Returns whether the comparison is true; it never is for NaN."""
        return not math.isnan(value) and _COMPARISONS[self.comparison](value, self.number)


def parse_rule(text: str) -> Rule:
    """Parses one rule.

    Raises:
        InputError: If it is not of the language in this module's docstring.
    """
    match = _RULE.fullmatch(text)
    if match is None:
        raise InputError(f"Rule {text!r} cannot be read; write it like 'price.mean < 30'.")
    column, statistic = match["column"] or "", match["statistic"]
    if not column and statistic != "rows":
        raise InputError(
            f"Rule {text!r} names no column; write it like 'price.{statistic} < 30', "
            "or 'rows >= 1000'."
        )
    percentile = re.fullmatch(r"p[1-9]\d?", statistic)
    if column and statistic not in STATISTICS and not percentile:
        raise InputError(
            f"Rule {text!r} asks for {statistic!r}, which is not a statistic of a column; there is "
            f"{', '.join(STATISTICS)} and p1 to p99."
        )
    return Rule(text.strip(), column, statistic, match["comparison"], float(match["number"]))


def _statistic(column: "Column", statistic: str) -> float | None:
    if statistic.startswith("p"):
        return column.quantile(int(statistic[1:]) / 100) if column.is_number else None
    value: float | None = getattr(column, statistic)
    return value
