# SPDX-License-Identifier: Apache-2.0
"""The `kfloop` command."""

import sys
from importlib import import_module

import click

from kfloop.components.contracts.errors import InputError

# Commands are imported when they are used: `kfloop --help` answers at once.
COMMANDS = {
    "run": ("kfloop.scripts.run", "run"),
    "loop": ("kfloop.scripts.loop", "loop"),
    "simulate": ("kfloop.scripts.simulate", "simulate"),
    "compile": ("kfloop.scripts.compile", "compile_command"),
    "submit": ("kfloop.scripts.submit", "submit"),
    "status": ("kfloop.scripts.status", "status"),
    "doctor": ("kfloop.scripts.doctor", "doctor"),
    "schedule": ("kfloop.scripts.schedule", "schedule"),
    "services": ("kfloop.scripts.services", "services"),
    "envs": ("kfloop.scripts.envs", "envs"),
    "images": ("kfloop.scripts.images", "images"),
    "new": ("kfloop.scripts.new", "new"),
    "catalogue": ("kfloop.scripts.catalogue", "catalogue"),
    "sample-data": ("kfloop.scripts.sample", "sample_data"),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name]
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kfloop")
def cli() -> None:
    """The closed machine-learning loop, on this machine and on Kubeflow.

    \b
    Start here:
      kfloop loop --config loop.yaml           train, serve, replay traffic, monitor, retrain
      kfloop run training --config loop.yaml   one pipeline
      kfloop services list                     what is being served, and how to call it
    """


def main() -> None:
    """Runs the command; a mistake of the user's becomes one sentence and exit status 1."""
    # Imported here: its import costs more than a --help.
    from kfloop.pipelines.local.runner import PipelineFailed

    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted; run the same command again to go on.", err=True)
        sys.exit(130)
    except (InputError, PipelineFailed) as error:
        click.secho(f"Error: {error}", fg="red", err=True)
        sys.exit(1)
