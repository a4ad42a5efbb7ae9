# SPDX-License-Identifier: Apache-2.0
"""How a service's requests are shared out, beyond the percentages: by a key, and as copies.

Both are annotations of the InferenceService; the standard library alone reads them.
"""

from dataclasses import dataclass
from typing import Any

from kfloop.components.contracts.errors import InputError

STICKY_ANNOTATION = "kfloop.org/sticky-key"
SHADOW_ANNOTATION = "kfloop.org/shadow"
HEADER, FIELD = "header", "field"


@dataclass(frozen=True)
class StickyKey:
    """What decides who answers a request: equal keys are answered by the same version.

    Attributes:
        kind: `header` of the request, or `field` of its first instance, such as an entity key.
        name: Its name.
    """

    kind: str
    name: str


def parse_sticky_key(text: str) -> StickyKey | None:
    """Parses `header:NAME` or `field:NAME`; empty is None: each request by its own id.

    Raises:
        InputError: If it is neither.
    """
    if not text:
        return None
    kind, _, name = text.partition(":")
    if kind not in (HEADER, FIELD) or not name:
        raise InputError(
            f"{STICKY_ANNOTATION} is {text!r}; give header:NAME or field:NAME, for example "
            "header:x-user-id."
        )
    return StickyKey(kind, name.lower() if kind == HEADER else name)


def parse_shadow_percent(text: str) -> int:
    """Parses the share of live requests that the candidate gets copies of; empty is 0.

    Raises:
        InputError: If it is not a whole number from 0 to 100.
    """
    if not text:
        return 0
    if not text.isdecimal() or int(text) > 100:
        raise InputError(f"{SHADOW_ANNOTATION} is {text!r}; give a whole number from 0 to 100.")
    return int(text)


def traffic_settings(manifest: dict[str, Any]) -> tuple[StickyKey | None, int]:
    """Returns a manifest's sticky key and its shadow percentage.

    Raises:
        InputError: If one of them is malformed.
    """
    annotations = manifest["metadata"].get("annotations") or {}
    return (
        parse_sticky_key(annotations.get(STICKY_ANNOTATION, "")),
        parse_shadow_percent(annotations.get(SHADOW_ANNOTATION, "")),
    )
