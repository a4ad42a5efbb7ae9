# SPDX-License-Identifier: Apache-2.0
"""Tables of the pages that this family writes."""

import html
from typing import Any


def estimate_text(entry: dict[str, Any] | None) -> str:
    """Returns a metric as `0.71 (0.69 to 0.73)`, and – where it is undefined."""
    if entry is None or entry["value"] is None:
        return "–"
    if entry["low"] is None:
        return f"{entry['value']:.4g}"
    return f"{entry['value']:.4g} ({entry['low']:.4g} to {entry['high']:.4g})"


def number_text(value: float | None) -> str:
    """Returns a number with four digits, and – for None."""
    return "–" if value is None else f"{value:.4g}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Returns an HTML table of plain text."""
    head = "".join(f"<th>{html.escape(cell)}" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"
