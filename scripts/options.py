# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml

from kfloop.components.contracts.errors import InputError
from kfloop.pipelines.yaml_file import DatesAsText

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


def settings_option(command: Command) -> Command:
    """Adds `--set`, whose values `parse_settings` reads."""
    return click.option(
        "--set",
        "-s",
        "settings",
        multiple=True,
        metavar="NAME=VALUE",
        help="A pipeline parameter, over the loop file; may be given again. The value is YAML.",
    )(command)


def no_cache_option(command: Command) -> Command:
    """Adds `--no-cache`."""
    return click.option(
        "--no-cache", is_flag=True, help="Run every step, also those whose inputs are known."
    )(command)


def parse_settings(settings: tuple[str, ...]) -> dict[str, Any]:
    """Parses `NAME=VALUE` pairs; values are YAML.

    Raises:
        InputError: If one has no `=` or its value is not YAML.
    """
    parsed = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"--set takes NAME=VALUE, not {setting!r}.")
        try:
            parsed[name] = yaml.load(value, DatesAsText) if value else ""
        except yaml.YAMLError as error:
            raise InputError(f"The value of --set {name} is not YAML: {value!r}.") from error
    return parsed
