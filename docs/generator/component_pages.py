# SPDX-License-Identifier: Apache-2.0
"""Writes a page about each component from what it compiles to, so that none is out of date."""

import importlib
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from docstrings import arguments, failures, section, summary
from google.protobuf import json_format

from kfloop.components import FAMILIES, stability
from kfloop.components.contracts.decision import PASS, Decision, decision_metadata

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
TYPES = {
    "STRING": "str",
    "NUMBER_INTEGER": "int",
    "NUMBER_DOUBLE": "float",
    "BOOLEAN": "bool",
    "LIST": "list",
    "STRUCT": "dict",
    "TASK_FINAL_STATUS": "PipelineTaskFinalStatus",
}
ROLES = ROOT / "serving" / "manifests" / "rbac"
# They copy or read files and registries; the rest of their family asks the Kubernetes API.
WITHOUT_CLUSTER = ("publish_model", "register_model")
# What outputs of the same name or type have in common; the contracts' page has the rest.
_CONTRACTS = "../../contracts.md"
_DECISION = ", ".join(f"`{key}`" for key in decision_metadata(Decision("", PASS)))
SHARED = {
    "decision": f"A [decision]({_CONTRACTS}#decision): JSON. Metadata: {_DECISION}.",
    "record": f"A [deployment record]({_CONTRACTS}#deployment-record): JSON. Metadata, where there "
    "is one: `service`, `state`, `live`, `candidate`, `previous`, `undone`, `reason`.",
    "model": f"A [model package]({_CONTRACTS}#model-package): `1/`, `model.json`, `reference/`. "
    "Metadata: `framework`, `name`, `task`, `label`, `features`, `dataset_fingerprint`, "
    "`training_window`, `backend`, `trained_on`, `devices`.",
    "tables": f"[Tables]({_CONTRACTS}#dataset): `NAME/part-00000.parquet`, ….",
    "Dataset": f"A [dataset]({_CONTRACTS}#dataset): `part-00000.parquet`, …. Metadata: at least "
    "`rows`, `columns`, `fingerprint`.",
    "HTML": "One HTML file.",
    "ClassificationMetrics": "Metadata: `confidenceMetrics`, `confusionMatrix`, as KFP draws them.",
    "Metrics": "In the metadata.",
}
JOBS = {"submit_train_job": "trainjobs", "tune_with_katib": "experiments"}


@dataclass(frozen=True)
class Port:
    """An input or output: its name, type and description; `default` is None when it is required."""

    name: str
    kind: str
    description: str
    default: str | None = None


@dataclass(frozen=True)
class Page:
    """What a component's page tells."""

    family: str
    name: str
    summary: str
    explanation: str
    image: str
    input_artifacts: list[Port]
    parameters: list[Port]
    output_artifacts: list[Port]
    output_parameters: list[Port]
    returns: str
    failures: list[str]


def all_pages() -> list[Page]:
    """Returns the pages of all components, in the order of the catalogue."""
    return [read_component(family, name) for family, names in FAMILIES.items() for name in names]


def read_component(family: str, name: str) -> Page:
    """Reads a component's interface from its compiled spec, and its failures from its core."""
    component = getattr(importlib.import_module(f"kfloop.components.{family}.component"), name)
    spec = json_format.MessageToDict(component.pipeline_spec)
    (executor,) = spec["deploymentSpec"]["executors"].values()
    described = spec["components"][f"comp-{name.replace('_', '-')}"]
    inputs = described.get("inputDefinitions", {})
    outputs = described.get("outputDefinitions", {})
    function = component.python_func
    text = inspect.getdoc(function) or ""
    order = list(inspect.signature(function).parameters)
    told = arguments(text)
    return Page(
        family,
        name,
        *summary(text),
        image=executor["container"]["image"],
        input_artifacts=_artifacts(inputs, order, told),
        parameters=_parameters(inputs, order, told),
        output_artifacts=_artifacts(outputs, order, told),
        output_parameters=_parameters(outputs, list(component.component_spec.outputs or {}), told),
        returns=section(text, "Returns"),
        failures=failures(inspect.getsource(function)),
    )


