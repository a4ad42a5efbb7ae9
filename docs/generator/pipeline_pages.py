# SPDX-License-Identifier: Apache-2.0
"""Writes the page about the pipelines from their compiled YAML."""

import component_pages
import yaml

from kfloop.pipelines.catalogue import PIPELINES, compiled_path, pipeline_stability

INTRODUCTION = """# Pipelines

What `kfloop run NAME` and schedules run, and what is uploaded to Kubeflow: the YAML in
`pipelines/compiled`. On a command line the [loop file](loop-file.md) gives the parameters; in the
form of the Kubeflow UI they are filled in by hand. The form shows names and types: what each one
means is here, in the YAML, and told by `kfloop catalogue NAME`."""


def render() -> str:
    """Returns the page: each pipeline with its level, its tasks and its parameters."""
    return "\n\n".join([INTRODUCTION, *map(_pipeline, PIPELINES)]) + "\n"


def _pipeline(name: str) -> str:
    spec = next(iter(yaml.safe_load_all(compiled_path(name).read_text(encoding="utf-8"))))
    given = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    rows = [
        [
            f"`{each}`",
            component_pages.TYPES[about["parameterType"]],
            f"`{component_pages.written(about)}`" if about.get("isOptional") else "required",
            about["description"],
        ]
        for each, about in sorted(given.items(), key=lambda item: "isOptional" in item[1])
    ]
    head = ["parameter", "type", "default", "meaning"]
    level = f"[{pipeline_stability(name)}](versioning.md)"
    purpose = " ".join(spec["pipelineInfo"].get("description", "").split())
    return f"## {name}\n\n{purpose} Level: {level}.\n\n{component_pages.table(head, rows)}"
