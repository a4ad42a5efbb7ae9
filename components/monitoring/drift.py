# SPDX-License-Identifier: Apache-2.0
"""Has live traffic drifted from what the model was trained on?"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kfloop.components.contracts.dataset import read_dataset, read_schema
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
from kfloop.components.contracts.model_package import PREDICTION, Feature, ModelPackage
from kfloop.components.contracts.package_storage import read_package
from kfloop.components.monitoring import drift_page
from kfloop.components.monitoring.compare import FLOORS, Comparison, Rules, compare
from kfloop.components.monitoring.multivariate import classifier_check
from kfloop.components.monitoring.package import read_reference
from kfloop.components.monitoring.trend import remember, trend
from kfloop.components.monitoring.window import Window, answered, of_version, sample, texts

GATE = "drift"


@dataclass(frozen=True)
class Settings:
    """What `detect_drift` can be told.

    Attributes:
        minimum_rows: With fewer answered requests the outcome is `no_data`; with fewer rows in the
            reference it is `no_baseline`.
        maximum_rows: More rows than this are sampled, in the window and in the reference.
        minimum_drifted: So many drifted features make the decision `fail`. A drifted prediction
            does so alone.
        thresholds: Floors of the effect sizes that differ from `compare.FLOORS`.
        significance: See `compare.Rules`.
        calibration_splits: See `compare.Rules`.
        calibration_factor: See `compare.Rules`.
        slices: Columns whose every value is compared with the reference's rows of that value.
        multivariate: Whether a classifier also tries to tell the window from the reference.
        seed: Of sampling and calibration.
    """

    minimum_rows: int = 200
    maximum_rows: int = 20_000
    minimum_drifted: int = 1
    thresholds: dict[str, float] = field(default_factory=dict)
    significance: float = 0.01
    calibration_splits: int = 20
    calibration_factor: float = 1.5
    slices: list[str] = field(default_factory=list)
    multivariate: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.thresholds) - set(FLOORS))
        if unknown:
            raise InputError(
                f"The drift threshold {unknown[0]!r} is not known; there are {', '.join(FLOORS)}."
            )
        if not 0 < self.significance < 1:
            raise InputError(f"significance is {self.significance}; it lies between 0 and 1.")
        if self.minimum_drifted < 1 or self.minimum_rows < 1:
            raise InputError("minimum_drifted and minimum_rows are at least 1.")

    @property
    def rules(self) -> Rules:
        """How columns are judged."""
        return Rules(
            self.significance,
            FLOORS | self.thresholds,
            self.calibration_splits,
            self.calibration_factor,
            self.seed,
        )


@dataclass
class Report:
    """The outcome of drift detection.

    Attributes:
        decision: `pass` is no drift, `fail` is drift.
        comparisons: The columns, prediction first, then by effect.
        metadata: For the decision artifact: the decision's own, `rows`, `failed_requests`,
            `since` and `until` (ISO 8601, of the window's event times) and `drifted` (columns).
    """

    decision: Decision
    comparisons: list[Comparison]
    metadata: dict[str, Any]


def detect_drift(
    current: str | Path,
    model_uri: str,
    decision: str | Path,
    page: str | Path,
    history_uri: str = "",
    run: str = "",
    **settings: Any,
) -> Report:
    """Compares a window of the inference log with the reference inside the model package.

    Args:
        current: Dataset of inference-log rows, or of any rows with the model's features.
        model_uri: Published model package.
        decision: Where the decision is written.
        page: Where the HTML page is written.
        history_uri: File (path or file:// URI) that remembers the windows, for the trend on the
            page; empty shows this window alone.
        run: Name of the pipeline run; a retry under the same name replaces its window.
        **settings: See `Settings`.

    Raises:
        InputError: If a setting, the package or the window cannot be used.
    """
    chosen = Settings(**settings)
    package = read_package(model_uri)
    window = answered(_read(current, package, chosen.slices))
    report = _report(window, read_reference(model_uri), package, chosen)
    report.metadata = decision_metadata(report.decision) | {
        "rows": window.rows.num_rows,
        "failed_requests": window.failed,
        "since": window.since,
        "until": window.until,
        "drifted": [c.name for c in report.comparisons if c.drifted],
    }
    write_decision(report.decision, decision)
    extra = drift_page.distributions(report.comparisons)
    if report.comparisons and history_uri:
        version = package.version
        seen = remember(history_uri, window.until, version, run, report.comparisons)
        extra = trend(seen) + extra
    write_text(page, render(report.decision, extra))
    print(report.decision.summary, flush=True)
    return report


def _read(current: str | Path, package: ModelPackage, slices: list[str]) -> pa.Table:
    present = read_schema(current).names
    if not set(package.feature_names) & set(present):
        raise InputError(
            f"{current} has none of the model's features ({', '.join(package.feature_names)}); "
            f"it has {', '.join(present)}."
        )
    unknown = [column for column in slices if column not in present]
    if unknown:
        raise InputError(f"Slice column {unknown[0]!r} is not in the window {current}.")
    wanted = {*package.feature_names, PREDICTION, STATUS, EVENT_TIME, MODEL_VERSION, *slices}
    return read_dataset(current, [column for column in present if column in wanted])


def _report(
    window: Window, reference: pa.Table | None, package: ModelPackage, settings: Settings
) -> Report:
    needed = settings.minimum_rows
    if window.rows.num_rows < needed:
        rows = window.rows.num_rows
        why = (
            f"the window has {rows} answered requests and {window.failed} failed ones; "
            f"at least {needed} answered ones are needed"
        )
        reason = Reason("minimum_rows", "window", rows, needed, False, why)
        return Report(Decision(GATE, NO_DATA, [reason]), [], {})
    if reference is None or reference.num_rows < needed:
        rows = 0 if reference is None else reference.num_rows
        why = f"the model's reference has {rows} rows; at least {needed} are needed"
        reason = Reason("minimum_rows", "reference", rows, needed, False, why)
        return Report(Decision(GATE, NO_BASELINE, [reason]), [], {})
    return _compare(window, reference, package, settings)


def _compare(
    window: Window, reference: pa.Table, package: ModelPackage, settings: Settings
) -> Report:
    rules = settings.rules
    reference = sample(reference, settings.maximum_rows, settings.seed)
    rows = sample(window.rows, settings.maximum_rows, settings.seed)
    features = compare(reference, rows, package.features, rules)
    drifted = [comparison.name for comparison in features if comparison.drifted]
    summary = Reason(
        "drifted_features",
        "features",
        len(drifted),
        settings.minimum_drifted,
        len(drifted) < settings.minimum_drifted,
        f"{len(drifted)} of {len(features)} features drifted"
        + (f": {', '.join(drifted[:5])}{', …' if len(drifted) > 5 else ''}" if drifted else ""),
    )
    prediction, prediction_reasons = _prediction(window.rows, reference, package, settings)
    deciding = [summary, *prediction_reasons]
    if settings.multivariate:
        deciding.append(
            classifier_check(
                reference, rows, package.features, settings.significance, settings.seed
            )
        )
    for column in settings.slices:
        deciding += _slices(column, reference, rows, package, settings)
    outcome = PASS if all(reason.passed for reason in deciding) else FAIL
    reasons = deciding + [reason for comparison in features for reason in comparison.reasons]
    if window.failed:
        why = f"{window.failed} failed requests were left out"
        reasons.append(Reason("failed_requests", "rows", window.failed, None, True, why))
    baseline = (
        f"{package.name} version {package.version or '(unpublished)'}: "
        f"{reference.num_rows} rows of its training data"
    )
    decision = Decision(GATE, outcome, reasons, baseline=baseline)
    return Report(decision, prediction + features, {})


def _prediction(
    rows: pa.Table, reference: pa.Table, package: ModelPackage, settings: Settings
) -> tuple[list[Comparison], list[Reason]]:
    """Compares what this model answered; other versions answer differently without any drift."""
    own = of_version(rows, package.version)
    if PREDICTION not in rows.column_names or own.num_rows < settings.minimum_rows:
        count = own.num_rows if PREDICTION in rows.column_names else 0
        why = f"prediction: not compared, the window has {count} answers of this model version"
        return [], [Reason("minimum_rows", PREDICTION, count, settings.minimum_rows, True, why)]
    kind = "string" if package.task == "multiclass" else "float"
    own = sample(own, settings.maximum_rows, settings.seed)
    comparisons = compare(reference, own, [Feature(PREDICTION, kind)], settings.rules)
    return comparisons, comparisons[0].reasons


def _slices(
    column: str,
    reference: pa.Table,
    rows: pa.Table,
    package: ModelPackage,
    settings: Settings,
) -> list[Reason]:
    """Compares each value's rows; only what drifted in a slice is listed one by one."""
    if column not in reference.column_names:
        raise InputError(
            f"Slice column {column!r} is not in the model's reference; "
            f"it has {', '.join(reference.column_names)}."
        )
    parts = []
    before, now = texts(reference, column), texts(rows, column)
    for value in pc.unique(before).drop_null().to_pylist():
        old, new = reference.filter(pc.equal(before, value)), rows.filter(pc.equal(now, value))
        if min(old.num_rows, new.num_rows) >= settings.minimum_rows:
            parts.append((f"{column}={value}", old, new))
    if not parts:
        why = f"{column}: no value has {settings.minimum_rows} rows in the reference and the window"
        return [Reason("minimum_rows", column, 0, settings.minimum_rows, True, why)]
    rules = settings.rules
    shared = Rules(
        rules.significance / len(parts),
        rules.floors,
        rules.calibration_splits,
        rules.calibration_factor,
        rules.seed,
    )
    reasons = []
    features = [feature for feature in package.features if feature.name != column]
    for name, old, new in parts:
        comparisons = compare(old, new, features, shared)
        failed = [r for c in comparisons for r in c.reasons if not r.passed]
        for reason in failed:
            reason.slice = name
            reason.why = f"{name}: {reason.why}"
        stable = Reason(
            "drifted_features", "features", 0, 1, True, f"{name}: no feature drifted", name
        )
        reasons += failed or [stable]
    return reasons
