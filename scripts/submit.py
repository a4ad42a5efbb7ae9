# SPDX-License-Identifier: Apache-2.0
"""`kfloop submit`."""

from pathlib import Path

import click
from click.core import ParameterSource
from rich.console import Console

from kfloop.pipelines.submit import EXPERIMENT, RunStatus, submit_pipeline, wait_for_run
from kfloop.scripts.options import (
    config_option,
    host_option,
    namespace_option,
    no_cache_option,
    parse_settings,
    settings_option,
)


@click.command()
@click.argument("pipeline")
@config_option
@settings_option
@host_option
@namespace_option
@click.option("--experiment", default=EXPERIMENT, show_default=True, help="KFP experiment.")
@click.option("--run-name", default="", help="[default: the pipeline's name and the time]")
@click.option("--service-account", default="", help="Kubernetes service account of the pods.")
@no_cache_option
@click.option("--wait", is_flag=True, help="Wait for the end; exit status 1 unless it succeeded.")
@click.pass_context
def submit(
    context: click.Context,
    pipeline: str,
    config: Path,
    settings: tuple[str, ...],
    host: str,
    namespace: str,
    experiment: str,
    run_name: str,
    service_account: str,
    no_cache: bool,
    wait: bool,
) -> None:
    """Start a run on Kubeflow: one of kfloop's pipelines, or a compiled YAML file.

    \b
    kfloop submit training --host https://kubeflow.example.com/pipeline
    kfloop submit rollback --host … -s service=flights -s reason="complaints from support"
    """
    console = Console()
    given = context.get_parameter_source("config") is not ParameterSource.DEFAULT
    # What was asked for by its parameters alone needs no loop file.
    is_file = pipeline.endswith((".yaml", ".yml"))
    read_loop = given or not (is_file or (settings and not config.exists()))
    run_id = submit_pipeline(
        pipeline,
        config if read_loop else None,
        parse_settings(settings),
        host=host,
        namespace=namespace,
        experiment=experiment,
        run_name=run_name,
        caching=not no_cache,
        service_account=service_account,
    )
    console.print(f"run {run_id}", highlight=False, soft_wrap=True)
    if wait:
        wait_for_run(run_id, host=host, changed=_Told(console))
        console.print("It succeeded.")
    else:
        console.print(f"how it is: kfloop status {run_id}", highlight=False, soft_wrap=True)


class _Told:
    """Prints a task when its state changes."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.states: dict[str, str] = {}

    def __call__(self, status: RunStatus) -> None:
        for task in status.tasks:
            if self.states.get(task.name) != task.state:
                self.states[task.name] = task.state
                self.console.print(f"  {task.state.lower():<10} {task.name}", highlight=False)
