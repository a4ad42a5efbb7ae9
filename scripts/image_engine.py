# SPDX-License-Identifier: Apache-2.0
"""What builds, inspects, runs and pushes images: docker, podman or buildah, by their commands."""

import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from kfloop.components.contracts.errors import InputError

ENGINES = ("docker", "podman", "buildah")
# A daemon that is not there can take its time to say so.
_PROBE_SECONDS = 30
# Where uv and pip get packages, and with what credentials.
_INDEX_SETTING = re.compile(
    r"UV_(DEFAULT_INDEX|INDEX|INDEX_.+|EXTRA_INDEX_URL|INSECURE_HOST)"
    r"|PIP_(INDEX_URL|EXTRA_INDEX_URL|TRUSTED_HOST)"
)
_DIGEST = re.compile(r"digest: (sha256:[0-9a-f]{64})")
_IN_BUILD = "/run/secrets/certificates"


@dataclass(frozen=True)
class Engine:
    """An engine by its name, which is also its command."""

    name: str

    def size(self, reference: str) -> str:
        """Returns the size of an image that is here, such as `316 MB`, or nothing."""
        if self.name == "buildah":
            listed = _asked([self.name, "images", "--json", reference])
            return str(json.loads(listed)[0]["size"]) if listed else ""
        found = _asked([self.name, "image", "inspect", reference])
        return megabytes(json.loads(found)[0]["Size"]) if found else ""

    def output(self, reference: str, command: Sequence[str]) -> str:
        """Runs a command in a container of an image and returns what it printed.

        Raises:
            InputError: If the image is not here, or the command fails.
        """
        if self.name != "buildah":
            options = ["--rm", "--network=none", "--read-only"]
            return self._read(["run", *options, reference, *command], reference)
        container = self._read(["from", "--pull-never", reference], reference).strip()
        try:
            return self._read(["run", container, "--", *command], reference)
        finally:
            self._read(["rm", container], reference)

    def push(self, reference: str) -> str:
        """Pushes an image and returns the digest that the registry has it by.

        Raises:
            InputError: If it cannot be pushed.
        """
        if self.name == "docker":
            # An image may have several digests in its repository; the push tells which it made.
            told = _DIGEST.findall(run([self.name, "push", reference], capture=True))
            if not told:
                raise InputError(f"docker has pushed {reference} but tells no digest of it.")
            return str(told[-1])
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "digest"
            run([self.name, "push", f"--digestfile={file}", reference])
            return file.read_text(encoding="utf-8").strip()

    def _read(self, arguments: Sequence[str], reference: str) -> str:
        done = subprocess.run([self.name, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise InputError(
                f"`{self.name} {arguments[0]}` failed for the image {reference} "
                f"({_last_line(done.stderr)}); build it first with `kfloop images build`."
            )
        return done.stdout


@dataclass(frozen=True)
class Build:
    """What a build is told.

    Attributes:
        context: The checkout.
        tag: Name of the result.
        target: Stage of the Dockerfile.
        arguments: The Dockerfile's ARGs; empty ones are left to their defaults.
        labels: Labels beside those of the Dockerfile.
        network: The engine's `--network` while it builds, or empty.
    """

    context: Path
    tag: str
    target: str
    arguments: Mapping[str, str]
    labels: Mapping[str, str]
    network: str = ""

    def command(self, engine: Engine, secrets: Sequence[str]) -> list[str]:
        """Returns the engine's command; `secrets` are its options for them."""
        return [
            *(engine.name, "build", f"--file={self.context / 'components' / 'Dockerfile'}"),
            *(f"--target={self.target}", f"--tag={self.tag}"),
            # Without it buildah makes one layer of all, and nothing of it again from its cache.
            *(["--layers"] if engine.name == "buildah" else []),
            *([f"--network={self.network}"] if self.network else []),
            *(f"--build-arg={key}={value}" for key, value in self.arguments.items() if value),
            *(f"--label={key}={value}" for key, value in self.labels.items() if value),
            *secrets,
            str(self.context),
        ]


def find_engine(chosen: str = "") -> Engine:
    """Returns the engine asked for, or the first of `ENGINES` that is here and works.

    Raises:
        InputError: If there is none.
    """
    if chosen:
        if not shutil.which(chosen):
            raise InputError(f"{chosen} is not installed here, or not on PATH.")
        return Engine(chosen)
    trouble = []
    for name in ENGINES:
        if not shutil.which(name):
            continue
        # A docker command without its daemon is common.
        told = _trouble(name)
        if not told:
            return Engine(name)
        trouble.append(f"{name} is installed but does not work ({told})")
    if trouble:
        raise InputError(f"{' and '.join(trouble)}; images need docker, podman or buildah.")
    raise InputError(
        "Images are built by docker, podman or buildah, and none of them is installed here; "
        "install one (Debian: apt-get install podman)."
    )


def _trouble(name: str) -> str:
    """Returns what is wrong with an engine, or nothing."""
    try:
        done = subprocess.run(
            [name, "info"], capture_output=True, text=True, check=False, timeout=_PROBE_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"`{name} info` does not answer"
    return _last_line(done.stderr) if done.returncode else ""


def run(command: Sequence[str], capture: bool = False) -> str:
    """Runs an engine's command; what it prints goes to the terminal.

    Args:
        command: The command.
        capture: Whether to return what it prints to standard output, in place of nothing.

    Raises:
        InputError: If it fails.
    """
    # Without BuildKit an older docker does not know the mounts of the Dockerfile.
    environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
    output = subprocess.PIPE if capture else None
    done = subprocess.run(command, env=environment, stdout=output, text=True, check=False)
    if capture:
        click.echo(done.stdout, nl=False)
    if done.returncode:
        raise InputError(
            f"`{' '.join(command[:2])}` ended with status {done.returncode}; what it printed last "
            f"says why. The whole command: {shlex.join(command)}"
        )
    return done.stdout or ""


@contextmanager
def secrets(environment: Mapping[str, str]) -> Iterator[list[str]]:
    """Gives the options that let a build see this machine's package index and certificates.

    They are mounted while packages are installed, and no layer holds them.

    Args:
        environment: Its settings of uv and pip for an index are taken, and `SSL_CERT_FILE`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        settings = index_settings(environment)
        options = []
        if environment.get("SSL_CERT_FILE"):
            options.append(f"--secret=id=certificates,src={environment['SSL_CERT_FILE']}")
        if settings:
            file = Path(scratch) / "packages"
            file.write_text(settings, encoding="utf-8")
            options.append(f"--secret=id=packages,src={file}")
        yield options


def index_settings(environment: Mapping[str, str]) -> str:
    """Returns the shell lines that a build reads before it installs packages."""
    chosen = {
        name: value
        for name, value in environment.items()
        if _INDEX_SETTING.fullmatch(name) and value
    }
    if environment.get("SSL_CERT_FILE"):
        chosen |= {"SSL_CERT_FILE": _IN_BUILD, "PIP_CERT": _IN_BUILD}
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in chosen.items())


def say(command: Sequence[str]) -> None:
    """Prints a command that is not run."""
    click.echo(shlex.join(command))


def megabytes(size: int) -> str:
    """Returns a size in megabytes (of a million bytes) as text."""
    return f"{size / 1e6:,.0f} MB"


def _asked(command: Sequence[str]) -> str:
    """Returns what a command printed, or nothing when it failed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else "it says nothing"
