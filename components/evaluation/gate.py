"""The gate after evaluation: is the model good enough to be published?"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kfloop.components.contracts.decision import (
    FAIL,
    NO_DATA,
    PASS,
    Decision,
    Reason,
    write_decision,
)
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import read_json
from kfloop.components.evaluation.metrics import HIGHER_IS_BETTER, LOWER_IS_BETTER

# {"minimum": 0.7} and/or {"maximum": 2.0}
Limits = dict[str, float]


def gate(
    evaluation: str | Path,
    decision: str | Path,
    page: str | Path,
    thresholds: Mapping[str, Any],
    slice_thresholds: Mapping[str, Any],
    confident: bool = False,
    force: str = "",
) -> Decision:
    """Decides whether an evaluated model may be published.

    Args:
        evaluation: File that `evaluate` wrote.
        decision: Decision file to write: `pass`, `fail`, or `no_data` when no check failed but a
            metric that is needed is undefined.
        page: HTML page of the decision to write.
        thresholds: `{metric: {"minimum": x, "maximum": y}}`; a bare number is the minimum of a
            metric where higher is better and the maximum of an error. When empty, the model must
            beat one that knows nothing, with confidence: ROC AUC above 0.5 (binary; the mean over
            the classes for multiclass), or RMSE below the label's standard deviation.
        slice_thresholds: The same, for every slice that is large enough.
        confident: Whether the near bound of the 95 % interval must clear the threshold, and not
            only the value.
        force: Why the model passes although checks do not; recorded.

    Raises:
        InputError: If a threshold names an unknown metric or is not a number, or slice thresholds
            are given and the evaluation has no slices.
    """
    document = read_json(evaluation)
    if not isinstance(document, dict) or "metrics" not in document or "slices" not in document:
        raise InputError(f"{evaluation} is not an evaluation; give the output of evaluate_model.")
    limits = _limits(thresholds, "thresholds", document)
    slice_limits = _limits(slice_thresholds, "slice_thresholds", document)
    if slice_limits and not document["slices"]:
        raise InputError(
            "There are slice_thresholds, but the evaluation has no slices; "
            "name columns in the `slices` of evaluate_model."
        )
    if limits:
        reasons, undefined = _judge(limits, document["metrics"], confident, "")
    else:
        reasons, undefined = _beats_trivial(document)
    for part in document["slices"] if slice_limits else []:
        if part["metrics"]:
            judged, unknown = _judge(slice_limits, part["metrics"], confident, part["slice"])
            reasons, undefined = reasons + judged, undefined or unknown
        else:
            reasons.append(_too_small(part))
    outcome = _outcome(reasons, undefined)
    forced = force if force and outcome != PASS else None
    result = Decision("evaluation", PASS if forced else outcome, reasons, forced=forced)
    write_decision(result, decision, page)
    print(result.summary, flush=True)
    return result


def _limits(given: Mapping[str, Any], setting: str, document: dict[str, Any]) -> dict[str, Limits]:
    known = list(document["metrics"])
    limits = {}
    for metric, value in given.items():
        if metric not in known:
            raise InputError(
                f"{setting} names {metric!r}, which is not a metric of the task "
                f"{document['task']}; those are {', '.join(known)}."
            )
        limits[metric] = _limit(metric, value, setting)
    return limits


def _limit(metric: str, value: Any, setting: str) -> Limits:
    if not isinstance(value, Mapping):
        if metric not in HIGHER_IS_BETTER | LOWER_IS_BETTER:
            raise InputError(
                f"{setting}.{metric} needs a minimum and a maximum, since it is best in between; "
                'write {"minimum": -1, "maximum": 1}.'
            )
        value = {"minimum" if metric in HIGHER_IS_BETTER else "maximum": value}
    wrong = [key for key in value if key not in ("minimum", "maximum")]
    if wrong or not value:
        raise InputError(
            f"{setting}.{metric} is {dict(value)!r}; it takes `minimum` and `maximum`."
        )
    for key, number in value.items():
        if (
            isinstance(number, bool)
            or not isinstance(number, int | float)
            or not math.isfinite(number)
        ):
            raise InputError(f"{setting}.{metric}.{key} is {number!r}; it must be a number.")
    return {key: float(number) for key, number in value.items()}


def _judge(
    limits: dict[str, Limits], metrics: dict[str, Any], confident: bool, part: str
) -> tuple[list[Reason], bool]:
    """Returns the checks, and whether any metric was undefined."""
    reasons, undefined = [], False
    for metric, bounds in limits.items():
        for check, threshold in bounds.items():
            reason = _check(metric, metrics[metric], check, threshold, confident, part)
            undefined = undefined or reason.value is None
            reasons.append(reason)
    return reasons, undefined


def _check(
    metric: str, entry: dict[str, Any], check: str, threshold: float, confident: bool, part: str
) -> Reason:
    where = f" in {part}" if part else ""
    name = f"confident {check}" if confident else check
    value = entry[("low" if check == "minimum" else "high") if confident else "value"]
    if value is None:
        why = entry.get("why", "it has no interval")
        return Reason(
            name, metric, None, threshold, False, f"{metric}{where} is unknown: {why}", part
        )
    passed = value >= threshold if check == "minimum" else value <= threshold
    measured = f"{metric}{where} is {entry['value']:.4g}"
    if confident:
        measured += f" (95 % interval {entry['low']:.4g} to {entry['high']:.4g})"
    relation = {
        ("minimum", True): "at least", ("minimum", False): "below",
        ("maximum", True): "at most", ("maximum", False): "above",
    }[check, passed]  # fmt: skip
    why = f"{measured}, {relation} the {check} {threshold:g}"
    return Reason(name, metric, value, threshold, passed, why, part)


def _beats_trivial(document: dict[str, Any]) -> tuple[list[Reason], bool]:
    """Checks the model against one that knows nothing: the gate of a loop without thresholds."""
    if not document["trivial"]:
        why = f"there is nothing to judge: {document['rows']} rows"
        return [Reason("beats a trivial model", "rows", None, None, False, why)], True
    ((metric, bar),) = document["trivial"].items()
    entry = document["metrics"][metric]
    higher = metric in HIGHER_IS_BETTER
    bound = entry["low" if higher else "high"]
    name = "beats a trivial model"
    if bound is None:
        why = f"{metric} is unknown: {entry.get('why', 'it has no interval')}"
        return [Reason(name, metric, None, bar, False, why)], True
    passed = bound > bar if higher else bound < bar
    why = (
        f"{metric} is {entry['value']:.4g} (95 % interval {entry['low']:.4g} to "
        f"{entry['high']:.4g}), {'better' if passed else 'not surely better'} than the {bar:.4g} "
        "of a model without any feature; no thresholds were set"
    )
    return [Reason(name, metric, entry["value"], bar, passed, why)], False


def _too_small(part: dict[str, Any]) -> Reason:
    why = f"{part['slice']} has {part['rows']} rows, too few to judge"
    return Reason("slice size", "rows", part["rows"], None, True, why, part["slice"])


def _outcome(reasons: list[Reason], undefined: bool) -> str:
    if any(not reason.passed and reason.value is not None for reason in reasons):
        return FAIL
    return NO_DATA if undefined else PASS
