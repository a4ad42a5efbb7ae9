# SPDX-License-Identifier: Apache-2.0
"""`kfloop images`: build, push, list, and say what is in them."""

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

import kfloop.components
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import write_json, write_text
from kfloop.components.images import (
    IMAGES,
    VERSION,
    image_digests,
    image_prefix,
    reference,
)
from kfloop.pipelines.local.git import git_commit
from kfloop.scripts.image_engine import ENGINES, Build, Engine, find_engine, run, say, secrets

Command = TypeVar("Command", bound=Callable[..., Any])
FAMILY_IMAGES = tuple(name for name in IMAGES if "-" not in name)
# The lock of JAX is for this entry alone; the rest of the family needs what it leaves out.
_MODULES = {"training-jax": "kfloop.components.training.distributed"}


@click.group()
def images() -> None:
    """Images of the families: build, push, list, sbom.

    \b
    An image is named PREFIX/FAMILY:VERSION. The prefix is $KFLOOP_IMAGE_PREFIX
    (default: kfloop); docker, podman or buildah does the work, whichever is here.
    """


def _names_argument(command: Command) -> Command:
    return click.argument("names", nargs=-1, metavar="[IMAGE]...")(command)


def _engine_option(command: Command) -> Command:
    return click.option(
        "--engine", type=click.Choice(ENGINES), help="Default: the first of them that works here."
    )(command)


def _dry_run_option(command: Command) -> Command:
    return click.option("--dry-run", is_flag=True, help="Print the commands and run none.")(command)


@images.command("build")
@_names_argument
@_engine_option
@click.option("--base", envvar="KFLOOP_IMAGE_BASE", help="Another base than the Dockerfile's.")
@click.option("--network", default="", help="The engine's network while it builds, e.g. host.")
@click.option("--test", is_flag=True, help="Build VERSION-test: with pytest and the tests.")
@click.option(
    "--sbom",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for IMAGE.cdx.json, the bill of materials of each.",
)
@_dry_run_option
def build_command(
    names: tuple[str, ...],
    engine: str | None,
    base: str | None,
    network: str,
    test: bool,
    sbom: Path | None,
    dry_run: bool,
) -> None:
    """Build images from this checkout; without a name, one for each family.

    The variants training-cuda, training-jax and validation-fallback are built when they are named.
    Indexes in UV_* and PIP_* variables and SSL_CERT_FILE are used, and nothing of them is left in
    the image.
    """
    chosen, found = _chosen(names), _engine(engine, dry_run)
    root = checkout()
    for name in chosen:
        build = describe_build(name, root, base or "", network, test)
        with secrets(os.environ) as options:
            if dry_run:
                # Their ids alone: their files are gone when the command is run by hand.
                say(build.command(found, [each.partition(",")[0] for each in options]))
                continue
            click.secho(f"── {build.tag}", bold=True)
            run(build.command(found, options))
        if sbom:
            path = sbom / f"{name}.cdx.json"
            write_text(path, _bill_of_materials(found, build.tag))
            click.echo(f"bill of materials: {path}")
        click.echo(f"{build.tag}  {found.size(build.tag)}")


@images.command("push")
@_names_argument
@_engine_option
@click.option(
    "--digests",
    type=click.Path(path_type=Path, dir_okay=False),
    help="JSON file that gets the digests; `kfloop compile` takes it by KFLOOP_IMAGE_DIGESTS.",
)
@_dry_run_option
def push_command(
    names: tuple[str, ...], engine: str | None, digests: Path | None, dry_run: bool
) -> None:
    """Push images to the registry of the prefix; without a name, one for each family.

    Log in with the engine first.
    """
    chosen, found = _chosen(names), _engine(engine, dry_run)
    if image_prefix() == "kfloop":
        raise InputError(
            "KFLOOP_IMAGE_PREFIX is not set, so there is no registry to push to; set it to one, "
            "for example registry.example.com/ml, and build with it."
        )
    if digests and digests.exists():
        image_digests(digests)  # A file that cannot be read is told before anything is pushed.
    for name in chosen:
        if dry_run:
            say([found.name, "push", reference(name)])
            continue
        digest = found.push(reference(name))
        click.echo(f"{reference(name)}  {digest}")
        if digests:
            _keep_digest(digests, name, digest)


