# SPDX-License-Identifier: Apache-2.0
"""Judges a model package on a dataset: metrics with intervals, slices, curves, model card."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kfloop.components.contracts.dataset import describe, read_dataset, write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import write_json, write_text
from kfloop.components.contracts.metrics import METRICS, THRESHOLD_RULES
from kfloop.components.contracts.model_io import prediction_column
from kfloop.components.contracts.model_package import PREDICTION, ModelPackage, read_model_json
from kfloop.components.evaluation.bootstrap import Estimate, Part, estimate_parts
from kfloop.components.evaluation.curves import (
    MAXIMUM_CLASSES,
    BinaryCurves,
    ClassCurves,
    binary_curves,
    class_curves,
    class_table,
    confusion_matrix,
)
from kfloop.components.evaluation.fairness import fairness_gaps
from kfloop.components.evaluation.importance import permutation_importance
from kfloop.components.evaluation.labels import read_labels
from kfloop.components.evaluation.latency import measure_latency
from kfloop.components.evaluation.metrics import measure_of
from kfloop.components.evaluation.report import Card, model_card
from kfloop.components.evaluation.score import load_scorer
from kfloop.components.evaluation.slices import Slice, slice_entries, slices_of
from kfloop.components.evaluation.thresholds import best_threshold


@dataclass
class EvaluateSettings:
    """How to evaluate.

    Attributes:
        slices: Columns; the rows of each value are judged on their own too.
        minimum_slice_size: Slices with fewer rows are named, but not judged.
        threshold: Binary: rows with at least this probability are called positive.
        threshold_by: Binary: one of `THRESHOLD_RULES`: the threshold that is best by it on these
            rows, which flatters the metrics at the threshold a little; empty keeps `threshold`.
        resamples: Bootstrap resamples behind every interval; 0 for no intervals.
        seed: Of the resamples.
        groups: Binary: columns whose values must be treated alike; see `fairness_gaps`.
        false_positive_cost: What calling a negative row positive costs, for `cost`.
        false_negative_cost: What missing a positive row costs, in the same unit.
        importance_rows: Most rows for the permutation importance; 0 for none.
    """

    slices: list[str] = field(default_factory=list)
    minimum_slice_size: int = 100
    threshold: float = 0.5
    threshold_by: str = ""
    resamples: int = 200
    seed: int = 7
    groups: list[str] = field(default_factory=list)
    false_positive_cost: float = 1.0
    false_negative_cost: float = 1.0
    importance_rows: int = 2000


@dataclass
class Evaluated:
    """What an evaluation gives to the pipeline's artifacts.

    Attributes:
        document: The content of the evaluation file.
        scalars: Metric values and interval bounds, without the undefined ones.
        predictions: Metadata of the predictions dataset.
        curves: ROC and other curves of a binary or multiclass model, or None.
        confusion: Names of the classes and the matrix, or None (regression, too many classes).
    """

    document: dict[str, Any]
    scalars: dict[str, float]
    predictions: dict[str, Any] = field(default_factory=dict)
    curves: BinaryCurves | ClassCurves | None = None
    confusion: tuple[list[str], list[list[int]]] | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        """What the component writes into the evaluation artifact's metadata."""
        keys = ("task", "label", "rows", "dataset_fingerprint", "window")
        return {key: self.document[key] for key in keys} | self.scalars

    @property
    def classification_metadata(self) -> dict[str, Any]:
        """ROC curve and confusion matrix as the metadata of KFP's ClassificationMetrics.

        A multiclass model's ROC curve is the pooled one, since a mean of curves has no thresholds.
        """
        metadata: dict[str, Any] = {}
        roc = self.curves.pooled if isinstance(self.curves, ClassCurves) else self.curves
        if roc is not None and roc.threshold:
            metadata["confidenceMetrics"] = [
                {"confidenceThreshold": threshold, "falsePositiveRate": false, "recall": true}
                for threshold, false, true in zip(
                    roc.threshold,
                    roc.false_positive_rate,
                    roc.true_positive_rate,
                    strict=True,
                )
            ]
        if self.confusion is not None:
            names, matrix = self.confusion
            metadata["confusionMatrix"] = {
                "annotationSpecs": [{"displayName": name} for name in names],
                "rows": [{"row": counts} for counts in matrix],
            }
        return metadata


