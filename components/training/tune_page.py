# SPDX-License-Identifier: Apache-2.0
"""The page of a study: its history, what mattered, and the best trial."""

import html
import math
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from kfloop.components.contracts.charts import Series, line_chart
from kfloop.components.contracts.decision import STYLE
from kfloop.components.training.best_parameters import BestParameters
from kfloop.components.training.search_space import Dimension, Range
from kfloop.components.training.study import counts, importances, read_values, trials

WIDTH, HEIGHT, TOP, BOTTOM, SIDE = 900, 300, 30, 24, 60
_MOST_LINES = 300


def tune_page(study: optuna.Study, space: list[Dimension], best: BestParameters) -> str:
    """Returns a self-contained HTML page about a study with at least one completed trial."""
    every = trials(study)
    done = [trial for trial in every if trial.state is TrialState.COMPLETE]
    number = counts(study)
    best_values = best.hyperparameters | best.arguments
    kept = "".join(f"<tr><td>{_text(n)}<td>{_show(v)}" for n, v in best_values.items())
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<title>{_text(best.study)}: tuning</title>{STYLE}
<h1>{_text(best.study)}</h1>
<p>{number["trials_complete"]} trials completed, {number["trials_pruned"]} were stopped early,
{number["trials_failed"]} failed. The best is trial {best.trial}:
{_text(best.metric)} {_show(best.value)} ({_text(best.direction)}).</p>
<table>{kept}</table>
{_history(done, best)}
{_parallel(done, space, best)}
{_importances(importances(study))}
<h2>Trials</h2>{_table(every, space, best)}</html>
"""


def _history(done: list[FrozenTrial], best: BestParameters) -> str:
    better = max if best.direction == "maximize" else min
    so_far: list[float] = []
    for trial in done:
        so_far.append(better([*so_far[-1:], float(trial.value or 0.0)]))
    points = [(float(trial.number), float(trial.value or 0.0)) for trial in done]
    lines = [
        Series("best so far", [(x, y) for (x, _), y in zip(points, so_far, strict=True)]),
        Series("trial", points, marks=True, dashed=True),
    ]
    return line_chart("History", "trial", best.metric, lines)


def _parallel(done: list[FrozenTrial], space: list[Dimension], best: BestParameters) -> str:
    """Returns one line per completed trial across an axis per parameter, the better the darker."""
    drawn = done[-_MOST_LINES:]
    axes = [*(each.name for each in space), best.metric]
    values = [float(trial.value or 0.0) for trial in drawn]
    apart = (WIDTH - 2 * SIDE) / (len(axes) - 1)
    parts = [
        f'<h2>Parameters</h2><svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img" aria-label="Trials by parameter" '
        'font-family="system-ui,sans-serif" font-size="11" fill="#5b6474">'
    ]
    for index, name in enumerate(axes):
        x = SIDE + index * apart
        low, high = _ends(space[index]) if index < len(space) else (min(values), max(values))
        ends = ((TOP - 16, name), (TOP - 3, _show(high)), (HEIGHT - BOTTOM + 14, _show(low)))
        parts.append(
            f'<line x1="{x:.0f}" x2="{x:.0f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#b9c0cc"/>'
        )
        parts += [
            f'<text x="{x:.0f}" y="{y}" text-anchor="middle">{_text(t)}</text>' for y, t in ends
        ]
    for trial in sorted(drawn, key=lambda trial: _good(float(trial.value or 0.0), values, best)):
        value = float(trial.value or 0.0)
        places = [_place(each, trial.params[each.name]) for each in space]
        places.append(_share(value, min(values), max(values)))
        line = " ".join(
            f"{SIDE + index * apart:.1f},{HEIGHT - BOTTOM - place * (HEIGHT - TOP - BOTTOM):.1f}"
            for index, place in enumerate(places)
        )
        is_best = trial.number == best.trial
        colour = "#c2571a" if is_best else "#1f5fbf"
        opacity = 1.0 if is_best else 0.15 + 0.6 * _good(value, values, best)
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" '
            f'stroke-width="{2.4 if is_best else 1.2}" opacity="{opacity:.2f}"/>'
        )
    return "".join(parts) + "</svg>"


def _good(value: float, values: list[float], best: BestParameters) -> float:
    share = _share(value, min(values), max(values))
    return share if best.direction == "maximize" else 1 - share


def _ends(dimension: Dimension) -> tuple[Any, Any]:
    if isinstance(dimension, Range):
        return dimension.low, dimension.high
    return dimension.options[0], dimension.options[-1]


def _place(dimension: Dimension, value: Any) -> float:
    if not isinstance(dimension, Range):
        return _share(dimension.options.index(value), 0, len(dimension.options) - 1)
    if dimension.log:
        return _share(math.log(value), math.log(dimension.low), math.log(dimension.high))
    return _share(value, dimension.low, dimension.high)


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _importances(found: Mapping[str, float]) -> str:
    if not found:
        return ""
    rows = "".join(
        f'<tr><td>{_text(name)}<td>{value:.2f}<td><div style="background:#1f5fbf;height:10px;'
        f'width:{200 * value:.0f}px"></div>'
        for name, value in found.items()
    )
    return f"<h2>What mattered</h2><p>Share of each parameter (PED-ANOVA).</p><table>{rows}</table>"


def _table(every: list[FrozenTrial], space: list[Dimension], best: BestParameters) -> str:
    head = "".join(f"<th>{_text(each.name)}" for each in space)
    rows = ""
    for trial in every:
        values = read_values(space, trial.params)
        cells = "".join(f"<td>{_show(values.get(each.name, ''))}" for each in space)
        ended = _show(trial.value) if trial.value is not None else ""
        reason = trial.user_attrs.get("reason", "")
        rows += (
            f"<tr><td>{trial.number}<td>{trial.state.name.lower()}"
            f"<td>{ended}<td>{_show(trial.user_attrs.get('epochs', ''))}{cells}<td>{_text(reason)}"
        )
    return (
        f"<table><tr><th>trial<th>state<th>{_text(best.metric)}<th>epochs{head}<th>{rows}</table>"
    )


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _text(str(value))


def _text(text: str) -> str:
    return html.escape(text)