def _keep_digest(path: Path, name: str, digest: str) -> None:
    """Adds a digest to the file, which another push may be writing too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        known = image_digests(path) if path.exists() else {}
        write_json(path, dict(sorted({**known, name: digest}.items())))
    finally:
        os.close(folder)


@images.command("list")
@_engine_option
def list_command(engine: str | None) -> None:
    """List the images: names, digests, and the sizes of those that are here."""
    from rich.table import Table

    from kfloop.scripts.tables import print_table

    digests = image_digests()
    try:
        found = find_engine(engine or "")
    except InputError as error:
        click.echo(f"sizes are not known: {error}", err=True)
        found = None
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("image", "reference", "digest", "size"):
        table.add_column(column, no_wrap=True)
    for name in IMAGES:
        size = found.size(reference(name)) if found else ""
        table.add_row(name, reference(name), digests.get(name, ""), size)
    print_table(table)


@images.command("sbom")
@click.argument("name", metavar="IMAGE")
@_engine_option
def sbom_command(name: str, engine: str | None) -> None:
    """Print the CycloneDX bill of materials of an image that is here."""
    (chosen,) = _chosen((name,))
    click.echo(_bill_of_materials(find_engine(engine or ""), reference(chosen)), nl=False)


def checkout() -> Path:
    """Returns the checkout that images are built from.

    Raises:
        InputError: If kfloop was installed without one.
    """
    root = Path(kfloop.components.__path__[0]).resolve().parent
    if not (root / "setup.cfg").is_file() or not (root / "components" / "Dockerfile").is_file():
        raise InputError(
            f"Images are built from a checkout of kfloop, and {root} is none; clone it and run "
            "`kfloop images` there."
        )
    return root


def describe_build(
    name: str, root: Path, base: str = "", network: str = "", test: bool = False
) -> Build:
    """Returns what the build of an image is told.

    Args:
        name: One of `IMAGES`.
        root: The checkout.
        base: Base image, or empty for the Dockerfile's.
        network: The engine's network while it builds.
        test: Whether the image is the one that runs the family's tests.
    """
    arguments = {
        "FAMILY": name.partition("-")[0],
        "LOCK": IMAGES[name],
        "MODULES": _MODULES.get(name, ""),
        "PREFIX": image_prefix(),
        "VERSION": VERSION,
        "REVISION": git_commit(root),
        "BASE": base,
    }
    tag = reference(name) + ("-test" if test else "")
    labels = {"org.opencontainers.image.source": source_of(root)}
    return Build(root, tag, "test" if test else "image", arguments, labels, network)


def source_of(root: Path) -> str:
    """Returns the public address of the checkout's origin, or nothing."""
    if not shutil.which("git"):
        return ""
    done = subprocess.run(
        ["git", "remote", "get-url", "origin"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    address = done.stdout.strip()
    parts = urlsplit(address)
    # Others are paths of this machine, or need a login.
    return address if parts.scheme == "https" and not parts.username else ""


def _bill_of_materials(engine: Engine, tag: str) -> str:
    from kfloop.scripts.image_sbom import bill_of_materials

    told = engine.output(tag, ["python", "-m", "kfloop.components.image_inventory"])
    return bill_of_materials(tag, json.loads(told), git_commit(checkout()))


def _chosen(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the images asked for.

    Raises:
        InputError: If one does not exist.
    """
    for name in names:
        if name not in IMAGES:
            raise InputError(f"There is no image {name!r}; there is {', '.join(IMAGES)}.")
    return tuple(names) or FAMILY_IMAGES


def _engine(chosen: str | None, dry_run: bool) -> Engine:
    # What is only printed may be for another machine.
    return Engine(chosen) if chosen and dry_run else find_engine(chosen or "")
