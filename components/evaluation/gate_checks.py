# SPDX-License-Identifier: Apache-2.0
"""The gate's rules, and its checks against the champion, between groups and of the latency."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kfloop.components.contracts.decision import Reason
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import read_json
from kfloop.components.contracts.metrics import FAIRNESS_RATES

NO_BASELINE_POLICIES = ("pass", "fail")


@dataclass
class GateRules:
    """What a model must reach.

    Attributes:
        thresholds: `{metric: {"minimum": x, "maximum": y}}`; a bare number is the minimum of a
            metric where higher is better and the maximum of an error. When empty, the model must
            beat one that knows nothing, with confidence: ROC AUC above 0.5 (binary; the mean over
            the classes for multiclass), or RMSE below the label's standard deviation.
        slice_thresholds: The same, for every slice that is large enough.
        confident: Whether the near bound of the 95 % interval must clear a threshold or a minimum
            improvement, and not only the value.
        minimum_improvement: Metric to how much better than the champion the model must be; a
            negative number allows it to be worse. When empty and there is a comparison, the model
            must not be surely worse in the comparison's metric.
        maximum_slice_regression: Metric to how much worse than the champion the model may be in a
            slice.
        fairness: Rate (`selection_rate`, `true_positive_rate`, `false_positive_rate`) to the
            largest gap between the groups of a column.
        latency_ms: `row` and `batch` to the most milliseconds that `evaluate_model` may measure.
        no_baseline: What having no champion to compare with means: `pass` or `fail`.
        force: Why the model passes although checks do not; recorded.
    """

    thresholds: Mapping[str, Any] = field(default_factory=dict)
    slice_thresholds: Mapping[str, Any] = field(default_factory=dict)
    confident: bool = False
    minimum_improvement: Mapping[str, Any] = field(default_factory=dict)
    maximum_slice_regression: Mapping[str, Any] = field(default_factory=dict)
    fairness: Mapping[str, Any] = field(default_factory=dict)
    latency_ms: Mapping[str, Any] = field(default_factory=dict)
    no_baseline: str = "pass"
    force: str = ""


def read_comparison(path: str | Path) -> dict[str, Any]:
    """Reads what `compare_models` wrote.

    Raises:
        InputError: If the file is something else.
    """
    document = read_json(path)
    if not isinstance(document, dict) or "champion" not in document:
        raise InputError(f"{path} is not a comparison; give the output of compare_models.")
    return document


def against_champion(compared: dict[str, Any] | None, rules: GateRules) -> list[Reason]:
    """Checks the improvement over the champion, on all rows and in the slices.

    Raises:
        InputError: If rules about the champion are given without a comparison, or are wrong.
    """
    if rules.no_baseline not in NO_BASELINE_POLICIES:
        raise InputError(f"no_baseline is {rules.no_baseline!r}; it must be 'pass' or 'fail'.")
    if compared is None:
        for setting in ("minimum_improvement", "maximum_slice_regression"):
            if getattr(rules, setting):
                raise InputError(
                    f"There is a {setting}, but no comparison; give the output of compare_models."
                )
        return []
    if compared["champion"] is None:
        passed = rules.no_baseline == "pass"
        why = f"{compared['why']}, which no_baseline lets {rules.no_baseline}"
        return [Reason("champion", "baseline", "none", None, passed, why)]
    least = _bounds(rules.minimum_improvement, "minimum_improvement", compared)
    if least:
        reasons = [_improves(compared, metric, bar, rules.confident) for metric, bar in least]
    else:
        reasons = [_not_surely_worse(compared)]
    most = _bounds(rules.maximum_slice_regression, "maximum_slice_regression", compared)
    if most and not compared["slices"]:
        raise InputError(
            "There is a maximum_slice_regression, but the comparison has no slices; "
            "name columns in the `slices` of compare_models."
        )
    for part in compared["slices"] if most else []:
        if part["metrics"]:
            reasons += [_regression(part, metric, bar) for metric, bar in most]
        else:
            reasons.append(too_small(part))
    return reasons


def fairness_reasons(document: dict[str, Any], limits: Mapping[str, Any]) -> list[Reason]:
    """Checks the gaps between the groups of every column that `evaluate_model` was given."""
    if limits and not document["fairness"]:
        raise InputError(
            "There are fairness limits, but the evaluation has no groups; "
            "name columns in the `groups` of evaluate_model."
        )
    reasons = []
    for rate, given in limits.items():
        if rate not in FAIRNESS_RATES:
            raise InputError(f"fairness names {rate!r}; it knows {', '.join(FAIRNESS_RATES)}.")
        limit = number_of(given, f"fairness.{rate}")
        for column, found in document["fairness"].items():
            gap, name = found["gaps"][rate], rate.replace("_", " ")
            passed = gap is not None and gap <= limit
            why = (
                f"the {name} cannot be compared: fewer than two groups of {column} have one"
                if gap is None
                else f"the {name} of {column}'s groups differs by up to {gap:.4g}, "
                f"{'at most' if passed else 'above'} the limit {limit:g}"
            )
            reasons.append(Reason("fairness", rate, gap, limit, passed, why, column))
    return reasons


def latency_reasons(document: dict[str, Any], limits: Mapping[str, Any]) -> list[Reason]:
    """Checks what `evaluate_model` measured of the model on its machine."""
    reasons = []
    for kind, given in limits.items():
        if kind not in ("row", "batch"):
            raise InputError(f"latency_ms names {kind!r}; it knows row and batch.")
        limit = number_of(given, f"latency_ms.{kind}")
        took = document["latency"].get(f"{kind}_ms")
        size = "a row" if kind == "row" else f"{document['latency'].get('batch_rows')} rows"
        passed = took is not None and took <= limit
        why = (
            "the latency is unknown: the dataset has no rows"
            if took is None
            else f"the model takes {took:.3g} ms for {size} on the evaluation's machine, "
            f"{'at most' if passed else 'above'} the budget {limit:g} ms"
        )
        reasons.append(Reason("latency", f"{kind}_ms", took, limit, passed, why))
    return reasons


def too_small(part: dict[str, Any]) -> Reason:
    """Returns the note that a slice was not judged."""
    why = f"{part['slice']} has {part['rows']} rows, too few to judge"
    return Reason("slice size", "rows", part["rows"], None, True, why, part["slice"])


def number_of(value: Any, setting: str) -> float:
    """Returns a limit as a number.

    Raises:
        InputError: If it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{setting} is {value!r}; it must be a number.")
    return float(value)


