# SPDX-License-Identifier: Apache-2.0
"""How far each column was from the reference, window by window."""

import html
from dataclasses import asdict, dataclass

from kfloop.components.contracts.errors import InputError
from kfloop.components.monitoring.compare import Comparison
from kfloop.components.monitoring.json_lines import open_json_lines

SHOWN_WINDOWS = 12
SHOWN_COLUMNS = 20
STYLE = """<style>
.trend td{text-align:right;padding:.15rem .5rem;border:1px solid #fff}
.trend td.drifted{font-weight:700}
</style>"""


@dataclass(frozen=True)
class Seen:
    """One window.

    Attributes:
        until: Its newest event time, ISO 8601.
        model_version: The model it was compared with.
        run: The pipeline run; a retry replaces its line.
        strengths: Largest effect as a multiple of its threshold, by column.
        drifted: Columns that drifted.
    """

    until: str
    model_version: str
    run: str
    strengths: dict[str, float]
    drifted: list[str]


def remember(
    uri: str, until: str, model_version: str, run: str, comparisons: list[Comparison]
) -> list[Seen]:
    """Adds a window to the history and returns the newest ones, oldest first.

    A window that is looked at again, by a retry or by another run, replaces what was there.

    Raises:
        InputError: If the file is not a drift history.
    """
    strengths = {one.name: round(one.strength, 4) for one in comparisons}
    drifted = [one.name for one in comparisons if one.drifted]
    now = Seen(until, model_version, run, strengths, drifted)
    with open_json_lines(uri, "drift history") as lines:
        try:
            before = [Seen(**document) for document in lines.documents]
        except TypeError as error:
            raise InputError(
                f"The drift history {uri} cannot be read: {error}; give another file."
            ) from error
        kept = [one for one in before if one.until != until and (not run or one.run != run)]
        seen = sorted([*kept, now], key=lambda one: one.until)
        lines.write([asdict(one) for one in seen])
    return seen[-SHOWN_WINDOWS:]


def trend(seen: list[Seen]) -> str:
    """Returns the HTML of a table, columns by windows; nothing for a single window."""
    if len(seen) < 2:
        return ""
    latest = seen[-1].strengths
    names = sorted(latest, key=lambda name: -latest[name])[:SHOWN_COLUMNS]
    heads = "".join(f"<th>{html.escape(one.until[:10])}" + _version(one) for one in seen)
    rows = "".join(
        f"<tr><th>{html.escape(name)}" + "".join(_cell(one, name) for one in seen) + "</tr>"
        for name in names
    )
    return (
        f"{STYLE}<h2>Windows so far</h2><p>The strongest effect of each column as a multiple of "
        "its threshold; bold where it drifted. A new model version has a new reference.</p>"
        f'<table class="trend"><tr><th>{heads}</tr>{rows}</table>'
    )


def _cell(seen: Seen, name: str) -> str:
    if name not in seen.strengths:
        return "<td>–"
    strength = seen.strengths[name]
    # Red deepens up to three times the threshold.
    depth = min(strength / 3, 1) * 0.75
    drifted = ' class="drifted"' if name in seen.drifted else ""
    return f'<td{drifted} style="background:rgba(209,84,44,{depth:.2f})">{strength:.2f}'


def _version(seen: Seen) -> str:
    return f"<br>version {html.escape(seen.model_version)}" if seen.model_version else ""
