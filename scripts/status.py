# SPDX-License-Identifier: Apache-2.0
"""`kfloop status`."""

import sys

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kfloop.pipelines.submit import RunStatus, failure, last_runs, run_status
from kfloop.scripts.options import host_option, namespace_option
from kfloop.scripts.tables import print_table

STYLES = {"SUCCEEDED": "green", "FAILED": "red", "RUNNING": "cyan"}


@click.command()
@click.argument("run", default="")
@host_option
@namespace_option
@click.option("--experiment", default="", help="Only runs of this KFP experiment.")
@click.option("--limit", default=10, show_default=True, help="How many runs.")
def status(run: str, host: str, namespace: str, experiment: str, limit: int) -> None:
    """Show the tasks of a RUN with states, durations and errors; without RUN, the last runs.

    Exit status 1 when the run did not succeed.
    """
    console = Console()
    if not run:
        _print_runs(last_runs(limit, host=host, namespace=namespace, experiment=experiment))
        return
    found = run_status(run, host=host)
    console.print(f"{escape(found.name)}  {_styled(found.state)}  {duration(found.seconds)}")
    table = Table("task", "state", "time", "error", box=None)
    for task in found.tasks:
        table.add_row(
            escape(task.name), _styled(task.state), duration(task.seconds), escape(task.error)
        )
    print_table(table)
    if found.finished and found.state != "SUCCEEDED":
        console.print(failure(found), soft_wrap=True, highlight=False, markup=False)
        sys.exit(1)


def _print_runs(runs: list[RunStatus]) -> None:
    if not runs:
        click.echo("There are no runs.")
        return
    # The id stands above the name: side by side they leave 80 columns no room for the rest.
    table = Table("run", "state", "submitted", "time", box=None)
    for one in runs:
        table.add_row(
            f"{one.id}\n{escape(one.name)}",
            _styled(one.state),
            f"{one.created:%Y-%m-%d %H:%M}",
            duration(one.seconds),
        )
    print_table(table)


def _styled(state: str) -> str:
    style = STYLES.get(state)
    return f"[{style}]{state.lower()}[/{style}]" if style else state.lower()


def duration(seconds: float | None) -> str:
    """Returns seconds as people say them; empty for what has not begun."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
