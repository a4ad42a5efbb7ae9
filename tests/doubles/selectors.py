# SPDX-License-Identifier: Apache-2.0
"""Label and field selectors."""

import re
from typing import Any

from .errors import ApiError

FIELDS = {
    "metadata.name",
    "metadata.namespace",
    "status.phase",
    "spec.nodeName",
    "involvedObject.name",
    "involvedObject.kind",
    "involvedObject.uid",
    "reason",
    "type",
}
# Any resource has these two; the others only their own.
COMMON_FIELDS = {"metadata.name", "metadata.namespace"}


class Selector:
    """What a list or a watch shows.

    Args:
        labels: For example `app=x,tier in (a,b),!old`.
        fields: For example `metadata.name=m`.
        custom: Whether the kind is a custom one, which has only the common fields.

    Raises:
        ApiError: 400 when a selector cannot be understood.
    """

    def __init__(self, labels: str = "", fields: str = "", custom: bool = False) -> None:
        self._labels = [_label(part) for part in re.split(r",(?![^(]*\))", labels) if part.strip()]
        self._fields = [_field(part, custom) for part in fields.split(",") if part.strip()]

    def matches(self, item: dict[str, Any]) -> bool:
        """Whether an object is selected."""
        labels = item["metadata"].get("labels") or {}
        for key, operator, values in self._labels:
            has = key in labels
            if operator == "exists" and not has:
                return False
            if operator == "absent" and has:
                return False
            if operator == "in" and labels.get(key) not in values:
                return False
            if operator == "notin" and has and labels[key] in values:
                return False
        return all((_value(item, path) == wanted) is same for path, same, wanted in self._fields)


def _label(text: str) -> tuple[str, str, set[str]]:
    text = text.strip()
    if found := re.fullmatch(r"(\S+)\s+(in|notin)\s+\(([^)]*)\)", text):
        return found[1], found[2], {value.strip() for value in found[3].split(",")}
    if found := re.fullmatch(r"([^!=\s]+)\s*(==|=|!=)\s*([^\s=]*)", text):
        return found[1], "notin" if found[2] == "!=" else "in", {found[3]}
    if found := re.fullmatch(r"(!?)\s*([\w./-]+)", text):
        return found[2], "absent" if found[1] else "exists", set()
    raise ApiError(400, f'unable to parse requirement: found "{text}"')


def _field(text: str, custom: bool) -> tuple[str, bool, str]:
    found = re.fullmatch(r"\s*([\w.]+)\s*(==|=|!=)\s*(.*)", text)
    if not found:
        raise ApiError(400, f"invalid field selector: {text!r}")
    if found[1] not in (COMMON_FIELDS if custom else FIELDS):
        raise ApiError(400, f"field label not supported: {found[1]}")
    return found[1], found[2] != "!=", found[3].strip()


def _value(item: dict[str, Any], path: str) -> str:
    value: Any = item
    for step in path.split("."):
        value = value.get(step, "") if isinstance(value, dict) else ""
    return str(value)
