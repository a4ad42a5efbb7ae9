# SPDX-License-Identifier: Apache-2.0
"""Runs one component on its own, as a step of a compiled pipeline."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfloop.components.contracts.errors import InputError
from kfloop.pipelines.local import environments
from kfloop.pipelines.local.executors import ImageEnvironment
from kfloop.pipelines.local.pipeline_spec import PipelineSpec
from kfloop.pipelines.local.record import TaskRecord
from kfloop.pipelines.local.run import image_environments, read_pipeline
from kfloop.pipelines.local.runner import PipelineFailed, run_pipeline
from kfloop.testing.artifact import Artifact

INSTALLS = "python3 -m pip install"


class ComponentFailed(Exception):
    """A component did not succeed; the message is its sentence.

    Attributes:
        log: Everything it printed.
    """

    def __init__(self, message: str, log: str) -> None:
        super().__init__(message)
        self.log = log


@dataclass(frozen=True)
class ComponentRun:
    """What a component gave.

    Attributes:
        parameters: Output parameters by name; a single one is called `Output`.
        artifacts: Output artifacts by name.
        log: Everything it printed.
    """

    parameters: Mapping[str, Any]
    artifacts: Mapping[str, Artifact]
    log: str


def run_component(
    component: Any, directory: str | Path, python: str | Path = "", /, **inputs: Any
) -> ComponentRun:
    """Runs one component and returns what it gave.

    It is compiled into a pipeline of one step, which runs as `kfloop run` would run it: in a
    process of its own, without caching. Nothing is installed, whatever the component asks for.

    Args:
        component: Made by `@dsl.component`, or loaded from YAML.
        directory: Where its outputs are put, for example pytest's `tmp_path`.
        python: Interpreter of the environment to run it in; one with kfp and what the component
            imports, like `sys.executable`. Empty for the environment of the family that the
            component's image is of.
        **inputs: Its inputs. An Input artifact is an `Artifact`, an artifact of kfp, or a path.

    Raises:
        InputError: If the inputs do not fit, or there is no environment to run it in.
        ComponentFailed: If it failed.
    """
    pipeline = _one_step(component, inputs)
    state = Path(directory).absolute() / "kfloop"
    try:
        record = run_pipeline(
            pipeline, {}, state, _environments(pipeline, python, state).__getitem__, caching=False
        )
    except PipelineFailed as error:
        task = next((each for each in error.record.tasks if each.log), None)
        message = task.error if task and task.error else str(error)
        raise ComponentFailed(message, _log(task)) from error
    task = next(each for each in record.tasks if each.image)
    return ComponentRun(
        task.returned,
        {
            name: Artifact(Path(written[0]["uri"]), written[0]["type"], written[0]["metadata"])
            for name, written in task.outputs.items()
        },
        _log(task),
    )


def _log(task: TaskRecord | None) -> str:
    return Path(task.log).read_text(encoding="utf-8") if task and task.log else ""


def _one_step(component: Any, inputs: Mapping[str, Any]) -> PipelineSpec:
    """Compiles a component with its inputs; artifacts come from importers."""
    from kfp import dsl

    spec = getattr(component, "component_spec", None)
    if spec is None or spec.implementation.container is None:
        raise InputError(f"{component!r} is no component; give one made by @dsl.component.")
    declared = spec.inputs or {}
    if unknown := sorted(set(inputs) - set(declared)):
        raise InputError(
            f"The component {spec.name!r} has no input {', '.join(map(repr, unknown))}; "
            f"it has {', '.join(declared) or 'none'}."
        )
    missing = sorted(n for n, each in declared.items() if n not in inputs and not each.optional)
    if missing:
        raise InputError(
            f"The component {spec.name!r} needs a value for {', '.join(map(repr, missing))}."
        )
    artifacts = {
        name: _artifact(name, inputs[name], declared[name].type)
        for name in inputs
        if "@" in declared[name].type  # system.Dataset@0.0.1; a parameter's has no version
    }
    if lists := [name for name in artifacts if declared[name].is_artifact_list]:
        raise InputError(f"The input {lists[0]!r} is a list of artifacts; run it in a pipeline.")

    @dsl.pipeline(name=f"test-{spec.name}")
    def one_step() -> None:
        values = {name: value for name, value in inputs.items() if name not in artifacts}
        for name, artifact in artifacts.items():
            imported = dsl.importer(
                artifact_uri=str(artifact.path.absolute()),
                artifact_class=_artifact_class(declared[name].type),
                metadata=dict(artifact.metadata) or None,
            )
            values[name] = imported.output
        component(**{name: _plain(value) for name, value in values.items()})

    return _without_installs(read_pipeline(one_step))


def _artifact(name: str, value: Any, kind: str) -> Artifact:
    if isinstance(value, Artifact):
        return value
    if isinstance(value, str | os.PathLike):
        return Artifact(Path(value), kind.partition("@")[0])
    if hasattr(value, "uri") and hasattr(value, "metadata"):  # an artifact of kfp
        return Artifact(Path(value.path), value.schema_title, value.metadata)
    raise InputError(
        f"The input {name!r} is an artifact, and {value!r} is none; give a path, or what a factory "
        "of kfloop.testing made."
    )


def _artifact_class(kind: str) -> type:
    """Returns a class of kfp with the title and version of `system.Dataset@0.0.1`."""
    from kfp import dsl

    title, _, version = kind.partition("@")
    return type("Imported", (dsl.Artifact,), {"schema_title": title, "schema_version": version})


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, os.PathLike) else value


def _without_installs(pipeline: PipelineSpec) -> PipelineSpec:
    """Drops the command that installs packages before a lightweight component starts."""
    for executor in pipeline.executors.values():
        command = executor.get("container", {}).get("command", [])
        if command[:2] == ["sh", "-c"] and INSTALLS in command[2]:
            executor["container"]["command"] = command[3:]
    return pipeline


def _environments(
    pipeline: PipelineSpec, python: str | Path, state: Path
) -> dict[str, ImageEnvironment]:
    if not python:
        for image in pipeline.images():
            _require_family(image)
        return image_environments(pipeline, state)
    interpreter = Path(python).absolute()
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONHOME"}
    variables["PATH"] = _before(str(interpreter.parent), os.environ.get("PATH", os.defpath))
    variables["PYTHONPATH"] = _before(
        str(environments.code_path()), os.environ.get("PYTHONPATH", "")
    )
    return dict.fromkeys(
        pipeline.images(), ImageEnvironment(variables, str(interpreter), source="")
    )


def _require_family(image: str) -> None:
    try:
        environments.family_of_image(image)
    except InputError as error:
        raise InputError(
            f"{error} Or give the interpreter to run it with, as in "
            "run_component(component, directory, sys.executable)."
        ) from error


def _before(first: str, rest: str) -> str:
    return os.pathsep.join(filter(None, (first, rest)))
