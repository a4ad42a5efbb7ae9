# SPDX-License-Identifier: Apache-2.0
"""How good is the live model on labels that arrived, against the evaluation at release?"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kfloop.components.contracts.dataset import read_dataset, read_schema, require_columns
from kfloop.components.contracts.decision import (
    FAIL,
    NO_BASELINE,
    NO_DATA,
    PASS,
    Decision,
    Reason,
    decision_metadata,
    render,
    write_decision,
)
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import write_text
from kfloop.components.contracts.inference_log import EVENT_TIME, MODEL_VERSION, STATUS
from kfloop.components.contracts.metrics import (
    HIGHER_IS_BETTER,
    PERFORMANCE_LIMITS,
    PERFORMANCE_METRICS,
)
from kfloop.components.contracts.model_package import PREDICTION, ModelPackage
from kfloop.components.contracts.package_storage import read_package
from kfloop.components.monitoring import performance_page
from kfloop.components.monitoring.metrics import (
    Estimate,
    Metric,
    binary_metrics,
    bootstrap,
    multiclass_metrics,
    regression_metrics,
)
from kfloop.components.monitoring.package import read_release
from kfloop.components.monitoring.window import (
    Numbers,
    Window,
    answered,
    numbers,
    of_version,
    sample,
    texts,
)

GATE = "performance"
# More rows narrow the interval no further than matters, and the bootstrap visits every one.
MAXIMUM_ROWS = 100_000
# A threshold on log loss or Brier would alarm when only the share of positives changes.
DEFAULT_THRESHOLDS: dict[str, dict[str, dict[str, float]]] = {
    "binary": {"auc": {"maximum_drop": 0.05}},
    "multiclass": {"accuracy": {"maximum_drop": 0.05}},
    "regression": {"mae": {"maximum_relative_drop": 0.1}},
}


@dataclass
class Report:
    """The outcome of measuring performance.

    Attributes:
        decision: `pass`: no worse than allowed. `fail`: worse. `no_data`: too few labels, or a
            metric is undefined on them. `no_baseline`: no evaluation at release to compare with.
        metrics: Numbers to log: each metric, its `_low` and `_high`, and `estimated_` ones.
        metadata: For the decision artifact: the decision's own, `rows`, `rows_labelled`,
            `rows_measured` (labelled rows that this model version answered), `failed_requests`,
            `since` and `until`.
    """

    decision: Decision
    metrics: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


def measure_performance(
    joined: str | Path,
    model_uri: str,
    decision: str | Path,
    page: str | Path,
    label: str = "",
    thresholds: dict[str, dict[str, float]] | None = None,
    minimum_rows: int = 200,
    confidence: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
) -> Report:
    """Measures the model on labelled rows of the inference log.

    Failed requests, rows without a label or a prediction, and rows that another version of the
    model answered are left out and counted.

    Args:
        joined: Dataset of inference-log rows with the label column; null is "not known yet".
        model_uri: Published model package.
        decision: Where the decision is written.
        page: Where the HTML page is written.
        label: Label column; empty is the model's own.
        thresholds: By metric, any of `maximum_drop` (how much worse than at release, in the
            metric's unit), `maximum_relative_drop` (as a share of the value at release), `minimum`
            and `maximum`; empty takes `DEFAULT_THRESHOLDS` of the task. A drop fails only when
            its confidence interval excludes no drop at all.
        minimum_rows: With fewer labelled rows the outcome is `no_data`.
        confidence: Of the intervals.
        resamples: Bootstrap resamples.
        seed: Of the bootstrap.

    Raises:
        InputError: If a setting, the package or the rows cannot be used.
    """
    package = read_package(model_uri)
    label = label or package.label
    limits = thresholds or DEFAULT_THRESHOLDS[package.task]
    _check_limits(limits, package.task)
    release = read_release(model_uri)
    window = answered(_read(joined, label))
    own = of_version(window.rows, package.version)
    own = own.filter(_has_value(own, PREDICTION, package.task))
    labelled = own.filter(_has_value(own, label, package.task))
    estimates: dict[str, Estimate] = {}
    expected = estimate(own, package.task, release.threshold)
    reasons = [_left_out(window, own, labelled, package)]
    if labelled.num_rows >= max(minimum_rows, 1):
        rows = sample(labelled, MAXIMUM_ROWS, seed)
        metrics = _metrics(rows, label, package.task, release.threshold)
        estimates = bootstrap(metrics, rows.num_rows, resamples, confidence, seed)
        outcome, checks = _judge(estimates, release.metrics, limits)
    else:
        outcome = NO_DATA
        why = f"{labelled.num_rows} labelled rows, at least {minimum_rows} are needed"
        checks = [Reason("minimum_rows", "rows", labelled.num_rows, minimum_rows, False, why)]
        checks += _expectation(expected)
    baseline = f"the evaluation of {package.name} version {package.version or '(unpublished)'}"
    made = Decision(GATE, outcome, checks + reasons, baseline=baseline)
    report = Report(made, _logged(estimates, expected))
    report.metadata = decision_metadata(made) | {
        "rows": window.rows.num_rows,
        "rows_labelled": pc.sum(_has_value(window.rows, label, package.task)).as_py() or 0,
        "rows_measured": labelled.num_rows,
        "failed_requests": window.failed,
        "since": window.since,
        "until": window.until,
    }
    write_decision(made, decision)
    extra = performance_page.tables(estimates, release.metrics, expected, confidence)
    if package.task == "binary" and estimates:
        extra += performance_page.reliability(
            numbers(labelled, label), numbers(labelled, PREDICTION)
        )
    write_text(page, render(made, extra))
    print(made.summary, flush=True)
    return report


def estimate(rows: pa.Table, task: str, threshold: float) -> dict[str, float]:
    """Estimates the performance of a binary model without any label.

    Confidence-based performance estimation (CBPE; "Performance Estimation in Binary Classification
    Using Calibrated Confidence", arXiv:2505.05295): each row counts as positive with the
    probability that the model gave it. It holds while the probabilities are calibrated; a change
    of what the features mean for the label (concept drift) is invisible to it.

    Returns:
        Metrics by name; empty for other tasks and when there are no rows.
    """
    if task != "binary" or rows.num_rows == 0:
        return {}
    scores = numbers(rows, PREDICTION)
    metrics = binary_metrics(scores, scores, threshold)
    ones = np.ones(len(scores))
    found = {name: metrics[name](ones) for name in ("auc", "log_loss", "brier", "accuracy")}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _check_limits(limits: dict[str, dict[str, float]], task: str) -> None:
    for metric, of_metric in limits.items():
        if metric not in PERFORMANCE_METRICS[task]:
            raise InputError(
                f"Performance thresholds name {metric!r}, which a {task} model does not have; "
                f"it has {', '.join(PERFORMANCE_METRICS[task])}."
            )
        if not of_metric or not isinstance(of_metric, dict):
            raise InputError(
                f"The performance threshold of {metric} is {of_metric!r}; write it like "
                '{"maximum_drop": 0.05}.'
            )
        for limit in of_metric:
            if limit not in PERFORMANCE_LIMITS:
                raise InputError(
                    f"The performance threshold of {metric} has {limit!r}; "
                    f"there are {', '.join(PERFORMANCE_LIMITS)}."
                )


def _read(joined: str | Path, label: str) -> pa.Table:
    require_columns(joined, [PREDICTION, label])
    wanted = {PREDICTION, label, STATUS, EVENT_TIME, MODEL_VERSION}
    return read_dataset(joined, [name for name in read_schema(joined).names if name in wanted])


def _has_value(rows: pa.Table, column: str, task: str) -> pa.Array | pa.ChunkedArray:
    """Tells for each row whether a prediction or label is there."""
    if task == "multiclass":
        return pc.is_valid(texts(rows, column))
    return pa.array(~np.isnan(numbers(rows, column)))


def _left_out(window: Window, own: pa.Table, labelled: pa.Table, package: ModelPackage) -> Reason:
    unlabelled = own.num_rows - labelled.num_rows
    other = window.rows.num_rows - own.num_rows
    why = (
        f"{labelled.num_rows} labelled answers of version {package.version or '(unpublished)'} "
        f"(left out: {unlabelled} without a label, {other} without a prediction or of another "
        f"version, {window.failed} failed requests)"
    )
    return Reason("rows", "labelled", labelled.num_rows, None, True, why)


def _metrics(rows: pa.Table, label: str, task: str, threshold: float) -> dict[str, Metric]:
    if task == "multiclass":
        both = pa.chunked_array(texts(rows, label).chunks + texts(rows, PREDICTION).chunks)
        encoded = both.combine_chunks().dictionary_encode()
        codes = encoded.indices.to_numpy().astype(np.int64)
        return multiclass_metrics(
            codes[: rows.num_rows], codes[rows.num_rows :], len(encoded.dictionary)
        )
    labels, predictions = numbers(rows, label), numbers(rows, PREDICTION)
    if task == "regression":
        return regression_metrics(labels, predictions)
    _check_binary(labels, predictions, label)
    return binary_metrics(labels, predictions, threshold)


def _check_binary(labels: Numbers, predictions: Numbers, label: str) -> None:
    strange = labels[(labels != 0) & (labels != 1)]
    if len(strange):
        raise InputError(
            f"Label {label!r} of a binary model holds {strange[0]:g}; use true/false or 1/0."
        )
    if predictions.min() < 0 or predictions.max() > 1:
        raise InputError("Predictions of a binary model are probabilities between 0 and 1.")


def _judge(
    estimates: dict[str, Estimate],
    release: dict[str, Estimate],
    limits: dict[str, dict[str, float]],
) -> tuple[str, list[Reason]]:
    """Returns the outcome and its checks; a failure outweighs what could not be measured."""
    reasons: list[Reason] = []
    outcomes = set()
    for metric, of_metric in limits.items():
        for limit, threshold in of_metric.items():
            outcome, reason = _check(
                metric, limit, threshold, estimates.get(metric), release.get(metric)
            )
            outcomes.add(outcome)
            reasons.append(reason)
    return next(o for o in (FAIL, NO_DATA, NO_BASELINE, PASS) if o in outcomes), reasons


def _check(
    metric: str,
    limit: str,
    threshold: float,
    now: Estimate | None,
    before: Estimate | None,
) -> tuple[str, Reason]:
    if now is None:
        why = f"{metric} is undefined: the labels hold a single class"
        return NO_DATA, Reason(limit, metric, None, threshold, False, why)
    if limit in ("minimum", "maximum"):
        passed = now.value >= threshold if limit == "minimum" else now.value <= threshold
        why = f"{metric} is {now}, {limit} {threshold:g}"
        return PASS if passed else FAIL, Reason(limit, metric, now.value, threshold, passed, why)
    if before is None:
        why = f"{metric} is {now.value:.4g}; the model was released without this metric"
        return NO_BASELINE, Reason(limit, metric, now.value, threshold, False, why)
    drop, least = _drop(metric, now, before)
    size, allowed = f"{abs(drop):.3g}", f"{threshold:g}"
    if limit == "maximum_relative_drop" and before.value:
        drop, least = drop / abs(before.value), least / abs(before.value)
        size, allowed = f"{abs(drop):.1%}", f"{100 * threshold:g}%"
    passed = not (drop > threshold and least > 0)
    doubt = "; the interval includes no change" if drop > threshold and passed else ""
    change = f"worse by {size}" if drop > 0 else f"better by {size}" if drop else "as good"
    why = f"{metric} is {now}, at release {before.value:.4g}: {change}, allowed {allowed}{doubt}"
    return PASS if passed else FAIL, Reason(limit, metric, drop, threshold, passed, why)


def _drop(metric: str, now: Estimate, before: Estimate) -> tuple[float, float]:
    """Returns how much worse a metric became, and the lower bound of that.

    The bound joins the two intervals as in Zou and Donner (2008), which needs no symmetry.
    """
    if metric in HIGHER_IS_BETTER:
        drop = before.value - now.value
        return drop, drop - math.hypot(before.value - before.low, now.high - now.value)
    drop = now.value - before.value
    return drop, drop - math.hypot(now.value - now.low, before.high - before.value)


def _expectation(expected: dict[str, float]) -> list[Reason]:
    if "auc" not in expected:
        return []
    why = f"without labels, AUC is estimated at {expected['auc']:.3g} (if still calibrated)"
    return [Reason("estimate", "auc", expected["auc"], None, True, why)]


def _logged(estimates: dict[str, Estimate], expected: dict[str, float]) -> dict[str, float]:
    logged: dict[str, float] = {}
    for name, found in estimates.items():
        logged |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return logged | {f"estimated_{name}": value for name, value in expected.items()}
