# SPDX-License-Identifier: Apache-2.0
"""Reads compiled pipelines, the YAML that is uploaded to a cluster, and the values they get."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kfloop.components.contracts.errors import InputError

Document = dict[str, Any]


@dataclass(frozen=True)
class Artifact:
    """An artifact that exists: what the cluster keeps in its metadata store.

    Attributes:
        name: Output name it was written under.
        type: KFP schema title, for example `system.Dataset`.
        uri: Where it is; a local path on a laptop.
        metadata: JSON values the component wrote.
        digest: Hash of the content, for caching and lineage.
        producer: Task that wrote it; empty for imported ones.
    """

    name: str
    type: str
    uri: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    producer: str = ""


@dataclass(frozen=True)
class PipelineSpec:
    """One compiled pipeline.

    Attributes:
        name: Pipeline name.
        root: The root component.
        components: All other components by name.
        executors: Containers and importers by label.
    """

    name: str
    root: Document
    components: Mapping[str, Document]
    executors: Mapping[str, Document]

    def component(self, name: str) -> Document:
        """Returns a component's spec."""
        return self.components[name]

    def images(self) -> list[str]:
        """Returns the images the pipeline's containers use."""
        return sorted(
            {e["container"]["image"] for e in self.executors.values() if "container" in e}
        )


def load_documents(path: str | Path) -> list[Document]:
    """Reads compiled pipeline YAML: the pipeline and, where there are any, its platform settings.

    Raises:
        InputError: If the file is missing or holds no compiled pipeline.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(
            f"There is no compiled pipeline at {file}; compile it with `kfloop compile`."
        )
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    documents = list(yaml.load_all(file.read_text(encoding="utf-8"), Loader=loader))
    if not documents or not isinstance(documents[0], dict) or "root" not in documents[0]:
        raise InputError(f"{file} is not a compiled pipeline: it has no `root`.")
    return documents


def load_pipeline(path: str | Path) -> PipelineSpec:
    """Loads compiled pipeline YAML; platform settings are left aside.

    Raises:
        InputError: If the file is missing or holds no compiled pipeline.
    """
    return pipeline_spec(load_documents(path)[0])


def pipeline_spec(document: Document) -> PipelineSpec:
    """Returns the pipeline that a compiled document describes."""
    return PipelineSpec(
        name=document["pipelineInfo"]["name"],
        root=document["root"],
        components=document.get("components", {}),
        executors=document.get("deploymentSpec", {}).get("executors", {}),
    )


def resolve_arguments(pipeline: PipelineSpec, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the pipeline's parameters: what was given, else the default.

    Raises:
        InputError: If an argument is unknown, missing or of the wrong type.
    """
    declared = pipeline.root.get("inputDefinitions", {}).get("parameters", {})
    if unknown := sorted(set(arguments) - set(declared)):
        raise InputError(
            f"Pipeline {pipeline.name!r} has no parameter {', '.join(map(repr, unknown))}; "
            f"it has {', '.join(sorted(declared))}."
        )
    values = {}
    for name, definition in declared.items():
        if name in arguments:
            values[name] = coerce(arguments[name], definition["parameterType"], name)
        elif "defaultValue" in definition:
            values[name] = coerce(definition["defaultValue"], definition["parameterType"], name)
        elif not definition.get("isOptional"):
            raise InputError(f"Pipeline {pipeline.name!r} needs a value for parameter {name!r}.")
    return values


def plain(value: Any) -> Any:
    """Turns whole floats into ints, at any depth: how the cluster's JSON writes numbers."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def as_text(value: Any) -> str:
    """Returns a parameter as the text that placeholders put into arguments."""
    return value if isinstance(value, str) else json.dumps(plain(value))


def coerce(value: Any, parameter_type: str, name: str) -> Any:
    """Converts a value to a KFP parameter type, as the cluster's driver does.

    Raises:
        InputError: If it does not fit; `name` says which parameter.
    """
    if value is None or parameter_type == "TASK_FINAL_STATUS":
        return value
    if parameter_type == "STRING":
        return as_text(value)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise InputError(_type_sentence(value, parameter_type, name)) from error
    value = plain(value)
    fits = {
        "NUMBER_INTEGER": isinstance(value, int) and not isinstance(value, bool),
        "NUMBER_DOUBLE": isinstance(value, int | float) and not isinstance(value, bool),
        "BOOLEAN": isinstance(value, bool),
        "LIST": isinstance(value, list),
        "STRUCT": isinstance(value, dict),
    }
    if not fits.get(parameter_type, True):
        raise InputError(_type_sentence(value, parameter_type, name))
    return value


def _type_sentence(value: Any, parameter_type: str, name: str) -> str:
    wanted = {
        "NUMBER_INTEGER": "a whole number",
        "NUMBER_DOUBLE": "a number",
        "BOOLEAN": "true or false",
        "LIST": "a list",
        "STRUCT": "a mapping",
    }[parameter_type]
    return f"Parameter {name!r} is {value!r}, which is not {wanted}."


_SELECTOR = re.compile(r'\[\s*"((?:[^"\\]|\\.)*)"\s*\]|\[\s*(\d+)\s*\]')


def select(value: Any, expression: str) -> Any:
    """Evaluates `parseJson(string_value)["key"]`, how loops reach into their items.

    Raises:
        InputError: If the item lacks the key.
    """
    prefix = "parseJson(string_value)"
    if not expression.startswith(prefix):
        raise InputError(f"The pipeline uses an expression the runner does not know: {expression}.")
    current = json.loads(value) if isinstance(value, str) else value
    for key, index in _SELECTOR.findall(expression[len(prefix) :]):
        try:
            current = current[int(index)] if index else current[key]
        except (KeyError, IndexError, TypeError) as error:
            raise InputError(f"A loop item has no {key or index!r}: {current!r}.") from error
    return current
