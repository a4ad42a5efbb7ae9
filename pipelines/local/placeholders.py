# SPDX-License-Identifier: Apache-2.0
"""Placeholders in commands and constants, replaced as the cluster's launcher does."""

import json
import re
from collections.abc import Mapping
from typing import Any

from kfloop.pipelines.local.pipeline_spec import as_text

_PLACEHOLDER = re.compile(r"\{\{\$(.*?)\}\}")
_MEMBER = re.compile(
    r"\.(inputs|outputs)\.(parameters|artifacts)\[(?:'([^']*)'|\"([^\"]*)\")\]"
    r"(?:\.(path|uri|output_file|metadata(?:\['[^']*'\])?))?$"
)


def replace(text: str, executor_input: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Replaces every placeholder in `text` once.

    What is put in is not scanned again, and text that only looks like a placeholder stays.

    Args:
        text: A command element or a constant.
        executor_input: The task's ExecutorInput document.
        names: Run-wide placeholders, for example `.pipeline_job_name`.
    """

    def value(match: re.Match[str]) -> str:
        inner = match.group(1)
        if inner == "":
            return json.dumps(executor_input)
        if inner in names:
            return names[inner]
        member = _MEMBER.match(inner)
        found = _member(member, executor_input) if member else None
        return match.group(0) if found is None else found

    return _PLACEHOLDER.sub(value, text)


def _member(match: re.Match[str], executor_input: Mapping[str, Any]) -> str | None:
    side, kind, single, double, attribute = match.groups()
    name = single if single is not None else double
    section = executor_input.get(side, {})
    if kind == "parameters":
        if side == "inputs":
            values = section.get("parameterValues", {})
            return as_text(values[name]) if name in values else None
        output = section.get("parameters", {}).get(name)
        return output["outputFile"] if output else None
    listed = section.get("artifacts", {}).get(name, {}).get("artifacts", [])
    if not listed:
        return None
    if attribute and attribute.startswith("metadata"):
        key = attribute[len("metadata['") : -len("']")]
        return as_text(listed[0]["metadata"].get(key, "") if key else listed[0]["metadata"])
    return str(listed[0]["uri"])


def expand(
    elements: list[str], executor_input: Mapping[str, Any], names: Mapping[str, str]
) -> list[str]:
    """Expands a command: `IfPresent` and `Concat` structures, then placeholders."""
    present = set(executor_input.get("inputs", {}).get("parameterValues", {})) | set(
        executor_input.get("inputs", {}).get("artifacts", {})
    )
    return [
        replace(text, executor_input, names)
        for element in elements
        for text in _structures(element, present)
    ]


def _structures(element: str, present: set[str]) -> list[str]:
    if not element.startswith(('{"IfPresent"', '{"Concat"')):
        return [element]
    return _flatten(json.loads(element), present)


def _flatten(node: Any, present: set[str]) -> list[str]:
    if isinstance(node, str):
        return [node]
    if isinstance(node, list):
        return [text for item in node for text in _flatten(item, present)]
    if "Concat" in node:
        return ["".join(_flatten(node["Concat"], present))]
    choice = node["IfPresent"]
    branch = choice["Then"] if choice["InputName"] in present else choice.get("Else", [])
    return _flatten(branch, present)
