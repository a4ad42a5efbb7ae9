# SPDX-License-Identifier: Apache-2.0
"""Structural schemas in a small notation, and the check of an object against one.

A schema is a tree of plain Python values, so that a table of fields reads as one::

    "string" "integer" "number" "boolean" "quantity" "any"      a value
    {"name": "string", "replicas": "integer 0..100"}             an object
    {"!": "name replicas", ...}                                  the same; these are required
    ["string"]                                                   a list
    {"*": "string"}                                              a map
    "string /^[a-z]+$/"   "string cpu|memory"                    a pattern, an enumeration
    "string =x"                                                  a default
"""

import re
from dataclasses import dataclass
from typing import Any

from .documents import copied

Schema = Any
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "quantity": (str, int, float),
    "intorstring": (str, int),
}
_NAMES = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer"}


@dataclass(frozen=True)
class _Value:
    """A parsed word of the notation."""

    type: str
    low: float | None = None
    high: float | None = None
    pattern: str = ""
    choices: tuple[str, ...] = ()
    default: str | None = None


_parsed: dict[str, _Value] = {}


def _parse(word: str) -> _Value:
    if word not in _parsed:
        name, _, rest = word.partition(" ")
        low: float | None = None
        high: float | None = None
        pattern, default = "", None
        choices: tuple[str, ...] = ()
        if span := re.fullmatch(r"(-?\d+)\.\.(-?\d*)", rest):
            low, high = float(span[1]), float(span[2]) if span[2] else None
        elif rest.startswith("/"):
            pattern = rest.strip("/")
        elif rest.startswith("="):
            default = rest[1:]
        elif rest:
            choices = tuple(rest.split("|"))
        _parsed[word] = _Value(name, low, high, pattern, choices, default)
    return _parsed[word]


@dataclass
class Findings:
    """What is wrong with an object.

    Attributes:
        problems: Field and message, for each value that is not allowed.
        unknown: Paths of fields that the schema has not; they were removed.
    """

    problems: list[tuple[str, str]]
    unknown: list[str]


def check(schema: Schema, value: Any, path: str) -> tuple[Any, Findings]:
    """Checks a value, removes unknown fields and sets defaults.

    Returns:
        The value as a server would store it (a copy), and what is wrong with it.
    """
    findings = Findings([], [])
    return _check(schema, copied(value), path, findings), findings


def _check(schema: Schema, value: Any, path: str, found: Findings) -> Any:
    if isinstance(schema, dict):
        return _check_object(schema, value, path, found)
    if isinstance(schema, list):
        if not isinstance(value, list):
            found.problems.append((path, _wrong(value, "array", path)))
            return value
        return [_check(schema[0], x, f"{path}[{i}]", found) for i, x in enumerate(value)]
    _check_value(_parse(schema), value, path, found)
    return value


def _check_object(schema: dict[str, Schema], value: Any, path: str, found: Findings) -> Any:
    if not isinstance(value, dict):
        found.problems.append((path, _wrong(value, "object", path)))
        return value
    for key in list(value):
        field = schema.get(key, schema.get("*"))
        where = f"{path}.{key}" if path else key
        if field is None:
            found.unknown.append(where)
            del value[key]
        elif value[key] is None:
            # A null is as good as absent: the real server prunes it.
            del value[key]
        else:
            value[key] = _check(field, value[key], where, found)
    for key, field in schema.items():
        default = _parse(field).default if isinstance(field, str) and key != "!" else None
        if default is not None and key not in value:
            value[key] = default
    for key in schema.get("!", "").split():
        if key not in value:
            found.problems.append((f"{path}.{key}" if path else key, "Required value"))
    return value


def _check_value(word: _Value, value: Any, path: str, found: Findings) -> None:
    if word.type == "any":
        return
    allowed = _TYPES[word.type]
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        found.problems.append((path, _wrong(value, word.type, path)))
        return
    number: Any = value
    if word.low is not None and number < word.low:
        text = f"{path} in body should be greater than or equal to {word.low:g}"
        found.problems.append((path, f"Invalid value: {value}: {text}"))
    if word.high is not None and number > word.high:
        text = f"{path} in body should be less than or equal to {word.high:g}"
        found.problems.append((path, f"Invalid value: {value}: {text}"))
    if word.pattern and not re.search(word.pattern, number):
        text = f"{path} in body should match '{word.pattern}'"
        found.problems.append((path, f'Invalid value: "{value}": {text}'))
    if word.choices and value not in word.choices:
        supported = ", ".join(f'"{choice}"' for choice in word.choices)
        found.problems.append(
            (path, f'Unsupported value: "{value}": supported values: {supported}')
        )


def _wrong(value: Any, wanted: str, path: str) -> str:
    name = _NAMES.get(type(value), "number")
    told = {"quantity": "integer or string", "intorstring": "integer or string"}.get(wanted, wanted)
    return f'Invalid value: "{name}": {path} in body must be of type {told}: "{name}"'


def from_openapi(document: dict[str, Any]) -> Schema:
    """Turns the schema of a CustomResourceDefinition into this notation.

    Bounds, patterns, enumerations and string defaults are kept; formats and rules in CEL are not.
    """
    if document.get("x-kubernetes-int-or-string"):
        return "intorstring"
    kind = document.get("type", "")
    if kind == "array":
        return [from_openapi(document.get("items") or {})]
    if kind == "object" and not document.get("x-kubernetes-preserve-unknown-fields"):
        fields = {k: from_openapi(v) for k, v in (document.get("properties") or {}).items()}
        extra = document.get("additionalProperties")
        if isinstance(extra, dict):
            fields["*"] = from_openapi(extra)
        elif extra or not fields:
            return {"*": "any"} if extra else fields
        return {"!": " ".join(document.get("required") or []), **fields}
    if kind not in ("string", "integer", "number", "boolean"):
        return "any"
    return kind + _limits(document)


def _limits(document: dict[str, Any]) -> str:
    if "enum" in document:
        return " " + "|".join(str(choice) for choice in document["enum"])
    if "minimum" in document or "maximum" in document:
        return f" {document.get('minimum', -(2**63)):.0f}..{document.get('maximum', 2**63):.0f}"
    if "pattern" in document:
        return f" /{document['pattern']}/"
    return f" ={document['default']}" if isinstance(document.get("default"), str) else ""