def _bounds(
    given: Mapping[str, Any], setting: str, compared: dict[str, Any]
) -> list[tuple[str, float]]:
    known = compared["metrics"]
    for metric in given:
        if known and metric not in known:
            raise InputError(
                f"{setting} names {metric!r}, which is not a metric of this task; "
                f"those are {', '.join(known)}."
            )
    return [(metric, number_of(bar, f"{setting}.{metric}")) for metric, bar in given.items()]


def _improvement(part: dict[str, Any], metric: str) -> dict[str, Any]:
    nothing = {"value": None, "low": None, "high": None}
    entry = part["metrics"].get(metric)
    return dict(entry["improvement"]) if entry else nothing


def _improves(compared: dict[str, Any], metric: str, bar: float, confident: bool) -> Reason:
    found = _improvement(compared, metric)
    value = found["low" if confident else "value"]
    name = "confident improvement" if confident else "improvement"
    if value is None:
        return _unknown(name, metric, bar)
    passed = value >= bar
    why = f"{_told(metric, found)}, {'at least' if passed else 'below'} the minimum {bar:g}"
    return Reason(name, metric, value, bar, passed, why)


def _not_surely_worse(compared: dict[str, Any]) -> Reason:
    metric, name = compared["metric"], "not surely worse than the champion"
    bar = -float(compared["tolerance"])
    found = _improvement(compared, metric)
    if found["high"] is None:
        return _unknown(name, metric, bar)
    passed = found["high"] >= bar
    why = f"{_told(metric, found)}, {'not surely' if passed else 'surely'} worse"
    return Reason(name, metric, found["value"], bar, passed, why)


def _regression(part: dict[str, Any], metric: str, limit: float) -> Reason:
    found, where = _improvement(part, metric), part["slice"]
    if found["value"] is None:
        return _unknown("slice regression", metric, -limit, where)
    passed = found["value"] >= -limit
    relation = "at most" if passed else "more than"
    why = f"{_told(metric, found)} in {where}; {relation} {limit:g} worse"
    return Reason("slice regression", metric, found["value"], -limit, passed, why, where)


def _told(metric: str, found: dict[str, Any]) -> str:
    interval = f" (95 % interval {found['low']:.4g} to {found['high']:.4g})"
    return f"the improvement of {metric} over the champion is {found['value']:.4g}{interval}"


def _unknown(check: str, metric: str, bar: float, where: str = "") -> Reason:
    place = f" in {where}" if where else " on these rows"
    why = f"the improvement of {metric} is undefined{place}"
    return Reason(check, metric, None, bar, False, why, where)
