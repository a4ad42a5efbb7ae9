"""The model card: what the model is, on what it was judged, and how well it does."""

import html
from dataclasses import dataclass
from typing import Any

import numpy as np

from kfloop.components.contracts.charts import Range, Series, line_chart
from kfloop.components.contracts.decision import STYLE
from kfloop.components.contracts.model_package import ModelPackage
from kfloop.components.evaluation.curves import BinaryCurves, regression_calibration
from kfloop.components.evaluation.importance import importance_chart
from kfloop.components.evaluation.tables import estimate_text, number_text, table

_UNIT = Range(0.0, 1.0)
_SLICE_METRICS = {
    "binary": ("auc", "pr_auc", "log_loss", "ece"),
    "multiclass": ("accuracy", "macro_f1", "log_loss"),
    "regression": ("rmse", "mae", "mean_error"),
}


@dataclass
class Card:
    """What the model card shows; see `evaluate.Evaluated` for its parts."""

    package: ModelPackage
    document: dict[str, Any]
    labels: np.ndarray
    outputs: np.ndarray
    curves: BinaryCurves | None
    confusion: tuple[list[str], list[list[int]]] | None


def model_card(card: Card) -> str:
    """Returns a self-contained HTML page."""
    title = f"{card.package.name}: evaluation"
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<title>{html.escape(title)}</title>{STYLE}
<h1>{html.escape(title)}</h1>
{_facts(card)}
<h2>Metrics, with 95 % intervals</h2>{_metric_table(card.document)}
{_slice_table(card.document)}
{_fairness_tables(card.document)}
<h2>Curves</h2>{_charts(card)}{_confusion_table(card)}
{importance_chart(card.document["importance"]) if card.document["importance"] else ""}
</html>
"""


def _facts(card: Card) -> str:
    package, document = card.package, card.document
    trained, judged = package.training_window, document["window"]
    rows = [
        ("predicts", f"{package.label} ({package.task})"),
        ("from", ", ".join(f"{item.name} ({item.type})" for item in package.features)),
        ("feature service", package.feature_service or "none"),
        ("trained on", f"{trained.get('rows', '?')} rows{_span(trained)}"),
        ("judged on", f"{document['rows']} rows{_span(judged)}"),
        ("training data", package.dataset_fingerprint),
        ("evaluation data", document["dataset_fingerprint"]),
        ("schema", package.schema_fingerprint),
        ("code", package.git_commit or "unknown commit"),
        ("framework", ", ".join(f"{name} {value}" for name, value in package.framework.items())),
    ]
    if document["threshold"] is not None:
        rows.append(("positive from", f"probability {document['threshold']:.4g}"))
    if document["latency"]:
        latency = document["latency"]
        rows.append(
            (
                "takes",
                f"{latency['row_ms']:.3g} ms for a row and {latency['batch_ms']:.3g} ms for "
                f"{latency['batch_rows']} rows, on the machine of this step",
            )
        )
    return table(["", ""], [list(row) for row in rows])


def _span(window: dict[str, Any]) -> str:
    if not window.get("since"):
        return ""
    return f", {window['since']} to {window['until']}"


def _metric_table(document: dict[str, Any]) -> str:
    rows = []
    for name, entry in document["metrics"].items():
        trivial = document["trivial"].get(name)
        note = f"{trivial:.4g} without any feature" if trivial is not None else ""
        rows.append([name, estimate_text(entry), entry.get("why", note)])
    return table(["metric", "value", ""], rows)


def _slice_table(document: dict[str, Any]) -> str:
    if not document["slices"]:
        return ""
    names = _SLICE_METRICS[document["task"]]
    rows = []
    for part in document["slices"]:
        cells = [estimate_text(part["metrics"].get(name)) for name in names]
        whys = {entry["why"] for entry in part["metrics"].values() if "why" in entry}
        rows.append([part["slice"], str(part["rows"]), *cells, part.get("why", "; ".join(whys))])
    return "<h2>Slices</h2>" + table(["slice", "rows", *names, ""], rows)


def _fairness_tables(document: dict[str, Any]) -> str:
    parts = []
    for column, found in document["fairness"].items():
        names = list(found["gaps"])
        rows = [
            [
                group["group"],
                str(group["rows"]),
                *(number_text(group.get(name)) for name in names),
                group.get("why", ""),
            ]
            for group in found["groups"]
        ]
        rows.append(["gap", "", *(number_text(found["gaps"][name]) for name in names), ""])
        header = ["group", "rows", *(name.replace("_", " ") for name in names), ""]
        parts.append(f"<h2>Groups of {html.escape(column)}</h2>" + table(header, rows))
    return "".join(parts)


def _charts(card: Card) -> str:
    if not card.document["rows"]:
        return "<p>The dataset has no rows.</p>"
    if card.curves is not None:
        return _binary_charts(card.curves)
    if card.package.task == "regression":
        points = regression_calibration(card.labels, card.outputs)
        low, high = min(map(min, points)), max(map(max, points))
        ideal = Series("", [(low, low), (high, high)], dashed=True)
        means = Series("tenths of the rows", points, marks=True)
        return line_chart("Predicted and actual", "mean prediction", "mean label", [means, ideal])
    return (
        "<p>No ROC curves: there would be one for each class. macro_auc is the mean area under "
        "them, each class against the rest.</p>"
    )


def _binary_charts(curves: BinaryCurves) -> str:
    ideal = Series("", [(0.0, 0.0), (1.0, 1.0)], dashed=True)
    calibration = Series("", curves.calibration, marks=True)
    charts = line_chart(
        "Calibration", "mean probability", "share of positives", [calibration, ideal], _UNIT, _UNIT
    )
    if not curves.threshold:
        return charts + "<p>No ROC and precision-recall curves: the label has only one value.</p>"
    points = list(zip(curves.false_positive_rate, curves.true_positive_rate, strict=True))
    roc = [Series("", points), ideal]
    precision_recall = [Series("", curves.precision_recall)]
    return (
        line_chart("ROC", "false positive rate", "true positive rate", roc, _UNIT, _UNIT)
        + line_chart("Precision", "recall", "precision", precision_recall, _UNIT, _UNIT)
        + charts
    )


def _confusion_table(card: Card) -> str:
    if card.confusion is None:
        return ""
    names, matrix = card.confusion
    rows = [[name, *map(str, counts)] for name, counts in zip(names, matrix, strict=True)]
    return "<h2>Confusion matrix</h2>" + table(["true, then called →", *names], rows)