def evaluate(
    model: str | Path,
    dataset: str | Path,
    evaluation: str | Path,
    report: str | Path,
    predictions: str | Path,
    settings: EvaluateSettings,
) -> Evaluated:
    """Evaluates a model package and writes the evaluation, its report and the predictions.

    A dataset without rows gives an evaluation whose metrics are all undefined, which the gate
    answers with `no_data`.

    Args:
        model: Directory of the model package.
        dataset: Labelled rows with the model's features.
        evaluation: JSON file to write: `task`, `label`, `rows`, `metrics` ({name: {value, low,
            high}}, with `why` where undefined), `slices` (a list of {slice, rows, metrics}, with
            `why` where too small), `trivial` (what a model without features reaches), `threshold`,
            `threshold_by`, `fairness`, `latency`, `importance`, `classes` (multiclass: of each
            one), `curves` (see `curves`), `confusion`, `dataset_fingerprint`, `model`, `window`.
        report: HTML file of the model card to write.
        predictions: Dataset to write: `prediction` with label, entities and timestamp.
        settings: How to evaluate.

    Raises:
        InputError: If a setting, a column or the label cannot be used.
    """
    _check(settings)
    package = read_model_json(model)
    table = read_dataset(dataset)
    labels = read_labels(table, package)
    scorer = load_scorer(model, package)
    outputs = scorer(table).astype(np.float64)
    if not np.isfinite(outputs).all():
        raise InputError(
            f"The model {package.name!r} predicts NaN for {int((~np.isfinite(outputs)).sum())} "
            "values; train it again with a lower learning_rate."
        )
    threshold = _threshold(labels, outputs, package, settings)
    timestamp = package.timestamp if package.timestamp in table.column_names else ""
    data = describe(dataset, timestamp)
    document = {
        "task": package.task,
        "label": package.label,
        "rows": table.num_rows,
        **_judged(table, labels, outputs, package, threshold, settings),
        "minimum_slice_size": settings.minimum_slice_size,
        "trivial": _trivial(labels, package.task),
        "fairness": _fairness(table, labels, outputs, package, threshold, settings),
        "latency": measure_latency(scorer, table),
        "importance": permutation_importance(
            scorer, table, labels, package, settings.importance_rows, settings.seed
        ),
        "threshold": threshold,
        "threshold_by": _threshold_rule(settings) if threshold is not None else "",
        "dataset_fingerprint": data["fingerprint"],
        "window": {"since": data.get("since", ""), "until": data.get("until", "")},
        "model": {
            "name": package.name,
            "version": package.version,
            "dataset_fingerprint": package.dataset_fingerprint,
            "schema_fingerprint": package.schema_fingerprint,
            "training_window": package.training_window,
        },
    }
    result = Evaluated(document, _scalars(document["metrics"]))
    if table.num_rows:
        _add_curves(result, labels, outputs, package, threshold)
    write_json(evaluation, document)
    write_text(report, model_card(Card(package, document, labels, outputs, result.curves)))
    context = {package.label, package.timestamp, *package.entities} - {PREDICTION}
    kept = table.select([name for name in table.column_names if name in context])
    result.predictions = write_dataset(
        kept.append_column(PREDICTION, prediction_column(outputs, package)), predictions, timestamp
    )
    return result


def _check(settings: EvaluateSettings) -> None:
    if not 0 <= settings.threshold <= 1:
        raise InputError(f"threshold is {settings.threshold}; it must be between 0 and 1.")
    if settings.threshold_by not in ("", *THRESHOLD_RULES):
        raise InputError(
            f"threshold_by is {settings.threshold_by!r}; it must be empty or one of "
            f"{', '.join(THRESHOLD_RULES)}."
        )
    if min(settings.false_positive_cost, settings.false_negative_cost) <= 0:
        raise InputError("false_positive_cost and false_negative_cost must be above 0.")
    if settings.importance_rows < 0:
        raise InputError("importance_rows must be at least 0.")
    if settings.minimum_slice_size < 1 or settings.resamples < 0:
        raise InputError("minimum_slice_size must be at least 1 and resamples at least 0.")


def _threshold(
    labels: np.ndarray, outputs: np.ndarray, package: ModelPackage, settings: EvaluateSettings
) -> float | None:
    if package.task != "binary":
        return None
    if not settings.threshold_by or not len(labels):
        return settings.threshold
    costs = settings.false_positive_cost, settings.false_negative_cost
    return best_threshold(labels, outputs, settings.threshold_by, *costs)


