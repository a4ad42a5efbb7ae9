"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def state_option(command: Command) -> Command:
    """Adds `--state`, the directory for what kfloop keeps on this machine."""
    return click.option(
        "--state",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path(".kfloop"),
        show_default=True,
        help="Directory for runs, models, services and logs.",
    )(command)


def config_option(command: Command) -> Command:
    """Adds `--config`, the loop file."""
    return click.option(
        "--config",
        "-c",
        type=click.Path(path_type=Path),
        default=Path("loop.yaml"),
        show_default=True,
        help="The loop file.",
    )(command)
