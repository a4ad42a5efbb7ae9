# SPDX-License-Identifier: Apache-2.0
"""The training curves as a page."""

import html

from kfloop.components.contracts.charts import Series, line_chart
from kfloop.components.contracts.decision import STYLE
from kfloop.components.contracts.model_package import ModelPackage
from kfloop.components.training.fit import METRICS, FitResult


def curves_page(package: ModelPackage, result: FitResult) -> str:
    """Returns a self-contained HTML page: loss and metric per epoch, as curves and as a table."""
    charts = ""
    for name, title in (("loss", "Loss"), (METRICS[package.task], METRICS[package.task])):
        if name not in result.epochs[0]:
            continue  # a model that came compiled has its own metrics
        lines = [
            Series(legend, [(i + 1, logs[key]) for i, logs in enumerate(result.epochs)], marks=True)
            for legend, key in (("training", name), ("validation", f"val_{name}"))
        ]
        kept = result.best + 1
        ends = [value for line in lines for _, value in line.points]
        lines.append(Series("kept", [(kept, min(ends)), (kept, max(ends))], dashed=True))
        charts += line_chart(title, "epoch", name, lines)
    seconds = sum(logs["seconds"] for logs in result.epochs)
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<title>{html.escape(package.name)}: training</title>{STYLE}
<h1>{html.escape(package.name)}: training curves</h1>
<p>{len(result.epochs)} epochs in {seconds:,.0f} s with {html.escape(package.framework["backend"])}
on {html.escape(package.framework["trained_on"])}. The weights of epoch {result.best + 1} were kept,
which has the lowest validation loss.</p>
{charts}{_table(result)}</html>
"""


def _table(result: FitResult) -> str:
    names = [name for name in result.epochs[0] if name not in ("seconds", "examples_per_second")]
    head = "".join(f"<th>{html.escape(name)}" for name in names)
    rows = ""
    for number, logs in enumerate(result.epochs):
        cells = "".join(f"<td>{logs[name]:.4f}" for name in names)
        kept = " (kept)" if number == result.best else ""
        rows += (
            f"<tr><td>{number + 1}{kept}{cells}<td>{logs['seconds']:.1f}"
            f"<td>{logs['examples_per_second']:,.0f}"
        )
    return f"<table><tr><th>epoch{head}<th>seconds<th>examples/s{rows}</table>"
