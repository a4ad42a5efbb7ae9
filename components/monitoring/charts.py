# SPDX-License-Identifier: Apache-2.0
"""Paired bars as inline SVG: two distributions side by side, for pages that open offline."""

import html
from collections.abc import Sequence

from kfloop.components.monitoring.window import Numbers

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 440, 150, 36, 8, 34
FIRST, SECOND = "#8fa3bf", "#d1662c"
STYLE = f"""<style>
.plots{{display:grid;grid-template-columns:repeat(auto-fill,minmax(27rem,1fr));gap:1rem 1.5rem}}
figure{{margin:0;border-top:1px solid #e3e6ec;padding-top:.4rem}}
figcaption{{font-weight:600}} figcaption span{{font-weight:400}}
figure p{{margin:.2rem 0;color:#5b6474}} text{{font-size:11px;fill:#5b6474}}
.key i{{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 1em}}
.key .first{{background:{FIRST}}} .key .second{{background:{SECOND}}}
</style>"""


def key(first: str, second: str) -> str:
    """Returns the legend of paired bars."""
    return f'<i class="first"></i>{html.escape(first)}<i class="second"></i>{html.escape(second)}'


def paired_bars(labels: Sequence[str], first: Numbers, second: Numbers, title: str) -> str:
    """Returns an SVG of paired bars of shares; hovering a bar tells its value.

    Args:
        labels: One per pair; an empty one is not drawn.
        first: Shares from 0 to 1.
        second: Shares from 0 to 1.
        title: What the chart shows, for screen readers.
    """
    highest = max(float(first.max()), float(second.max()), 1e-9)
    base, plot = HEIGHT - BOTTOM, HEIGHT - BOTTOM - TOP
    step = (WIDTH - LEFT - 4) / len(labels)
    crowded = sum(map(bool, labels)) > 6
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">',
        f'<text x="{LEFT - 4}" y="{TOP + 8}" text-anchor="end">{highest:.0%}</text>',
        f'<line x1="{LEFT}" x2="{WIDTH}" y1="{base}" y2="{base}" stroke="#c3c9d4"/>',
    ]
    for index, label in enumerate(labels):
        start = LEFT + index * step + step * 0.08
        for offset, value, colour in ((0, first[index], FIRST), (1, second[index], SECOND)):
            width, height = step * 0.42, plot * float(value) / highest
            parts.append(
                f'<rect x="{start + offset * width:.1f}" y="{base - height:.1f}" '
                f'width="{width:.1f}" height="{height:.1f}" fill="{colour}">'
                f"<title>{html.escape(label)} {float(value):.2%}</title></rect>"
            )
        if label:
            # A label wider than its bars leans inwards at the two ends.
            narrow = step < 50 and index in (0, len(labels) - 1)
            anchor = ("start" if index == 0 else "end") if narrow and not crowded else "middle"
            parts.append(_label(label, LEFT + (index + 0.5) * step, base + 16, anchor, crowded))
    return "".join(parts) + "</svg>"


def _label(label: str, x: float, y: float, anchor: str, crowded: bool) -> str:
    short = label if len(label) <= 9 else label[:8] + "…"
    turn = f' transform="rotate(-30 {x:.1f} {y:.1f})"' if crowded else ""
    anchor = "end" if crowded else anchor
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turn}>{html.escape(short)}</text>'
