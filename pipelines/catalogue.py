# SPDX-License-Identifier: Apache-2.0
"""The pipelines and components by name, and the compiled YAML."""

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import yaml

import kfloop.components
from kfloop.components import FAMILIES, stability
from kfloop.components.contracts.errors import InputError
from kfloop.pipelines.descriptions import describe_parameters
from kfloop.pipelines.local.pipeline_spec import load_documents
from kfloop.pipelines.pod_settings import tell_images
from kfloop.pipelines.resources import RESOURCES, apply_resources

PIPELINES = {
    "training": "Train a model and roll it out when the gate passes it.",
    "monitoring": "Judge the live model; retrain and roll out when that is called for.",
    "batch-scoring": "Score a window with the live model.",
    "rollback": "Go back to the last good version.",
    "replay": "Send later rows as requests, standing in for live traffic.",
    "backtest": "Train and evaluate on windows of the past.",
}
COMPILED = Path(__file__).parent / "compiled"


def compiled_path(name: str) -> Path:
    """Returns where a pipeline's compiled YAML is.

    Raises:
        InputError: If there is no such pipeline.
    """
    if name not in PIPELINES:
        raise InputError(f"There is no pipeline {name!r}; there is {', '.join(PIPELINES)}.")
    return COMPILED / f"{name.replace('-', '_')}.yaml"


def pipeline_stability(name: str) -> str:
    """Returns a pipeline's level, `stable` or `beta`: that of its least stable component.

    Raises:
        InputError: If there is no such pipeline.
    """
    text = compiled_path(name).read_text(encoding="utf-8")
    used = {
        found.replace("-", "_") for found in re.findall(r"--function_to_execute\n *- (\w+)", text)
    }
    return "beta" if any(stability(each) == "beta" for each in used) else "stable"


def component_summaries() -> dict[str, str]:
    """Returns the first line of each component's docstring, by name; imports none of them."""
    summaries = {}
    for family, names in FAMILIES.items():
        path = Path(kfloop.components.__path__[0]) / family / "component.py"
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name in names:
                summaries[node.name] = (ast.get_docstring(node) or "").partition("\n")[0]
    return summaries


def compile_pipelines(directory: Path = COMPILED) -> Iterator[Path]:
    """Compiles every pipeline into `directory` and yields the files as they are written."""
    from kfp import compiler

    directory.mkdir(parents=True, exist_ok=True)
    for name in PIPELINES:
        module = import_module(f"kfloop.pipelines.{name.replace('-', '_')}")
        target = directory / compiled_path(name).name
        compiler.Compiler().compile(getattr(module, name.replace("-", "_")), str(target))
        _complete(target)
        yield target


def _complete(path: Path) -> None:
    """Writes resources, what each parameter means, and images into a compiled pipeline."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    about = "".join(line for line in lines if line.startswith("#"))
    documents = load_documents(path)
    apply_resources(documents, RESOURCES)
    describe_parameters(documents[0])
    tell_images(documents[0])
    path.write_text(about + yaml.safe_dump_all(documents), encoding="utf-8")
