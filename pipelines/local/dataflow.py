# SPDX-License-Identifier: Apache-2.0
"""What passes between the tasks of a DAG: from outputs to inputs, as the cluster's driver does."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kfloop.components.contracts.errors import InputError
from kfloop.pipelines.local.pipeline_spec import Artifact, Document, coerce, select
from kfloop.pipelines.local.placeholders import replace as replace_placeholders
from kfloop.pipelines.local.record import FAILED, SKIPPED

Parameters = Mapping[str, Any]
Artifacts = Mapping[str, list[Artifact]]


@dataclass
class Outputs:
    """What a task gave, and how it ended."""

    status: str
    parameters: Parameters
    artifacts: Artifacts
    error: str = ""


@dataclass(frozen=True)
class Scope:
    """What the tasks of one DAG can be given.

    Attributes:
        parameters: The DAG's own parameters.
        artifacts: The DAG's own artifacts.
        results: The outputs of its tasks that have ended, by name; it grows meanwhile.
    """

    parameters: Parameters
    artifacts: Artifacts
    results: Mapping[str, Outputs]


def task_inputs(
    task: Document, component: Document, scope: Scope, names: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, list[Artifact]]]:
    """Returns a task's parameters and artifacts.

    Args:
        task: The task of the DAG.
        component: The component that it runs.
        scope: What there is to give it.
        names: Run-wide placeholders and their values.

    Raises:
        InputError: If a required input has no value, or a value is not of its type.
    """
    given = task.get("inputs", {})
    definitions = component.get("inputDefinitions", {})
    values = _given_parameters(given.get("parameters", {}), scope, names)
    for key, definition in definitions.get("parameters", {}).items():
        if key in values:
            values[key] = coerce(values[key], definition["parameterType"], key)
        elif "defaultValue" in definition:
            values[key] = coerce(definition["defaultValue"], definition["parameterType"], key)
        elif not definition.get("isOptional") and key != _loop_item(task):
            raise InputError(f"there is no value for the input {key!r}")
    artifacts: dict[str, list[Artifact]] = {}
    for key, source in given.get("artifacts", {}).items():
        listed = _artifacts(source, scope)
        if listed is not None:
            artifacts[key] = listed
        elif not definitions.get("artifacts", {}).get(key, {}).get("isOptional"):
            raise InputError(f"there is no artifact for the input {key!r}")
    return values, artifacts


def dag_outputs(
    component: Document, results: Mapping[str, Outputs]
) -> tuple[Parameters, Artifacts]:
    """Returns what a DAG gives of what its tasks gave; what no task gave is left out."""
    given = component["dag"].get("outputs", {})
    parameters = {
        name: value
        for name, selector in given.get("parameters", {}).items()
        if (value := _selected_parameter(selector, results)) is not None
    }
    artifacts = {
        name: listed
        for name, selector in given.get("artifacts", {}).items()
        if (listed := _selected_artifacts(selector, results)) is not None
    }
    return parameters, artifacts


def loop_items(task: Document, parameters: Parameters, artifacts: Artifacts) -> list[Any]:
    """Returns what a loop iterates over: values, or artifacts.

    Raises:
        InputError: If it is no list.
    """
    if "artifactIterator" in task:
        return list(artifacts[task["artifactIterator"]["items"]["inputArtifact"]])
    source = task["parameterIterator"]["items"]
    given = source["raw"] if "raw" in source else parameters[source["inputParameter"]]
    items: list[Any] = coerce(given, "LIST", task["taskInfo"]["name"])
    return items


def iteration_inputs(
    task: Document, component: Document, item: Any, parameters: Parameters, artifacts: Artifacts
) -> tuple[Parameters, Artifacts]:
    """Returns the inputs of one iteration of a loop: the loop's, and the item.

    Raises:
        InputError: If the item is not of the type that the iteration takes.
    """
    key = _loop_item(task)
    if "artifactIterator" in task:
        return parameters, {**artifacts, key: [item]}
    kind = component["inputDefinitions"]["parameters"][key]["parameterType"]
    return {**parameters, key: coerce(item, kind, key)}, artifacts


def loop_outputs(component: Document, results: list[Outputs]) -> tuple[Parameters, Artifacts]:
    """Returns what a loop gives: of each output the list over its iterations."""
    outputs = component["dag"].get("outputs", {})
    return (
        {key: [one.parameters[key] for one in results] for key in outputs.get("parameters", {})},
        {
            key: [artifact for one in results for artifact in one.artifacts[key]]
            for key in outputs.get("artifacts", {})
        },
    )


def _given_parameters(
    given: Mapping[str, Document], scope: Scope, names: Mapping[str, str]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    for key, source in given.items():
        if "runtimeValue" in source:
            constants[key] = source["runtimeValue"]["constant"]
        elif (value := _parameter(source, scope, names)) is not None:
            values[key] = value
    # Last: texts like "hello {{$.inputs.parameters['pipelinechannel--x']}}" refer to the others.
    for key, constant in constants.items():
        values[key] = _fill(constant, values, names)
    return values


def _parameter(source: Document, scope: Scope, names: Mapping[str, str]) -> Any:
    if "componentInputParameter" in source:
        value = scope.parameters.get(source["componentInputParameter"])
    elif "taskOutputParameter" in source:
        output = source["taskOutputParameter"]
        value = scope.results[output["producerTask"]].parameters.get(output["outputParameterKey"])
    else:
        producer = source["taskFinalStatus"]["producerTask"]
        value = _final_status(producer, scope.results[producer], names)
    if value is not None and "parameterExpressionSelector" in source:
        value = select(value, source["parameterExpressionSelector"])
    return value


def _final_status(producer: str, outputs: Outputs, names: Mapping[str, str]) -> dict[str, Any]:
    return {
        "state": {FAILED: "FAILED", SKIPPED: "CANCELLED"}.get(outputs.status, "SUCCEEDED"),
        "pipelineJobResourceName": names[".pipeline_job_resource_name"],
        "pipelineTaskName": producer,
        "error": {"code": 1, "message": outputs.error} if outputs.error else {},
    }


def _artifacts(source: Document, scope: Scope) -> list[Artifact] | None:
    if "componentInputArtifact" in source:
        return scope.artifacts.get(source["componentInputArtifact"])
    output = source["taskOutputArtifact"]
    return scope.results[output["producerTask"]].artifacts.get(output["outputArtifactKey"])


def _loop_item(task: Document) -> str:
    """Returns the input that a loop gives to each of its iterations; empty without a loop."""
    iterator = task.get("parameterIterator") or task.get("artifactIterator") or {}
    return str(iterator.get("itemInput", ""))


def _fill(constant: Any, values: Parameters, names: Mapping[str, str]) -> Any:
    if isinstance(constant, str):
        return replace_placeholders(constant, {"inputs": {"parameterValues": values}}, names)
    if isinstance(constant, dict):
        return {key: _fill(item, values, names) for key, item in constant.items()}
    if isinstance(constant, list):
        return [_fill(item, values, names) for item in constant]
    return constant


def _selected_parameter(selector: Document, results: Mapping[str, Outputs]) -> Any:
    choices = (
        [selector["valueFromParameter"]]
        if "valueFromParameter" in selector
        else selector["valueFromOneof"]["parameterSelectors"]
    )
    for choice in choices:
        parameters = results[choice["producerSubtask"]].parameters
        if choice["outputParameterKey"] in parameters:
            return parameters[choice["outputParameterKey"]]
    return None


def _selected_artifacts(
    selector: Document, results: Mapping[str, Outputs]
) -> list[Artifact] | None:
    for choice in selector["artifactSelectors"]:
        artifacts = results[choice["producerSubtask"]].artifacts
        if choice["outputArtifactKey"] in artifacts:
            return artifacts[choice["outputArtifactKey"]]
    return None
