# SPDX-License-Identifier: Apache-2.0
"""Runs a pipeline here from Python, as `kfloop run` does: environments, run, report."""

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kfloop.components.contracts.errors import InputError
from kfloop.pipelines.local import environments
from kfloop.pipelines.local.cache import digest_source
from kfloop.pipelines.local.executors import ImageEnvironment, Listener
from kfloop.pipelines.local.git import git_commit
from kfloop.pipelines.local.pipeline_spec import (
    PipelineSpec,
    load_pipeline,
    pipeline_spec,
    resolve_arguments,
)
from kfloop.pipelines.local.record import RunRecord
from kfloop.pipelines.local.report import write_report
from kfloop.pipelines.local.runner import PipelineFailed, run_pipeline


def run_locally(
    pipeline: Callable[..., Any] | str | Path,
    arguments: Mapping[str, Any] | None = None,
    state: str | Path = ".kfloop",
    caching: bool = True,
    listener: Listener | None = None,
) -> RunRecord:
    """Runs a pipeline on this machine, each step in its family's environment.

    Args:
        pipeline: A `@dsl.pipeline` function, or the path of a compiled pipeline.
        arguments: Pipeline parameters; the rest take their defaults.
        state: Directory for runs, the cache, and what is served here.
        caching: Whether finished steps may be reused.
        listener: Told about progress; nobody unless given.

    Returns:
        What the run did; its report is `report.html` in its directory.

    Raises:
        InputError: If the arguments do not fit, or a step's image is of no family.
        PipelineFailed: If a task failed; the report is written all the same.
    """
    spec = read_pipeline(pipeline)
    values = dict(arguments or {})
    resolve_arguments(spec, values)
    where = Path(state).absolute()
    made = image_environments(spec, where)
    return run_with_report(spec, values, where, made, listener, caching)


def run_with_report(
    pipeline: PipelineSpec,
    arguments: Mapping[str, Any],
    state: Path,
    stand_ins: Mapping[str, ImageEnvironment],
    listener: Listener | None,
    caching: bool,
) -> RunRecord:
    """Runs a pipeline whose environments are there, and writes its report however it ends.

    Args:
        pipeline: The pipeline.
        arguments: Pipeline parameters; the rest take their defaults.
        state: Directory for what is kept on this machine, absolute.
        stand_ins: What `image_environments` returned.
        listener: Told about progress, if any.
        caching: Whether finished steps may be reused.

    Raises:
        PipelineFailed: If a task failed.
    """
    try:
        record = run_pipeline(
            pipeline, arguments, state, stand_ins.__getitem__, listener, caching=caching
        )
    except PipelineFailed as error:
        write_report(error.record)
        raise
    write_report(record)
    return record


def read_pipeline(pipeline: Callable[..., Any] | str | Path) -> PipelineSpec:
    """Returns what a `@dsl.pipeline` function, or a compiled pipeline's file, describes.

    Raises:
        InputError: If it is neither.
    """
    if isinstance(pipeline, str | Path):
        return load_pipeline(pipeline)
    compiled = getattr(pipeline, "pipeline_spec", None)
    if compiled is None:
        raise InputError(
            f"{pipeline!r} is no pipeline; give a function decorated with @dsl.pipeline, or the "
            "path of a compiled one."
        )
    from google.protobuf.json_format import MessageToDict  # not for a `kfloop run`

    return pipeline_spec(MessageToDict(compiled))


def image_environments(
    pipeline: PipelineSpec, state: Path, cluster: bool = False, console: Any = None
) -> dict[str, ImageEnvironment]:
    """Returns what stands in for each image of a pipeline; what is not there yet is made.

    Args:
        pipeline: The compiled pipeline.
        state: Directory for what is kept on this machine, absolute.
        cluster: Whether deployments go to the cluster of the kubeconfig.
        console: A `rich.console.Console` for the progress of new environments.

    Raises:
        InputError: If an image is of no family, or an environment cannot be made.
    """
    family_of = {image: environments.family_of_image(image) for image in pipeline.images()}
    families = set(family_of.values())
    if "deployment" in families:
        # The deployment components start the local inference service, which has its own packages.
        families.add("serving")
    made = environments.ensure(sorted(families), console=console)
    return {image: _stand_in(family, made, state, cluster) for image, family in family_of.items()}


def _stand_in(
    family: str, made: Mapping[str, environments.Environment], state: Path, cluster: bool
) -> ImageEnvironment:
    environment = made[family]
    variables = environments.task_environment(environment)
    # Without a state directory the deployment components take the cluster of the kubeconfig.
    if cluster and family == "deployment":
        variables.pop("KFLOOP_STATE", None)
    else:
        variables["KFLOOP_STATE"] = str(state)
    variables.setdefault("KFLOOP_GIT_COMMIT", git_commit(Path.cwd()))
    if "serving" in made:
        variables["KFLOOP_SERVING_PYTHON"] = str(made["serving"].python)
    components = environments.code_path() / "kfloop" / "components"
    return ImageEnvironment(
        variables,
        environment.path.name,
        digest_source(components / family, components / "contracts"),
    )


def run_module(family: str, module: str, *arguments: str, stdin: str = "") -> str:
    """Runs a module of kfloop in a family's environment and returns what it printed.

    Args:
        family: Whose environment.
        module: One that prints the sentence of an InputError to standard error and exits with 1.
        *arguments: Its command line.
        stdin: What it reads.

    Raises:
        InputError: What the module said.
        RuntimeError: If it failed otherwise.
    """
    environment = environments.ensure([family])[family]
    done = subprocess.run(
        [str(environment.python), "-m", module, *arguments],
        input=stdin,
        env=environments.task_environment(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    told = done.stderr.strip()
    if done.returncode == 1 and told and "Traceback" not in told:
        raise InputError(told.splitlines()[-1])
    if done.returncode:
        raise RuntimeError(f"{module} ended with status {done.returncode}: {told}")
    return done.stdout
