# SPDX-License-Identifier: Apache-2.0
"""The page of a proposed schema: every change with its reason, and the text difference."""

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kfloop.components.contracts.decision import STYLE

if TYPE_CHECKING:
    from kfloop.components.validation.schema_update import Change

_STYLE = """<style>
pre{background:#f6f7f9;padding:.8rem;overflow:auto} .added{color:#0a7d3c} .gone{color:#b3261e}
code{white-space:pre-wrap;word-break:break-word} .note{color:#5b6474}
</style>"""
LONGEST_LIST = 12


def render_changes(changes: Sequence["Change"], diff: list[str], rows: int) -> str:
    """Returns the page, self-contained."""
    count = f"{len(changes)} change{'' if len(changes) == 1 else 's'} proposed"
    title = count if changes else "nothing to change"
    told = (
        "Nothing has changed yet. Read each line; to accept them, keep the proposed file and give "
        "it as the schema (schema_uri). To accept some, edit it first."
        if changes
        else "The new data fits the schema in use."
    )
    table = "".join(
        f"<tr><td>{html.escape(each.column)}<td>{html.escape(each.effect)}"
        f"<td><code>{html.escape(each.field)}</code><td>{_values(each.before, each.after)}"
        f"<td>{html.escape(each.why)}</tr>"
        for each in changes
    )
    lines = "\n".join(_line(each) for each in diff)
    body = (
        f"<table><tr><th>column<th>effect<th>field<th>before → after<th>what the data showed</tr>"
        f"{table}</table><h2>Text difference</h2><pre>{lines}</pre>"
        if changes
        else ""
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>schema: {title}</title>'
        f"{STYLE}{_STYLE}<h1>schema: {title}</h1><p>From {rows:,} rows. {told}</p>{body}</html>\n"
    )


def _values(before: Any, after: Any) -> str:
    if isinstance(before, list) and isinstance(after, list):
        added = [value for value in after if value not in before]
        gone = [value for value in before if value not in after]
        return " ".join(
            [f'<code class="added">+ {_say(added)}</code>'] * bool(added)
            + [f'<code class="gone">− {_say(gone)}</code>'] * bool(gone)
        )
    return f"<code>{_say(before)}</code> → <code>{_say(after)}</code>"


def _say(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        more = f", … {len(value) - LONGEST_LIST} more" if len(value) > LONGEST_LIST else ""
        return html.escape(", ".join(map(str, value[:LONGEST_LIST]))) + more
    if isinstance(value, dict):
        return html.escape(", ".join(f"{key}: {_say(each)}" for key, each in value.items()))
    return html.escape(f"{value:g}" if isinstance(value, float) else str(value))


def _line(line: str) -> str:
    kind = {"+": "added", "-": "gone"}.get(line[:1])
    text = html.escape(line)
    return f'<span class="{kind}">{text}</span>' if kind else text
