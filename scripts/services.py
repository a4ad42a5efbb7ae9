# SPDX-License-Identifier: Apache-2.0
"""`kfloop services`: the local inference services."""

import time
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from kfloop.components.contracts.errors import InputError
from kfloop.scripts.options import state_option
from kfloop.scripts.tables import print_table
from kfloop.serving.local_state import list_services, stop


@click.group()
def services() -> None:
    """List, read the logs of, and stop what is served on this machine."""


@services.command("list")
@state_option
def list_command(state: Path) -> None:
    """Show every service: its state, its versions with their share of the traffic, its URL."""
    found = list_services(state)
    if not found:
        click.echo(f"No services under {state}; `kfloop run training` deploys one.")
        return
    table = Table("service", "state", "versions", "url", box=None)
    for service in found:
        table.add_row(service["name"], _state(service), _versions(service), service.get("url", ""))
    print_table(table)


def _state(service: dict[str, Any]) -> str:
    if not service["running"]:
        return "[dim]stopped[/dim]"
    ready = {c["type"]: c["status"] for c in service.get("conditions", [])}.get("Ready")
    return "[green]ready[/green]" if ready == "True" else "[yellow]not ready[/yellow]"


def _versions(service: dict[str, Any]) -> str:
    return ", ".join(
        f"{predictor.get('model_version') or name} ({predictor.get('traffic', 0)} %)"
        for name, predictor in service["predictors"].items()
    )


@services.command("logs")
@click.argument("name")
@click.option("--predictor", default="", help="A predictor's log instead of the service's.")
@click.option("--follow", "-f", is_flag=True, help="Keep printing what is added.")
@state_option
def logs_command(name: str, predictor: str, follow: bool, state: Path) -> None:
    """Print a service's log."""
    directory = _directory(name, state)
    log = directory / (f"predictor-{predictor}.log" if predictor else "service.log")
    if not log.is_file():
        there = ", ".join(sorted(file.name for file in directory.glob("*.log"))) or "none"
        raise InputError(f"There is no {log.name} of {name}; there is {there}.")
    with log.open(encoding="utf-8", errors="replace") as file:
        while True:
            click.echo(file.read(), nl=False)
            if not follow:
                return
            time.sleep(0.5)


@services.command("stop")
@click.argument("names", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Stop all services.")
@state_option
def stop_command(names: tuple[str, ...], everything: bool, state: Path) -> None:
    """Stop services; requests in flight are answered first. Deploying starts them again."""
    if not names and not everything:
        raise InputError("Name a service, or stop all of them with --all.")
    chosen = names or tuple(service["name"] for service in list_services(state))
    for name in chosen:
        was_running = stop(_directory(name, state))
        click.echo(f"{name}: {'stopped' if was_running else 'was not running'}")


def _directory(name: str, state: Path) -> Path:
    found = {service["name"]: Path(service["directory"]) for service in list_services(state)}
    if name not in found:
        there = ", ".join(found) or "none"
        raise InputError(f"There is no service {name!r} under {state}; there is {there}.")
    return found[name]