def _threshold_rule(settings: EvaluateSettings) -> str:
    if settings.threshold_by != "cost":
        return settings.threshold_by
    return (
        f"cost, {settings.false_positive_cost:g} for a false positive and "
        f"{settings.false_negative_cost:g} for a false negative"
    )


def _judged(
    table: pa.Table,
    labels: np.ndarray,
    outputs: np.ndarray,
    package: ModelPackage,
    threshold: float | None,
    settings: EvaluateSettings,
) -> dict[str, Any]:
    """Returns the metrics of all rows and of every slice, from the same resamples."""
    parts = slices_of(table, settings.slices)
    judged = [part for part in parts if len(part.rows) >= settings.minimum_slice_size]
    everything = Slice("", np.arange(len(labels)))
    wanted: list[Part] = []
    for part in [everything, *judged] if len(labels) else []:
        measure = measure_of(package.task, labels[part.rows], outputs[part.rows], threshold or 0.0)
        wanted.append((measure, None if part is everything else part.rows))
    found = estimate_parts(wanted, len(labels), settings.resamples, settings.seed)
    metrics = [
        {name: _entry(each[name], labels[part.rows]) for name in METRICS[package.task]}
        for part, each in zip([everything, *judged], found, strict=False)
    ]
    nothing = {"value": None, "low": None, "high": None, "why": "the dataset has no rows"}
    of_slice = dict(zip((part.name for part in judged), metrics[1:], strict=True))
    slices = slice_entries(parts, of_slice, settings.minimum_slice_size)
    empty = {name: dict(nothing) for name in METRICS[package.task]}
    return {"metrics": metrics[0] if metrics else empty, "slices": slices}


def _entry(found: Estimate, labels: np.ndarray) -> dict[str, Any]:
    entry = asdict(found)
    if found.value is None:
        constant = (labels == labels[0]).all()
        entry["why"] = (
            f"the label is the same in all {len(labels)} rows"
            if constant
            else f"it is undefined for these {len(labels)} rows"
        )
    return entry


def _fairness(
    table: pa.Table,
    labels: np.ndarray,
    outputs: np.ndarray,
    package: ModelPackage,
    threshold: float | None,
    settings: EvaluateSettings,
) -> dict[str, Any]:
    if threshold is None:
        if settings.groups:
            raise InputError(f"groups need a binary model; this one is {package.task}.")
        return {}
    return fairness_gaps(
        table, labels, outputs, threshold, settings.groups, settings.minimum_slice_size
    )


def _trivial(labels: np.ndarray, task: str) -> dict[str, float]:
    """Returns what a model that knows nothing reaches: the bar when a gate has no thresholds."""
    if task == "binary":
        return {"auc": 0.5}
    if task == "multiclass":
        return {"macro_auc": 0.5}
    # Always predicting the mean errs by the standard deviation.
    return {"rmse": float(labels.std())} if len(labels) else {}


def _scalars(metrics: dict[str, dict[str, Any]]) -> dict[str, float]:
    scalars = {}
    for name, entry in metrics.items():
        for bound, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
            if entry[bound] is not None:
                scalars[name + suffix] = entry[bound]
    return scalars


def _add_curves(
    result: Evaluated,
    labels: np.ndarray,
    outputs: np.ndarray,
    package: ModelPackage,
    threshold: float | None,
) -> None:
    if package.task == "regression":
        return
    if package.task == "binary":
        result.curves = binary_curves(labels, outputs)
        called = (outputs >= threshold).astype(int)
        names = [f"not {package.label}", package.label]
        result.confusion = names, confusion_matrix(labels.astype(int), called, 2)
    else:
        result.curves = class_curves(labels, outputs, package.classes)
        result.document["classes"] = class_table(labels, outputs, package.classes)
        if len(package.classes) <= MAXIMUM_CLASSES:
            matrix = confusion_matrix(labels, outputs.argmax(axis=1), len(package.classes))
            result.confusion = package.classes, matrix
    result.document["curves"] = asdict(result.curves)
    if result.confusion:
        names, matrix = result.confusion
        result.document["confusion"] = {"classes": names, "rows": matrix}
