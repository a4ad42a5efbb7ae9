# SPDX-License-Identifier: Apache-2.0
"""Compares a window with the reference, column by column.

A column has drifted when its distribution differs both beyond chance (a test, corrected for the
number of columns) and by an amount that matters (an effect size over its threshold), or when one
of three separate checks fails: its missing rate changed, values left the reference's range or
categories, or a category vanished.

A threshold is the larger of a floor (`FLOORS`) and what chance makes of the reference itself: it is
split at random many times, into parts as large as the window where it has the rows, and the largest
effect seen is multiplied by a factor. Random splits know nothing of time: rows of one day resemble
each other more than rows of different days, which is why the floors are there.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kfloop.components.contracts.decision import Reason
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import Feature
from kfloop.components.monitoring import distances, significance
from kfloop.components.monitoring.window import Codes, Numbers, Values, numbers, texts

FLOORS = {
    # Below 0.1 a population counts as stable: Siddiqi, Credit Risk Scorecards (2006); reviewed with
    # its weakness (no regard to the number of rows) in du Pisanie et al., arXiv:2303.01227.
    "psi": 0.1,
    # The distance that a PSI of 0.1 makes when the change is small: sqrt(0.1 / (8 ln 2)).
    "jensen_shannon": 0.134,
    # In standard deviations of the reference: a small effect in Cohen, Statistical Power Analysis
    # for the Behavioral Sciences (1988).
    "wasserstein": 0.2,
    # Share of the window outside of the reference's range, or in categories it does not have.
    "out_of_range": 0.01,
    "unseen": 0.01,
    # Change of the share of missing values.
    "missing": 0.05,
    # Rarer categories may vanish without being drift.
    "vanished": 0.01,
}
EFFECTS = {
    "psi": "PSI",
    "jensen_shannon": "Jensen-Shannon distance",
    "wasserstein": "Wasserstein distance (SD)",
}
# In standard deviations: a move of a whole column that is no change of its shape. A quarter of the
# floor of Wasserstein's distance.
SMALL_MOVE = 0.05
# With fewer values on either side no test says anything.
FEWEST_VALUES = 30

Measure = Callable[..., dict[str, float]]


@dataclass(frozen=True)
class Rules:
    """How a comparison is judged.

    Attributes:
        significance: Chance of a false alarm that the tests allow, over all columns together.
        floors: Thresholds by effect, see `FLOORS`.
        calibration_splits: How often the reference is split.
        calibration_factor: Multiplies the largest effect of the splits.
        seed: Of the splits.
    """

    significance: float = 0.01
    floors: dict[str, float] = field(default_factory=lambda: dict(FLOORS))
    calibration_splits: int = 20
    calibration_factor: float = 1.5
    seed: int = 0


@dataclass
class Comparison:
    """One column of the window against the reference.

    Attributes:
        name: Column.
        categories: Labels of the category codes; None for a number.
        reference: Values (floats or category codes) that are present in the reference.
        current: Values that are present in the window.
        reference_missing: Rows of the reference without a value.
        current_missing: Rows of the window without a value.
        measure: Computes the effect sizes of two samples of this column.
        test: Name of the significance test.
        p_value: Of the test, not corrected; None when there are too few values.
        adjusted: The p-value corrected for the number of columns.
        effects: `(value, threshold)` by effect.
        reasons: The checks, distribution first.
    """

    name: str
    categories: list[str] | None
    reference: Values
    current: Values
    reference_missing: int
    current_missing: int
    measure: Measure = dict
    test: str = ""
    p_value: float | None = None
    adjusted: float | None = None
    effects: dict[str, tuple[float, float]] = field(default_factory=dict)
    reasons: list[Reason] = field(default_factory=list)

    @property
    def drifted(self) -> bool:
        """Whether any check failed."""
        return any(not reason.passed for reason in self.reasons)

    @property
    def strength(self) -> float:
        """The largest effect as a multiple of its threshold; what columns are sorted by."""
        return max((value / threshold for value, threshold in self.effects.values()), default=0.0)

    @property
    def missing_rates(self) -> tuple[float, float]:
        """Share of rows without a value, in the reference and in the window."""
        reference = len(self.reference) + self.reference_missing
        current = len(self.current) + self.current_missing
        return self.reference_missing / reference, self.current_missing / current


def compare(
    reference: pa.Table, current: pa.Table, columns: list[Feature], rules: Rules
) -> list[Comparison]:
    """Compares `columns` of two tables that both have rows.

    Returns:
        One comparison per column, the strongest effect first, drifted ones before the others.

    Raises:
        InputError: If the reference lacks a column.
    """
    absent = [column.name for column in columns if column.name not in reference.column_names]
    if absent:
        raise InputError(
            f"The model's reference lacks {', '.join(map(repr, absent))}; "
            "train and publish the model again with this release."
        )
    rng = np.random.default_rng(rules.seed)
    comparisons = [_pair(reference, current, column) for column in columns]
    for comparison in comparisons:
        _measure(comparison, rules, rng)
    tested = [comparison for comparison in comparisons if comparison.p_value is not None]
    adjusted = significance.holm([float(c.p_value) for c in tested if c.p_value is not None])
    for comparison, value in zip(tested, adjusted, strict=True):
        comparison.adjusted = value
    for comparison in comparisons:
        _judge(comparison, rules, len(columns))
    return sorted(comparisons, key=lambda c: (not c.drifted, -c.strength))


def _pair(reference: pa.Table, current: pa.Table, column: Feature) -> Comparison:
    if column.type in ("float", "int"):
        old, new = numbers(reference, column.name), numbers(current, column.name)
        labels = None
        kept_old, kept_new = old[~np.isnan(old)], new[~np.isnan(new)]
    else:
        boolean = column.type == "bool"
        both = pa.chunked_array(
            texts(reference, column.name, boolean).chunks
            + texts(current, column.name, boolean).chunks,
            pa.string(),
        )
        encoded = both.combine_chunks().dictionary_encode()
        labels = encoded.dictionary.to_pylist()
        codes = pc.fill_null(encoded.indices, -1).to_numpy().astype(np.int64)
        old, new = codes[: reference.num_rows], codes[reference.num_rows :]
        kept_old, kept_new = old[old >= 0], new[new >= 0]
    return Comparison(
        column.name,
        labels,
        kept_old,
        kept_new,
        reference.num_rows - len(kept_old),
        current.num_rows - len(kept_new),
    )


def _measure(comparison: Comparison, rules: Rules, rng: np.random.Generator) -> None:
    """Fills in the test and the effects, unless there is too little to compare."""
    old, new = comparison.reference, comparison.current
    comparison.test = "KS" if comparison.categories is None else "chi-square"
    if min(len(old), len(new)) < FEWEST_VALUES:
        return
    if comparison.categories is None:
        comparison.p_value = significance.kolmogorov_smirnov(old, new)
        edges, spread = distances.quantile_edges(old), float(np.std(old))
        comparison.measure = partial(_number_effects, edges, spread)
    else:
        counts = np.bincount(old, minlength=len(comparison.categories))
        expected = min(1.0, len(new) / len(old))
        bins = distances.common_categories(counts, 5 / expected)
        comparison.p_value = significance.chi_square(bins[old], bins[new])
        comparison.measure = partial(_category_effects, bins)
    found = comparison.measure(old, new)
    chance = _effects_of_chance(comparison, rules.calibration_splits, rng)
    comparison.effects = {
        name: (value, max(rules.floors[name], rules.calibration_factor * chance[name]))
        for name, value in found.items()
    }


def _number_effects(
    edges: Numbers, spread: float, reference: Numbers, current: Numbers
) -> dict[str, float]:
    old, bins = distances.bin_numbers(reference, edges), len(edges) + 1
    # The shape is compared after the best of these moves: where many rows have one value, a move
    # too small to matter would carry all of them over an edge. Wasserstein's distance sees moves.
    moved = [
        distances.bin_numbers(current + step * spread, edges)
        for step in (0.0, -SMALL_MOVE, SMALL_MOVE)
    ]
    effects = {
        "psi": min(distances.population_stability_index(old, new, bins) for new in moved),
        "jensen_shannon": min(distances.jensen_shannon(old, new, bins) for new in moved),
        "out_of_range": distances.outside(reference, current),
    }
    if spread > 0:  # a constant has no scale; the other effects see when it changes
        effects["wasserstein"] = distances.scaled_wasserstein(reference, current, spread)
    return effects


def _category_effects(bins: Codes, reference: Codes, current: Codes) -> dict[str, float]:
    number = int(bins.max()) + 1
    return {
        "psi": distances.population_stability_index(bins[reference], bins[current], number),
        "jensen_shannon": distances.jensen_shannon(bins[reference], bins[current], number),
        "unseen": distances.unseen(reference, current),
    }


def _effects_of_chance(
    comparison: Comparison, splits: int, rng: np.random.Generator
) -> dict[str, float]:
    """Returns the largest effect between random parts of the reference."""
    values = comparison.reference
    part = min(len(comparison.current), len(values) // 2)
    taken = np.arange(len(values)) < part
    effects: Callable[[npt.NDArray[np.bool_]], dict[str, float]]
    if comparison.categories is None:
        edges, spread = distances.quantile_edges(values), float(np.std(values))
        effects = distances.NumberSplits.of(values, edges, spread).effects
    else:

        def effects(taken: npt.NDArray[np.bool_]) -> dict[str, float]:
            return comparison.measure(values[~taken], values[taken])

    largest: dict[str, float] = {}
    for _ in range(splits):
        for name, value in effects(rng.permutation(taken)).items():
            largest[name] = max(largest.get(name, 0.0), value)
    return largest


def _judge(comparison: Comparison, rules: Rules, columns: int) -> None:
    comparison.reasons.append(_distribution(comparison, rules))
    comparison.reasons.append(_missing(comparison, rules, columns))
    comparison.reasons += _outside(comparison)
    if comparison.categories is not None and comparison.p_value is not None:
        comparison.reasons.append(_vanished(comparison, rules, columns))


def _distribution(comparison: Comparison, rules: Rules) -> Reason:
    name = comparison.name
    shapes = {effect: found for effect, found in comparison.effects.items() if effect in EFFECTS}
    if comparison.adjusted is None:
        before, now = len(comparison.reference), len(comparison.current)
        why = f"{name}: too few values to compare ({before} in the reference, {now} in the window)"
        return Reason("distribution", name, None, None, True, why)
    effect = max(shapes, key=lambda shape: shapes[shape][0] / shapes[shape][1])
    value, threshold = shapes[effect]
    beyond_chance = comparison.adjusted < rules.significance
    matters = value > threshold
    p_value = "below 1e-6" if comparison.adjusted < 1e-6 else f"{comparison.adjusted:.2g}"
    verdict = {
        (True, True): "drifted",
        (True, False): "differs by too little to matter",
        (False, True): "is within chance",
        (False, False): "is stable",
    }[beyond_chance, matters]
    why = (
        f"{name} {verdict}: {EFFECTS[effect]} {value:.3g} (threshold {threshold:.3g}), "
        f"{comparison.test} p {p_value}"
    )
    return Reason(effect, name, value, threshold, not (beyond_chance and matters), why)


def _missing(comparison: Comparison, rules: Rules, columns: int) -> Reason:
    name, floor = comparison.name, rules.floors["missing"]
    before, now = comparison.missing_rates
    low, high = significance.difference_of_shares(
        comparison.reference_missing,
        len(comparison.reference) + comparison.reference_missing,
        comparison.current_missing,
        len(comparison.current) + comparison.current_missing,
        rules.significance / columns,
    )
    beyond_chance = low > 0 or high < 0
    if beyond_chance:
        comparison.effects["missing"] = (abs(now - before), floor)
    why = f"{name}: {now:.1%} of the values are missing, {before:.1%} in the reference"
    passed = not (beyond_chance and abs(now - before) > floor)
    return Reason("missing", name, now - before, floor, passed, why)


def _outside(comparison: Comparison) -> list[Reason]:
    told = {
        "out_of_range": "lie outside of the reference's range",
        "unseen": "are in categories that the reference does not have",
    }
    reasons = []
    for effect, what in told.items():
        if effect in comparison.effects:
            value, threshold = comparison.effects[effect]
            why = f"{comparison.name}: {value:.1%} of the values {what}"
            reasons.append(
                Reason(effect, comparison.name, value, threshold, value <= threshold, why)
            )
    return reasons


def _vanished(comparison: Comparison, rules: Rules, columns: int) -> Reason:
    name, floor = comparison.name, rules.floors["vanished"]
    labels = comparison.categories or []
    before = np.bincount(comparison.reference, minlength=len(labels))
    now = np.bincount(comparison.current, minlength=len(labels))
    common = before >= floor * len(comparison.reference)
    rows = len(comparison.reference), len(comparison.current)
    allowed = rules.significance / columns / max(int(common.sum()), 1)
    gone = [
        code
        for code in np.flatnonzero(common & (now == 0))
        if significance.vanished_by_chance(int(before[code]), *rows) < allowed
    ]
    if not gone:
        why = f"{name}: no category vanished"
        return Reason("vanished", name, 0.0, floor, True, why)
    largest = float(before[gone].max()) / rows[0]
    comparison.effects["vanished"] = (largest, floor)
    listed = ", ".join(f"{labels[code]} ({before[code] / rows[0]:.1%})" for code in gone[:5])
    why = f"{name}: {len(gone)} categories vanished, with their share before: {listed}"
    return Reason("vanished", name, largest, floor, False, why)
