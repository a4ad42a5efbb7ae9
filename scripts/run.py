# SPDX-License-Identifier: Apache-2.0
"""`kfloop run`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from kfloop.components.contracts.errors import InputError
from kfloop.pipelines.arguments import pipeline_arguments
from kfloop.pipelines.catalogue import COMPILED, PIPELINES, compiled_path
from kfloop.pipelines.local.pipeline_spec import load_pipeline, resolve_arguments
from kfloop.pipelines.local.progress import Progress
from kfloop.pipelines.local.record import RunRecord
from kfloop.pipelines.local.run import image_environments, run_with_report
from kfloop.pipelines.local.runner import PipelineFailed
from kfloop.pipelines.loop import Loop, load_loop
from kfloop.pipelines.resources import without_retries
from kfloop.scripts.options import (
    config_option,
    no_cache_option,
    parse_settings,
    settings_option,
    state_option,
)


@click.command(
    epilog="\b\nPipelines:\n" + "\n".join(f"  {n:<14} {text}" for n, text in PIPELINES.items())
)
@click.argument("pipeline")
@config_option
@settings_option
@no_cache_option
@click.option(
    "--service",
    default="",
    help="rollback: the service to roll back; the loop file is not read then.",
)
@click.option("--namespace", default="", help="rollback: its Kubernetes namespace.")
@click.option(
    "--cluster",
    is_flag=True,
    help="Deploy to the cluster of the kubeconfig, not to this machine's services.",
)
@state_option
def run(
    pipeline: str,
    config: Path,
    settings: tuple[str, ...],
    no_cache: bool,
    service: str,
    namespace: str,
    cluster: bool,
    state: Path,
) -> None:
    """Run one pipeline on this machine: a name from below, or a compiled YAML file.

    \b
    kfloop run training
    kfloop run monitoring -c my/loop.yaml -s force_retraining="new data source"
    kfloop run rollback --service flights -s reason="complaints from support"
    """
    console = Console()
    if pipeline.endswith((".yaml", ".yml")):
        arguments: dict[str, Any] = {}
        path = Path(pipeline)
    elif service or namespace:
        path = compiled_path(pipeline)
        arguments = rollback_arguments(pipeline, service, namespace, cluster)
    else:
        path = compiled_path(pipeline)
        loop, base = load_loop(config)
        arguments = pipeline_arguments(pipeline, loop, base, state.absolute())
    arguments |= parse_settings(settings)
    record = execute(path, arguments, state, console, caching=not no_cache, cluster=cluster)
    tell(record, console)


def rollback_arguments(
    pipeline: str, service: str, namespace: str, cluster: bool
) -> dict[str, Any]:
    """Returns the parameters of a roll back that no loop file is needed for.

    Raises:
        InputError: If it is another pipeline, or no service is named.
    """
    if pipeline != "rollback" or not service:
        raise InputError(
            "--service and --namespace belong to `kfloop run rollback --service NAME`; another "
            "pipeline gets its parameters with --set."
        )
    # The laptop has a registry of its own; a cluster's is known by its address only.
    unknown = cluster and not os.environ.get("MLFLOW_TRACKING_URI")
    registry = {"registry": "none"} if unknown else {}
    return {"service": service, "namespace": namespace, **registry}


def execute(
    path: Path,
    arguments: Mapping[str, Any],
    state: Path,
    console: Console,
    caching: bool = True,
    cluster: bool = False,
) -> RunRecord:
    """Runs a compiled pipeline in the families' environments and writes its report.

    Raises:
        InputError: If the arguments do not fit.
        PipelineFailed: If a task failed; the report is written all the same.
    """
    pipeline = load_pipeline(path)
    if path.parent == COMPILED:
        pipeline = without_retries(pipeline)
    resolve_arguments(pipeline, arguments)
    stand_ins = image_environments(pipeline, state.absolute(), cluster, console)
    console.rule(f"[bold]{pipeline.name}", align="left")
    try:
        return run_with_report(
            pipeline, arguments, state.absolute(), stand_ins, Progress(console), caching
        )
    except PipelineFailed as error:
        _tell_report(error.record, console)
        raise


def tell(record: RunRecord, console: Console) -> None:
    """Prints what a run decided and where its report is."""
    for decision in record.decisions():
        console.print(f"  {decision['summary']}", soft_wrap=True, highlight=False)
    _tell_report(record, console)


def _tell_report(record: RunRecord, console: Console) -> None:
    console.print(f"report: {Path(record.directory) / 'report.html'}", soft_wrap=True)


def run_for_loop(
    pipeline: str, loop: Loop, base: Path, state: Path, console: Console, **extra: Any
) -> RunRecord:
    """Runs one of kfloop's pipelines for a loop."""
    arguments = pipeline_arguments(pipeline, loop, base, state.absolute()) | extra
    return execute(compiled_path(pipeline), arguments, state, console)
