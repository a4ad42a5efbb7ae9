# SPDX-License-Identifier: Apache-2.0
"""Reads a YAML file into a pydantic model; every mistake is named by key and line."""

from collections.abc import Hashable
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from kfloop.components.contracts.errors import InputError

Lines = dict[tuple[Hashable, ...], int]
Model = TypeVar("Model", bound=BaseModel)


class DatesAsText(yaml.SafeLoader):
    """YAML with dates left as text, so that they mean the same everywhere."""


DatesAsText.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml_file(path: Path, model: type[Model], kind: str, keys: str) -> tuple[Model, Lines]:
    """Reads and checks a file.

    Args:
        path: The file; it is there.
        model: What it must hold.
        kind: What to call it in a sentence, for example `a loop file`.
        keys: Some of its keys, for whoever gave another file.

    Returns:
        The model, and the line of every key.

    Raises:
        InputError: If the file is wrong; one sentence per mistake, with key and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=DatesAsText)
        document = yaml.load(text, Loader=DatesAsText)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or error
        raise InputError(f"{path}{line} is not YAML: {reason}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text.") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} is not {kind}: it must hold keys like {keys}.")
    lines: Lines = {}
    _collect_lines(node, (), lines, path)
    try:
        return model.model_validate(document), lines
    except ValidationError as error:
        raise InputError(_sentences(path, error, lines)) from error


def _collect_lines(
    node: yaml.Node | None, place: tuple[Hashable, ...], lines: Lines, path: Path
) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*place, key.value)
            if inner in lines:
                raise InputError(
                    f"{path} line {key.start_mark.line + 1}: "
                    f"{'.'.join(map(str, inner))} is given twice; keep one."
                )
            lines[inner] = key.start_mark.line + 1
            _collect_lines(value, inner, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*place, index)] = value.start_mark.line + 1
            _collect_lines(value, (*place, index), lines, path)


def _sentences(path: Path, error: ValidationError, lines: Lines) -> str:
    told: dict[str, None] = {}
    for problem in error.errors():
        place = tuple(problem["loc"])
        # Pydantic adds the branch of a union to the place; the file does not know it.
        while place and place not in lines and problem["type"] != "missing":
            place = place[:-1]
        line = next((lines[place[:n]] for n in range(len(place), 0, -1) if place[:n] in lines), 1)
        key = ".".join(map(str, place)) or "the file"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "there is no such key"
        elif problem["type"] == "missing":
            message = "is missing"
        elif not isinstance(problem["input"], dict):
            message = f"{message[0].lower()}{message[1:]}, not {problem['input']!r}"
        told[f"{path} line {line}: {key}: {message}."] = None
    return "\n".join(told)
