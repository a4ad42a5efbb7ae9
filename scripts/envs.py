# SPDX-License-Identifier: Apache-2.0
"""`kfloop envs`: the environments of the families, listed, made and removed."""

import fcntl
import os
import shutil
import subprocess
import time
from pathlib import Path

import click

from kfloop.components.contracts.errors import InputError
from kfloop.pipelines.local import environments
from kfloop.pipelines.local.environments import MARKER, Environment


@click.group()
def envs() -> None:
    """Environments of the families: list, build, clean.

    Each family of components runs in its own virtual environment, made from its lock and kept in
    $KFLOOP_CACHE (default: ~/.cache/kfloop).
    """


@envs.command("list")
def list_environments() -> None:
    """List the environments: state, size, when last used, and where."""
    from rich.table import Table

    from kfloop.scripts.tables import print_table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("family", "lock", "state", "size", "last used", "directory"):
        table.add_column(column)
    root = environments.cache_directory() / "environments"
    current = _current()
    for each in current:
        table.add_row(each.name, _kind(each), *_state(each.path, each.ready), each.path.name)
    for path in _directories():
        if path not in {each.path for each in current}:
            ready = (path / MARKER).is_file()
            name = path.name.rpartition("-")[0]
            table.add_row(name, "other", *_state(path, ready), path.name)
    print_table(table)
    click.echo(f"in {root}")


@envs.command("build")
@click.argument("families", nargs=-1, metavar="[FAMILY]...")
def build_environments(families: tuple[str, ...]) -> None:
    """Make the environments of FAMILY... (default: all) that are not made yet."""
    made = environments.ensure(families or environments.FAMILIES)
    click.echo(f"{len(made)} environment(s) ready in {environments.cache_directory()}")


@envs.command("clean")
@click.option("--unused", "scope", flag_value="unused", help="Those of no current lock (default).")
@click.option("--all", "scope", flag_value="all", help="All of them; the next run makes them anew.")
def clean_environments(scope: str | None) -> None:
    """Remove environments. One that is in use stays."""
    wanted = set() if scope == "all" else {each.path for each in _current()}
    freed = removed = 0
    for path in _directories():
        if path in wanted:
            continue
        size, user = _size(path), remove(path)
        if user:
            click.echo(f"{path.name}: kept, {user}")
        else:
            freed, removed = freed + size, removed + 1
    _remove_stale_code()
    click.echo(f"{removed} environment(s) removed, {_gigabytes(freed)} freed")


def remove(path: Path) -> str:
    """Removes an environment; returns who uses it when it was kept for that, else nothing."""
    each = Environment(path.name, (), path)
    handle = environments.open_lock(each)
    try:
        if not environments.try_lock(handle, fcntl.LOCK_EX):
            return "a running kfloop uses or makes it"
        process = process_using(path)
        if process:
            return f"process {process} runs in it"
        # Without the marker first, an interrupted removal leaves nothing that looks complete.
        (path / MARKER).unlink(missing_ok=True)
        shutil.rmtree(path)
        each.log.unlink(missing_ok=True)
    finally:
        os.close(handle)
    return ""


def process_using(path: Path) -> str:
    """Returns the id of a process started with the interpreter of an environment, or nothing.

    A served model outlives the run that started it and holds no lock.
    """
    needle = os.fsencode(path) + b"/"
    processes = Path("/proc")
    if (processes / "self" / "cmdline").exists():
        for process in processes.glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes()
                variables = (process / "environ").read_bytes()
            except OSError:  # ended meanwhile, or somebody else's
                continue
            if needle in command or b"VIRTUAL_ENV=" + needle[:-1] + b"\0" in variables:
                return process.name
        return ""
    listing = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,command="], capture_output=True, check=True
    )
    for line in listing.stdout.splitlines():
        if needle in line:
            return line.split()[0].decode()
    return ""


def _current() -> list[Environment]:
    """Returns the families' environments; a family without a lock has none."""
    current = []
    for family in environments.FAMILIES:
        try:
            current.append(environments.environment(family))
        except InputError as error:
            click.echo(str(error), err=True)
    return current


def _directories() -> list[Path]:
    root = environments.cache_directory() / "environments"
    return sorted(path for path in root.glob("*") if path.is_dir())


def _kind(each: Environment) -> str:
    """Returns which of a family's locks it is made from."""
    return each.locks[0].stem.removeprefix("requirements").strip("-") or "current"


def _state(path: Path, ready: bool) -> tuple[str, str, str]:
    """Returns state, size and last use, as text."""
    if not ready:
        return ("half made" if path.exists() else "not made"), "", ""
    marker = path / MARKER
    return "ready", _gigabytes(Environment("", (), path).facts()["bytes"]), _ago(marker)


def _size(path: Path) -> int:
    """Returns the bytes an environment takes; uv's own cache shares some of them."""
    from kfloop.pipelines.local.environment_build import measure

    return measure(path)[0]


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def _ago(marker: Path) -> str:
    hours = (time.time() - marker.stat().st_mtime) / 3600
    if hours < 1:
        return "just now"
    return f"{hours:.0f} h ago" if hours < 48 else f"{hours / 24:.0f} days ago"


def _remove_stale_code() -> None:
    """Removes the link directories of checkouts that are gone."""
    for directory in (environments.cache_directory() / "code").glob("*"):
        if not all(link.exists() for link in (directory / "kfloop").glob("*")):
            shutil.rmtree(directory)
