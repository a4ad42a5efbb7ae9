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


def host_option(command: Command) -> Command:
    """Adds `--host`, the KFP API."""
    return click.option(
        "--host",
        default="",
        metavar="URL",
        help="The KFP API.  [default: KF_PIPELINES_ENDPOINT, else the cluster around this "
        "process, else the kubeconfig's]",
    )(command)


def namespace_option(command: Command) -> Command:
    """Adds `--namespace`, for a multi-user Kubeflow."""
    return click.option(
        "--namespace", "-n", default="", help="Your namespace on a multi-user Kubeflow."
    )(command)