def render(page: Page) -> str:
    """Returns a component's page as Markdown."""
    artifacts = ["name", "type", "what it is"]
    parts = [
        f"# {page.name}",
        page.summary,
        page.explanation,
        f"Family `{page.family}` · [{stability(page.name)}](../../versioning.md) · "
        f"image `{page.image}`",
        f"```python\nfrom kfloop.components import {page.name}\n```",
        _table("Input artifacts", artifacts, _input_rows(page.input_artifacts)),
        _table(
            "Parameters",
            ["name", "type", "default", "meaning"],
            [
                [f"`{port.name}`", port.kind, _default(port), port.description]
                for port in page.parameters
            ],
        ),
        _table(
            "Output artifacts",
            artifacts,
            [[f"`{port.name}`", port.kind, _laid_out(port)] for port in page.output_artifacts],
        ),
        _outputs(page),
        _failures(page),
        _rights(page.family, page.name),
        *(
            f"## Example\n\n```python\n{source.strip()}\n```"
            for source in examples_of(page.name)[:1]
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def render_catalogue(pages: list[Page]) -> str:
    """Returns the catalogue: every component with its stability and its purpose."""
    parts = [
        "# Components",
        "Each is imported by name: `from kfloop.components import train_model`. Its level says "
        "[what may change](../versioning.md).",
    ]
    for family in FAMILIES:
        rows = [
            [f"[{page.name}]({family}/{page.name}.md)", stability(page.name), page.summary]
            for page in pages
            if page.family == family
        ]
        parts.append(_table(family, ["component", "level", "what it does"], rows))
    return "\n\n".join(parts) + "\n"


def examples_of(name: str) -> list[str]:
    """Returns the source of the example pipelines that use a component."""
    sources = [path.read_text(encoding="utf-8") for path in sorted(EXAMPLES.glob("*.py"))]
    return [source for source in sources if re.search(rf"\b{name}\(", source)]


def _artifacts(ports: dict[str, Any], order: list[str], told: dict[str, str]) -> list[Port]:
    found = ports.get("artifacts", {})
    return [
        Port(
            name,
            found[name]["artifactType"]["schemaTitle"].removeprefix("system."),
            told.get(name, ""),
            "" if found[name].get("isOptional") else None,
        )
        for name in sorted(found, key=order.index)
    ]


def _parameters(ports: dict[str, Any], order: list[str], told: dict[str, str]) -> list[Port]:
    found = ports.get("parameters", {})
    listed = [name for name in order if name in found]
    return [
        Port(
            name,
            TYPES[found[name]["parameterType"]],
            told.get(name, ""),
            written(found[name]) if found[name].get("isOptional") else None,
        )
        for name in listed
    ]


def written(parameter: dict[str, Any]) -> str:
    """Returns a parameter's default as Python writes it; protobuf makes whole numbers floats."""
    value = parameter.get("defaultValue")
    return repr(value if parameter["parameterType"] == "NUMBER_DOUBLE" else _whole(value))


def _whole(value: Any) -> Any:
    if isinstance(value, list):
        return [_whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _default(port: Port) -> str:
    return "required" if port.default is None else f"`{port.default}`"


def _input_rows(ports: list[Port]) -> list[list[str]]:
    return [
        [
            f"`{port.name}`" + (" (optional)" if port.default is not None else ""),
            port.kind,
            port.description,
        ]
        for port in ports
    ]


def _laid_out(port: Port) -> str:
    """Returns an output's description with the layout that it shares with others of its name."""
    shared = SHARED.get(port.name) or SHARED.get(port.kind, "")
    if port.kind == "Dataset" and ("one dataset" in port.description):
        shared = SHARED["tables"]
    return f"{port.description} {shared}".strip()


def _outputs(page: Page) -> str:
    if not page.output_parameters:
        return ""
    names = [port.name for port in page.output_parameters]
    told = f" {page.returns}" if page.returns else ""
    if names == ["Output"]:
        return f"## Output\n\n`{page.output_parameters[0].kind}`:{told}"
    listed = ", ".join(f"`{port.name}` ({port.kind})" for port in page.output_parameters)
    return f"## Output parameters\n\n{listed}.{told}"


def _failures(page: Page) -> str:
    told = "\n".join(f"- {sentence}" for sentence in page.failures)
    link = f"[the family's messages](../../troubleshooting.md#{page.family})"
    if not told:
        return f"## Failures\n\nIt fails with one sentence: see {link}."
    return f"## Failures\n\nThe step fails, with one sentence:\n\n{told}\n\nSee {link}."


def _rights(family: str, name: str) -> str:
    """Returns what the step's service account must be allowed to do."""
    if name in JOBS:
        resource = JOBS[name]
        role = _role("training.yaml")
        others = {"trainjobs", "experiments"} - {resource}
        rules = [rule for rule in role["rules"] if not others & set(rule["resources"])]
        shared = ""
    elif family == "deployment" and name not in WITHOUT_CLUSTER:
        role = _role("role.yaml")
        rules, shared = (
            role["rules"],
            ", shared by the family ([deploying](../../deployment.md#rights))",
        )
    else:
        return ""
    told = f"the Role `{role['metadata']['name']}` of `serving/manifests/rbac`{shared}"
    return f"## Rights\n\nOn a cluster, of {told}:\n\n{_yaml(rules)}"


def _role(file: str) -> dict[str, Any]:
    documents = yaml.safe_load_all((ROLES / file).read_text(encoding="utf-8"))
    role: dict[str, Any] = next(document for document in documents if document["kind"] == "Role")
    return role


def _yaml(rules: list[dict[str, Any]]) -> str:
    lines = (yaml.safe_dump(rule, default_flow_style=True, width=200).strip() for rule in rules)
    return "```yaml\nrules:\n" + "\n".join(f"  - {line}" for line in lines) + "\n```"


def _table(title: str, head: list[str], rows: list[list[str]]) -> str:
    return f"## {title}\n\n{table(head, rows)}" if rows else ""


def table(head: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
