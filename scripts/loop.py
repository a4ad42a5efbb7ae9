# SPDX-License-Identifier: Apache-2.0
"""`kfloop loop`: the whole closed loop once."""

import shutil
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from kfloop.components.contracts.errors import InputError
from kfloop.pipelines.local import environments
from kfloop.pipelines.local.record import RunRecord
from kfloop.pipelines.loop import Loop, load_loop
from kfloop.scripts.options import config_option, state_option
from kfloop.scripts.run import run_for_loop
from kfloop.serving.local_state import read_status, service_directory


@click.command()
@config_option
@state_option
def loop(config: Path, state: Path) -> None:
    """Run the whole loop once: train and deploy, replay later rows, monitor, retrain if needed.

    Running it again reuses what has not changed, publishes a new model version and tries it as a
    canary beside the one that is live.
    """
    console = Console()
    described, base = load_loop(config)
    state = state.absolute()
    # All at once, before the first step: nobody wants to wait again in the middle.
    environments.ensure(environments.FAMILIES, console=console)
    runs = [run_for_loop("training", described, base, state, console)]
    require_live_model(described, state, runs[0])
    runs.append(run_for_loop("replay", described, base, state, console))
    until = {"until": described.replay.until} if described.replay.until else {}
    # The story begins anew with this training: what was decided before it holds nothing back.
    runs.append(run_for_loop("monitoring", described, base, state, console, history="", **until))
    console.rule("[bold]The loop is closed", align="left")
    # No frame and no wrapping: the lines are there to be copied.
    console.print(summary(described, state, runs), soft_wrap=True, highlight=False)


def require_live_model(described: Loop, state: Path, training: RunRecord) -> None:
    """Raises InputError, with what the gates said, when no model serves after training."""
    if not read_status(service_directory(state, described.service))["running"]:
        told = "; ".join(decision["summary"] for decision in training.decisions())
        raise InputError(
            f"No model is live, so there is nothing to monitor: {told}. "
            f"The report is {training.directory}/report.html."
        )


def summary(described: Loop, state: Path, runs: list[RunRecord]) -> str:
    """Returns what a person needs after the loop: decisions, reports, how to call and stop it."""
    lines = []
    for run in runs:
        lines.append(f"[bold]{run.pipeline}[/bold]")
        lines += [
            f"  {_mark(decision)} {escape(decision['summary'])}" for decision in run.decisions()
        ]
        lines.append(f"  report: {run.directory}/report.html")
    status = read_status(service_directory(state, described.service))
    for name, predictor in status["predictors"].items():
        lines.append(
            f"[bold]live[/bold]  version {predictor.get('model_version') or name}, "
            f"{predictor.get('traffic', 0)} % of the traffic"
        )
        request = Path(predictor["storageUri"].removeprefix("file://")) / "reference/request.json"
        if request.is_file():
            lines += ["[bold]ask it[/bold]", *_curl(described, status["url"], request)]
    lines += [
        f"[bold]stop it[/bold]  {_command()} services stop {described.service}",
        "[bold]next[/bold]  open a report; run it again to see the canary against this version; "
        "or copy loop.yaml and give it your own sources and SQL",
    ]
    return "\n".join(lines)


def _command() -> str:
    """Returns `kfloop` as it can be typed: with its path when it is not on PATH."""
    started = Path(sys.argv[0])
    return str(started) if started.name == "kfloop" and not shutil.which("kfloop") else "kfloop"


def _mark(decision: dict[str, str]) -> str:
    return "[green]✓[/green]" if decision["decision"] == "pass" else "[yellow]•[/yellow]"


def _curl(described: Loop, url: str, request: Path) -> list[str]:
    return [
        "  curl -s -H 'Content-Type: application/json' "
        f"-d @{request} {url}/v1/models/{described.name}:predict",
    ]
