"""The training curves as a page."""

import html

from kfloop.components.contracts.charts import Series, line_chart
from kfloop.components.contracts.decision import STYLE
from kfloop.components.contracts.model_package import ModelPackage
from kfloop.components.training.fit import METRICS, FitResult


def curves_page(package: ModelPackage, result: FitResult) -> str:
    """Returns a self-contained HTML page: loss and metric per epoch, training and validation."""
    charts = ""
    for name, title in (("loss", "Loss"), (METRICS[package.task], METRICS[package.task])):
        if name not in result.epochs[0]:
            continue  # a model that came compiled has its own metrics
        lines = [
            Series(legend, [(i + 1, logs[key]) for i, logs in enumerate(result.epochs)], marks=True)
            for legend, key in (("training", name), ("validation", f"val_{name}"))
        ]
        charts += line_chart(title, "epoch", name, lines)
    kept = "".join(
        f"<tr><td>{html.escape(name)}<td>{value:.4f}" for name, value in package.metrics.items()
    )
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<title>{html.escape(package.name)}: training</title>{STYLE}
<h1>{html.escape(package.name)}: training curves</h1>
<p>{len(result.epochs)} epochs; the weights of epoch {result.best + 1} were kept, which has the
lowest validation loss.</p>
{charts}<table>{kept}</table></html>
"""
