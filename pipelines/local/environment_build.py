# SPDX-License-Identifier: Apache-2.0
"""Makes virtual environments with uv: locked, byte-compiled, safe to interrupt, with progress.

One after the other: uv downloads and byte-compiles in parallel by itself, and two at a time were
no faster on two cores (49 s against 45 s for seven families with uv's cache filled, 57 s against
54 s without) but downloaded what they share twice (4.5 GB of cache against 3.0 GB).
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.status import Status

from kfloop.components.contracts.errors import InputError
from kfloop.pipelines.local.environments import (
    MARKER,
    Environment,
    Say,
    keep,
    open_lock,
    try_lock,
)

_POLL_SECONDS = 0.2
# uv's own milestones, and what it does next.
_UV_STAGES = {"Resolved": "downloading", "Prepared": "linking", "Installed": "byte-compiling"}


def build(environments: list[Environment], say: Say | None, console: Console | None) -> None:
    """Makes `environments` and keeps them from being removed; see `environments.ensure`."""
    console = console or Console(stderr=True)
    say = say or (lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True))
    names = ", ".join(each.name for each in environments)
    say(f"Making {len(environments)} environment(s), once for each lock: {names}")
    # A live line with the time; on what is not a terminal, nothing.
    with console.status("") as status:
        for each in environments:
            _Build(each, say, status).run()


class _Build:
    """One environment that is being made."""

    def __init__(self, environment: Environment, say: Say, status: Status) -> None:
        self.environment = environment
        self.say = say
        self.status = status
        self.started = time.monotonic()

    def run(self) -> None:
        """Makes the environment unless another process does, and keeps it from being removed."""
        handle = open_lock(self.environment)
        waited = False
        try:
            while not (try_lock(handle, fcntl.LOCK_SH) and self.environment.ready):
                if try_lock(handle, fcntl.LOCK_EX):
                    if not self.environment.ready:
                        self._make(handle)
                    continue
                if not waited:
                    # It may be a uv that outlived its killed parent.
                    self.say(f"{self.environment.name}: waiting for another process that makes it")
                    waited = True
                self._show("waiting")
                time.sleep(_POLL_SECONDS)
        except BaseException:
            os.close(handle)
            raise
        keep(self.environment, handle)

    def _make(self, handle: int) -> None:
        target, log = self.environment.path, self.environment.log
        self.started = time.monotonic()
        if self.environment.note:
            self.say(f"{self.environment.name}: {self.environment.note}")
        # Without its marker it is somebody's half-made environment.
        if target.exists():
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
        for command in _commands(self.environment):
            self._uv(command, handle)
        seconds = round(time.monotonic() - self.started, 1)
        size, packages = measure(target)
        facts = {
            "lock": str(self.environment.locks[0]),
            "packages": packages,
            "bytes": size,
            "seconds": seconds,
        }
        beside = target / f".{MARKER}"
        beside.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        beside.replace(target / MARKER)
        self.say(
            f"{self.environment.name}: ready in {seconds:.0f} s "
            f"({packages} packages, {size / 1e6:,.0f} MB)"
        )

    def _uv(self, command: list[str], handle: int) -> None:
        log = self.environment.log
        start = log.stat().st_size
        with log.open("ab") as output:
            # uv inherits the lock: if this process is killed, the next build waits until the
            # orphan no longer writes.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=log.parent,  # not the user's project, whose uv settings are about itself
                env=_uv_environment(),
                pass_fds=(handle,),
            )
        try:
            while process.poll() is None:
                self._show(_stage(log, start))
                time.sleep(_POLL_SECONDS)
        finally:
            process.terminate()  # on Ctrl-C; it has ended otherwise
            process.wait()
        if process.returncode != 0:
            raise InputError(_failure(self.environment, command, process.returncode, start))

    def _show(self, stage: str) -> None:
        seconds = time.monotonic() - self.started
        self.status.update(f"{self.environment.name}: {stage}, {seconds:.0f} s")


def _commands(environment: Environment) -> list[list[str]]:
    uv, python = uv_path(), str(environment.python)
    options = ["--require-hashes", "--compile-bytecode", "--python", python]
    first, *others = map(str, environment.locks)
    if environment.overlay:
        return [[uv, "pip", "install", *options, "--target", str(environment.path), "-r", first]]
    return [
        [uv, "venv", "--python", sys.executable, str(environment.path)],
        [uv, "pip", "sync", *options, first],
        *([uv, "pip", "install", *options, "--no-deps", "-r", lock] for lock in others),
    ]


def uv_path() -> str:
    """Returns the uv that came with this Python's environment.

    Raises:
        InputError: If there is none.
    """
    import uv

    try:
        return os.fsdecode(uv.find_uv_bin())
    except FileNotFoundError as error:
        raise InputError(
            "uv, which makes the environments, is not installed beside this Python; "
            "install kfloop again (`pip install uv`)."
        ) from error


def _uv_environment() -> dict[str, str]:
    # Settings for indexes and the network pass through; those that name another Python do not.
    dropped = ("VIRTUAL_ENV", "UV_PYTHON", "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")
    return {key: value for key, value in os.environ.items() if key not in dropped}


def _stage(log: Path, start: int) -> str:
    """Returns what uv is at, from the milestones it has printed since byte `start`."""
    with log.open("rb") as stream:
        stream.seek(start)
        words = [line.split(b" ")[0].decode(errors="replace") for line in stream]
    stages = [_UV_STAGES[word] for word in words if word in _UV_STAGES]
    return stages[-1] if stages else "starting"


def _failure(environment: Environment, command: list[str], status: int, start: int) -> str:
    """Says which command failed, and the last of what it printed from byte `start` of the log."""
    text = environment.log.read_bytes()[start:].decode(errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    told = "\n".join(f"    {line}" for line in lines[-6:])
    action = " ".join(["uv", *command[1:3]]) if command[1] == "pip" else "uv venv"
    return (
        f"The environment {environment.name!r} could not be made: `{action}` ended with status "
        f"{status} for {environment.locks[0]}; the whole log is {environment.log}.\n{told}"
    )


def measure(path: Path) -> tuple[int, int]:
    """Returns the size in bytes on disk and the number of packages of an environment."""
    size = packages = 0
    for directory, names, files in os.walk(path):
        packages += sum(name.endswith(".dist-info") for name in names)
        size += sum(os.lstat(f"{directory}/{file}").st_blocks * 512 for file in files)
    return size, packages
