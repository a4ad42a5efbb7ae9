# SPDX-License-Identifier: Apache-2.0
"""The model card: what the model is, on what it was judged, and how well it does."""

import html
from dataclasses import dataclass
from typing import Any

import numpy as np

from kfloop.components.contracts.charts import COLOURS, Range, Series, line_chart
from kfloop.components.contracts.decision import STYLE
from kfloop.components.contracts.metrics import MAIN_METRIC
from kfloop.components.contracts.model_package import ModelPackage
from kfloop.components.evaluation.curves import (
    BinaryCurves,
    ClassCurves,
    Point,
    regression_calibration,
)
from kfloop.components.evaluation.plots import confusion_table, importance_chart, interval_chart
from kfloop.components.evaluation.tables import estimate_text, number_text, table

_UNIT = Range(0.0, 1.0)
_IDEAL = Series("", [(0.0, 0.0), (1.0, 1.0)], dashed=True)
# More lines than this in a chart cannot be told apart.
_LINES = 4
_SLICE_METRICS = {
    "binary": ("auc", "pr_auc", "log_loss", "ece"),
    "multiclass": ("macro_auc", "accuracy", "macro_f1", "log_loss", "ece"),
    "regression": ("rmse", "mae", "mean_error"),
}
_CARD_STYLE = """<style>
td,th{white-space:nowrap} td.wide,details{white-space:normal} details{max-width:60rem}
small{color:#5b6474} .matrix td{text-align:right}
figure{display:inline-block;margin:0 1rem 0 0;vertical-align:top}
figcaption{font-size:12px;color:#5b6474;max-width:380px}
</style>"""


@dataclass
class Card:
    """What the model card shows; see `evaluate.Evaluated` for its parts."""

    package: ModelPackage
    document: dict[str, Any]
    labels: np.ndarray
    outputs: np.ndarray
    curves: BinaryCurves | ClassCurves | None


