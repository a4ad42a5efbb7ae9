# SPDX-License-Identifier: Apache-2.0
"""`kfloop doctor`."""

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from kfloop.pipelines.doctor import examine
from kfloop.scripts.options import host_option, namespace_option

MARKS = {"ok": "[green]ok  [/green]", "fix": "[red]fix [/red]", "note": "[yellow]note[/yellow]"}


@click.command()
@host_option
@namespace_option
@click.option(
    "--config",
    "-c",
    type=click.Path(path_type=Path),
    help="The loop file that will run there: adds its storage, secrets and GPUs.  "
    "[default: loop.yaml, if it is there]",
)
@click.option("--service-account", default="", help="Kubernetes service account of the pods.")
def doctor(host: str, namespace: str, config: Path | None, service_account: str) -> None:
    """Check what a run on a cluster needs: each line is ok, or the fix.

    A note is what not everybody needs, or what this account may not look at. Exit status 1 when
    something is to be fixed.
    """
    console = Console()
    if config is None and Path("loop.yaml").is_file():
        config = Path("loop.yaml")
    broken = 0
    for finding in examine(host, namespace, config, service_account):
        broken += finding.state == "fix"
        console.print(
            f"{MARKS[finding.state]} {escape(finding.check)}: {escape(finding.told)}",
            soft_wrap=True,
            highlight=False,
        )
    if broken:
        sys.exit(1)
