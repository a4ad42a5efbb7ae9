# SPDX-License-Identifier: Apache-2.0
"""Compares a candidate with the champion on the same rows, by the paired bootstrap."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kfloop.components.contracts.dataset import describe, read_dataset
from kfloop.components.contracts.decision import (
    FAIL,
    NO_BASELINE,
    NO_DATA,
    PASS,
    Decision,
    Reason,
    render,
    write_decision,
)
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import write_json, write_text
from kfloop.components.contracts.metrics import MAIN_METRIC
from kfloop.components.contracts.model_package import ModelPackage, read_model_json
from kfloop.components.contracts.package_storage import package_directory
from kfloop.components.evaluation.bootstrap import Estimate, Part, estimate_parts
from kfloop.components.evaluation.labels import read_labels
from kfloop.components.evaluation.metrics import Measure, improvement_measure, measure_of
from kfloop.components.evaluation.slices import slice_entries, slices_of
from kfloop.components.evaluation.tables import estimate_text, number_text, table

CHECK = "not surely worse than the champion"


@dataclass
class CompareSettings:
    """How to compare.

    Attributes:
        metric: The metric that decides; empty for `MAIN_METRIC` of the task.
        tolerance: How much worse in that metric is always allowed, in its own unit.
        slices: Columns; the rows of each value are compared on their own too.
        minimum_slice_size: Slices with fewer rows are named, but not compared.
        threshold: Binary: rows with at least this probability are called positive, for both.
        resamples: Bootstrap resamples behind every interval.
        seed: Of the resamples.
    """

    metric: str = ""
    tolerance: float = 0.0
    slices: list[str] = field(default_factory=list)
    minimum_slice_size: int = 100
    threshold: float = 0.5
    resamples: int = 200
    seed: int = 7


def compare_models(
    model: str | Path,
    dataset: str | Path,
    champion_uri: str,
    comparison: str | Path,
    decision: str | Path,
    page: str | Path,
    settings: CompareSettings,
) -> Decision:
    """Scores both packages on the same rows and decides whether the candidate is surely worse.

    Each package is scored by its own graph (ONNX where it holds one) and reads the features that
    its own `model.json` names, so they need not have the same ones.

    Args:
        model: Directory of the candidate's package.
        dataset: Labelled rows that neither should have been trained on.
        champion_uri: Published package of the champion; empty when there is none.
        comparison: JSON file to write: `champion` (null without one), `metric`, `tolerance`,
            `rows`, `metrics` ({name: {candidate, champion, improvement: {value, low, high}}}; an
            improvement is positive when the candidate is better) and `slices` (a list of {slice,
            rows, metrics}).
        decision: Decision file to write: `fail` when the interval of the improvement lies below
            minus the tolerance, `no_baseline` without a champion or when it cannot be scored on
            these rows or was trained on some of them, `no_data` when the metric is undefined.
        page: HTML page of the decision to write.
        settings: How to compare.

    Raises:
        InputError: If a setting or the candidate cannot be used.
    """
    if settings.tolerance < 0 or settings.minimum_slice_size < 1 or settings.resamples < 1:
        raise InputError(
            "tolerance must be at least 0, minimum_slice_size and resamples at least 1."
        )
    package = read_model_json(model)
    metric = settings.metric or MAIN_METRIC[package.task]
    document: dict[str, Any] = {"champion": None, "metric": metric, "rows": 0}
    document["tolerance"] = settings.tolerance
    document |= {"metrics": {}, "slices": []}
    rows = read_dataset(dataset)
    since = str(describe(dataset, package.timestamp).get("since") or "")
    published = package_directory(champion_uri, True, "champion_uri") if champion_uri else None
    obstacle = _obstacle(published, package, rows, since)
    if obstacle or not published:
        document["why"] = obstacle
        result = Decision(
            "comparison", NO_BASELINE, [Reason(CHECK, metric, None, None, True, obstacle)]
        )
        details = ""
    else:
        champion = read_model_json(published)
        document["champion"] = {"model_uri": champion_uri, "version": champion.version}
        document |= _compare(model, package, published, champion, rows, settings)
        result = _decide(document, settings)
        details = _details(document)
    write_json(comparison, document)
    write_decision(result, decision)
    write_text(page, render(result, details))
    print(result.summary, flush=True)
    return result


def _obstacle(published: Path | None, package: ModelPackage, rows: pa.Table, since: str) -> str:
    """Returns why there is nothing to compare with; empty when there is."""
    if not published:
        return "there is no champion yet"
    champion = read_model_json(published)
    name = f"the champion {champion.name} {champion.version}"
    if (champion.task, champion.label) != (package.task, package.label):
        return f"{name} predicts {champion.label} ({champion.task}), which is something else"
    if set(champion.classes) != set(package.classes):
        return f"{name} knows other classes: {', '.join(champion.classes)}"
    missing = [feature for feature in champion.feature_names if feature not in rows.column_names]
    if missing:
        return f"{name} needs {', '.join(missing)}, which these rows do not have"
    learned_until = str(champion.training_window.get("until") or "")
    if since and learned_until and since <= learned_until:
        return f"{name} was trained on rows up to {learned_until}: it has seen some of these"
    return ""


def _compare(
    model: str | Path,
    package: ModelPackage,
    published: Path,
    champion: ModelPackage,
    rows: pa.Table,
    settings: CompareSettings,
) -> dict[str, Any]:
    # Slow to import, and not needed without a champion.
    from kfloop.components.evaluation.score import load_scorer

    labels = read_labels(rows, package)
    new = load_scorer(model, package)(rows).astype(np.float64)
    old = load_scorer(published, champion)(rows).astype(np.float64)
    for name, outputs in (("candidate", new), ("champion", old)):
        if not np.isfinite(outputs).all():
            raise InputError(f"The {name} predicts NaN for some rows; it cannot be compared.")
    if package.task == "multiclass":
        old = old[:, [champion.classes.index(name) for name in package.classes]]

    def pair(at: np.ndarray | slice) -> tuple[Measure, Measure]:
        return (
            measure_of(package.task, labels[at], new[at], settings.threshold),
            measure_of(package.task, labels[at], old[at], settings.threshold),
        )

    parts = slices_of(rows, settings.slices)
    judged = [part for part in parts if len(part.rows) >= settings.minimum_slice_size]
    pairs = [pair(slice(None)), *(pair(part.rows) for part in judged)] if rows.num_rows else []
    wanted: list[Part] = [
        (improvement_measure(*both), at)
        for both, at in zip(pairs, [None, *(part.rows for part in judged)], strict=False)
    ]
    improvements = estimate_parts(wanted, rows.num_rows, settings.resamples, settings.seed)
    metrics = list(map(_metrics, pairs, improvements))
    of_slice = dict(zip((part.name for part in judged), metrics[1:], strict=True))
    slices = slice_entries(parts, of_slice, settings.minimum_slice_size)
    return {"rows": rows.num_rows, "metrics": metrics[0] if metrics else {}, "slices": slices}


def _metrics(
    pair: tuple[Measure, Measure], improvements: dict[str, Estimate]
) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "candidate": _number(pair[0].values[name]),
            "champion": _number(pair[1].values[name]),
            "improvement": asdict(found),
        }
        for name, found in improvements.items()
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _decide(document: dict[str, Any], settings: CompareSettings) -> Decision:
    metric, champion = document["metric"], document["champion"]
    baseline = f"version {champion['version']} at {champion['model_uri']}"
    if document["rows"] and metric not in document["metrics"]:
        raise InputError(
            f"metric is {metric!r}, which is not a metric of this task; "
            f"those are {', '.join(document['metrics'])}."
        )
    entry = document["metrics"].get(metric)
    found = Estimate(**entry["improvement"]) if entry else Estimate(None, None, None)
    if found.value is None or found.high is None:
        why = f"{metric} is undefined on these {document['rows']} rows"
        reason = Reason(CHECK, metric, None, -settings.tolerance, False, why)
        return Decision("comparison", NO_DATA, [reason], baseline=baseline)
    passed = found.high >= -settings.tolerance
    why = (
        f"{metric} is {entry['candidate']:.4g} and the champion's {entry['champion']:.4g}: "
        f"better by {found.value:.4g} (95 % interval {found.low:.4g} to {found.high:.4g}), "
        f"{'not surely' if passed else 'surely'} worse"
    )
    if settings.tolerance:
        why += f" by more than {settings.tolerance:g}"
    reason = Reason(CHECK, metric, found.value, -settings.tolerance, passed, why)
    return Decision("comparison", PASS if passed else FAIL, [reason], baseline=baseline)


def _details(document: dict[str, Any]) -> str:
    parts = [f"<p>Both models on the same {document['rows']} rows.</p>"]
    header = ["metric", "candidate", "champion", "improvement (95 % interval)"]
    parts.append(table(header, [_line(name, e) for name, e in document["metrics"].items()]))
    if document["slices"]:
        metric = document["metric"]
        lines = [
            [part["slice"], str(part["rows"]), *_line("", part["metrics"].get(metric))[1:]]
            for part in document["slices"]
        ]
        parts.append(f"<h2>Slices: {metric}</h2>" + table(["slice", "rows", *header[1:]], lines))
    return "".join(parts)


def _line(name: str, entry: dict[str, Any] | None) -> list[str]:
    if entry is None:
        return [name, "–", "–", "–"]
    told = [number_text(entry[model]) for model in ("candidate", "champion")]
    return [name, *told, estimate_text(entry["improvement"])]