def model_card(card: Card) -> str:
    """Returns a self-contained HTML page."""
    package, document = card.package, card.document
    title = f"{package.name}: evaluation"
    metric = MAIN_METRIC[package.task]
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<title>{html.escape(title)}</title>{STYLE}{_CARD_STYLE}
<h1>{html.escape(title)}</h1>
<p>Predicts <b>{html.escape(package.label)}</b> ({package.task}). {_headline(document, metric)}</p>
{_facts(package, document)}
<h2>Metrics, with 95 % intervals</h2>{_metric_table(document)}
{_class_table(document)}
<h2>Curves</h2>{_charts(card)}
{_confusion(document)}
{_slices(document, metric)}
{_fairness_tables(document)}
{_importance(document)}
<h2>Features</h2>{_features(package)}
</html>
"""


def _headline(document: dict[str, Any], metric: str) -> str:
    entry = document["metrics"][metric]
    if entry["value"] is None:
        return f"Its {metric} is unknown: {html.escape(entry['why'])}."
    return f"Its {metric} on {document['rows']:,} rows is <b>{estimate_text(entry)}</b>."


def _facts(package: ModelPackage, document: dict[str, Any]) -> str:
    trained, judged = package.training_window, document["window"]
    rows = [
        ("trained on", f"{_count(trained.get('rows'))} rows{_span(trained)}"),
        ("judged on", f"{document['rows']:,} rows{_span(judged)}"),
        ("feature service", package.feature_service or "none"),
        ("training data", package.dataset_fingerprint),
        ("evaluation data", document["dataset_fingerprint"]),
        ("schema", package.schema_fingerprint),
        ("code", package.git_commit or "unknown commit"),
        ("framework", ", ".join(f"{name} {value}" for name, value in package.framework.items())),
    ]
    if document["threshold"] is not None:
        rule = f", chosen by {document['threshold_by']}" if document["threshold_by"] else ""
        rows.append(("positive from", f"probability {document['threshold']:.4g}{rule}"))
    if document["latency"]:
        latency = document["latency"]
        rows.append(
            (
                "takes",
                f"{latency['row_ms']:.3g} ms for a row and {latency['batch_ms']:.3g} ms for "
                f"{latency['batch_rows']} rows, on the machine of this step",
            )
        )
    return table([], [list(row) for row in rows])


def _features(package: ModelPackage) -> str:
    told = ", ".join(f"{item.name} ({item.type})" for item in package.features)
    return f"<p>{html.escape(told)}</p>"


def _count(rows: Any) -> str:
    return f"{rows:,.0f}" if isinstance(rows, int | float) else "?"


def _span(window: dict[str, Any]) -> str:
    if not window.get("since"):
        return ""
    since, until = (str(window[key])[:16].replace("T", " ") for key in ("since", "until"))
    return f", {since} to {until}"


def _metric_table(document: dict[str, Any]) -> str:
    rows = []
    for name, entry in document["metrics"].items():
        trivial = document["trivial"].get(name)
        note = f"{trivial:.4g} without any feature" if trivial is not None else ""
        rows.append([name, estimate_text(entry), entry.get("why", note)])
    return table(["metric", "value (95 % interval)", ""], rows)


def _class_table(document: dict[str, Any]) -> str:
    if "classes" not in document:
        return ""
    names = ("auc", "pr_auc", "precision", "recall")
    rows = [
        [entry["class"], f"{entry['rows']:,}", *(number_text(entry[name]) for name in names)]
        for entry in document["classes"]
    ]
    return "<h2>Classes, each against the rest</h2>" + table(["class", "rows", *names], rows)


def _slices(document: dict[str, Any], metric: str) -> str:
    if not document["slices"]:
        return ""
    names = _SLICE_METRICS[document["task"]]
    rows = []
    for part in document["slices"]:
        cells = [estimate_text(part["metrics"].get(name)) for name in names]
        whys = {entry["why"] for entry in part["metrics"].values() if "why" in entry}
        why = part.get("why", "; ".join(sorted(whys)))
        rows.append([part["slice"], f"{part['rows']:,}", *cells, why])
    chart = interval_chart(metric, document)
    return f"<h2>Slices: {metric}</h2>{chart}" + table(["slice", "rows", *names, ""], rows)


def _fairness_tables(document: dict[str, Any]) -> str:
    parts = []
    for column, found in document["fairness"].items():
        names = list(found["gaps"])
        rows = [
            [
                group["group"],
                f"{group['rows']:,}",
                *(number_text(group.get(name)) for name in names),
                group.get("why", ""),
            ]
            for group in found["groups"]
        ]
        rows.append(["gap", "", *(number_text(found["gaps"][name]) for name in names), ""])
        header = ["group", "rows", *(name.replace("_", " ") for name in names), ""]
        parts.append(f"<h2>Groups of {html.escape(column)}</h2>" + table(header, rows))
    return "".join(parts)


def _importance(document: dict[str, Any]) -> str:
    found = document["importance"]
    if not found:
        return ""
    title = f"Loss of {found['metric']} when one feature is shuffled, on {found['rows']:,} rows"
    return f"<h2>{title}</h2>{importance_chart(found)}"


def _confusion(document: dict[str, Any]) -> str:
    if "confusion" not in document:
        return ""
    found = document["confusion"]
    return "<h2>Confusion matrix</h2>" + confusion_table(found["classes"], found["rows"])


def _charts(card: Card) -> str:
    if not card.document["rows"]:
        return "<p>The dataset has no rows.</p>"
    if isinstance(card.curves, BinaryCurves):
        return _binary_charts(card.curves)
    if isinstance(card.curves, ClassCurves):
        return _class_charts(card.curves, card.document)
    points = regression_calibration(card.labels, card.outputs)
    low, high = min(map(min, points)), max(map(max, points))
    ideal = Series("", [(low, low), (high, high)], dashed=True)
    means = Series("", points, marks=True)
    return _figure(
        line_chart("Predicted and actual", "mean prediction", "mean label", [means, ideal]),
        "Tenths of the rows, ordered by prediction; the dashed line is perfect.",
    )


def _binary_charts(curves: BinaryCurves) -> str:
    calibration = _calibration(curves.calibration, "share of positives")
    if not curves.threshold:
        return (
            calibration + "<p>No ROC and precision-recall curves: the label has only one value.</p>"
        )
    roc = Series("", _roc(curves))
    precision = Series("", curves.precision_recall)
    return (
        _figure(_rates_chart([roc]), "The dashed line is guessing.")
        + _figure(_precision_chart([precision]), "From the surest calls (left) to all (right).")
        + calibration
    )


def _class_charts(curves: ClassCurves, document: dict[str, Any]) -> str:
    accuracy = _calibration(curves.pooled.calibration, "share that is right")
    if not curves.macro_roc:
        return accuracy + "<p>No ROC and precision-recall curves: there is only one class.</p>"
    frequent = sorted(document["classes"], key=lambda entry: -entry["rows"])
    names = [entry["class"] for entry in frequent if entry["class"] in curves.classes][:_LINES]
    shown = [(name, curves.classes[name]) for name in names if curves.classes[name].threshold]
    roc = [Series("", _roc(each)) for _, each in shown]
    precision = [Series("", each.precision_recall) for _, each in shown]
    mean = [Series("", curves.macro_roc, dashed=True)]
    mean_precision = [Series("", curves.macro_precision_recall, dashed=True)]
    legend = ", ".join(
        f'<span style="color:{colour}">{html.escape(name)}</span>'
        for (name, _), colour in zip(shown, COLOURS, strict=False)
    )
    drawn = sum(1 for each in curves.classes.values() if each.threshold)
    absent = f"; {len(frequent) - drawn} without rows have none" if drawn < len(frequent) else ""
    told = f"Each class against the rest: {legend}; dashed: the mean of {drawn}{absent}."
    return (
        _figure(_rates_chart([*roc, *mean], guessing=False), told)
        + _figure(_precision_chart([*precision, *mean_precision]), told)
        + accuracy
    )


def _calibration(points: list[Point], share: str) -> str:
    line = Series("", points, marks=True)
    chart = line_chart("Calibration", "mean probability", share, [line, _IDEAL], _UNIT, _UNIT)
    return _figure(chart, "On the dashed line, a probability is what it says.")


def _rates_chart(lines: list[Series], guessing: bool = True) -> str:
    drawn = [*lines, _IDEAL] if guessing else lines
    return line_chart("ROC", "false positive rate", "true positive rate", drawn, _UNIT, _UNIT)


def _precision_chart(lines: list[Series]) -> str:
    return line_chart("Precision and recall", "recall", "precision", lines, _UNIT, _UNIT)


def _roc(curves: BinaryCurves) -> list[Point]:
    return list(zip(curves.false_positive_rate, curves.true_positive_rate, strict=True))


def _figure(chart: str, told: str) -> str:
    return f"<figure>{chart}<figcaption>{told}</figcaption></figure>"
