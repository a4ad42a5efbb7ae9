# SPDX-License-Identifier: Apache-2.0
"""`kfloop schedule`."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from kfloop.pipelines.kfp_client import api_errors, connect
from kfloop.pipelines.schedule_file import Job, ScheduleFile, load_schedules
from kfloop.pipelines.schedules import Action, carry_out, find_existing, plan, prune
from kfloop.scripts.options import Command, host_option, namespace_option

if TYPE_CHECKING:
    from kfp import Client

SIGNS = {"keep": "=", "create": "+", "enable": ">", "disable": "-"}


def _options(command: Command) -> Command:
    file_option = click.option(
        "--file",
        "-f",
        "path",
        type=click.Path(path_type=Path),
        default=Path("schedules.yaml"),
        show_default=True,
        help="The schedule file.",
    )
    return file_option(host_option(namespace_option(command)))


@click.group("schedule")
def schedule() -> None:
    """Recurring runs from schedules.yaml: plan, apply, prune.

    A token, where the API wants one, comes from the environment: KFLOOP_KFP_TOKEN.

    \b
    time_zone: UTC                 # what the cluster's CRON_SCHEDULE_TIMEZONE says
    schedules:
      flights-monitoring:
        pipeline: monitoring
        loop: loop.yaml            # its parameters; `parameters:` goes over them
        cron: "0 6 * * *"          # five fields; or `every: 6h`
    """


@schedule.command("plan")
@_options
def plan_command(path: Path, host: str, namespace: str) -> None:
    """Show what apply would change, and when the schedules fire next; changes nothing."""
    file, jobs, client = _prepare(path, host)
    console = Console()
    changes = _tell(console, file, _plan(client, file, jobs, namespace))
    console.print(f"{changes} to do: kfloop schedule apply" if changes else "Nothing to do.")


@schedule.command("apply")
@_options
def apply_command(path: Path, host: str, namespace: str) -> None:
    """Bring the recurring runs in line with the file.

    The new one is created before the old one is disabled, and no run that is going on is touched.
    Run it again after a failure: it goes on where it stopped.
    """
    file, jobs, client = _prepare(path, host)
    console = Console()
    with api_errors(f"The experiment {file.experiment!r} cannot be made"):
        made = client.create_experiment(file.experiment, namespace=namespace or None)
    experiment_id = made.experiment_id
    actions = plan(jobs, find_existing(client, experiment_id))
    changes = _tell(console, file, actions, lambda action: carry_out(client, experiment_id, action))
    console.print(f"{changes} done." if changes else "Nothing to do.")


@schedule.command("prune")
@_options
def prune_command(path: Path, host: str, namespace: str) -> None:
    """Delete disabled recurring runs that apply replaced; those with unfinished runs are kept."""
    file, jobs, client = _prepare(path, host)
    experiment_id = _experiment(client, file, namespace)
    deleted, kept = prune(client, experiment_id, jobs) if experiment_id else ([], [])
    for told in deleted:
        click.echo(f"deleted {told}")
    for told in kept:
        click.echo(f"kept {told}: a run of it is not finished")
    if not deleted and not kept:
        click.echo("Nothing to do.")


def _prepare(path: Path, host: str) -> tuple[ScheduleFile, list[Job], "Client"]:
    file, jobs = load_schedules(path)
    return file, jobs, connect(host)


def _experiment(client: "Client", file: ScheduleFile, namespace: str) -> str:
    """Returns the experiment's id, or nothing when it was never made."""
    with api_errors(f"The experiment {file.experiment!r} cannot be found"):
        try:
            found = client.get_experiment(
                experiment_name=file.experiment, namespace=namespace or None
            )
        except ValueError:  # what the client says when there is none
            return ""
    return str(found.experiment_id)


def _plan(client: "Client", file: ScheduleFile, jobs: list[Job], namespace: str) -> list[Action]:
    experiment_id = _experiment(client, file, namespace)
    return plan(jobs, find_existing(client, experiment_id) if experiment_id else [])


def _tell(
    console: Console,
    file: ScheduleFile,
    actions: list[Action],
    do: Callable[[Action], None] = lambda action: None,
) -> int:
    """Prints and does each action; returns how many change something."""
    jobs = {action.name: action.job for action in actions if action.job}
    for action in actions:
        do(action)
        told = f"{SIGNS[action.kind]} {action.kind:<8}{action.name}: {action.why}"
        console.print(told, highlight=False, markup=False, soft_wrap=True)
        for line in action.differences:
            console.print(f"    {line}", highlight=False, markup=False, soft_wrap=True)
        job = jobs.get(action.name) if action.kind == "create" else None
        if job and (times := job.next_times(datetime.now(UTC))):
            when = ", ".join(f"{time:%a %Y-%m-%d %H:%M}" for time in times)
            console.print(f"    fires {when} ({file.time_zone})", highlight=False, soft_wrap=True)
    return sum(action.kind != "keep" for action in actions)
