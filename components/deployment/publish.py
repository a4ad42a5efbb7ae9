# SPDX-License-Identifier: Apache-2.0
"""Publishing: a trained package becomes an immutable version in the model repository."""

import errno
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import local_path, write_json
from kfloop.components.contracts.model_package import (
    EVALUATION,
    GOLDEN,
    REFERENCE,
    REQUEST,
    SAVED_MODEL,
    ModelPackage,
    read_model_json,
    write_model_json,
)
from kfloop.components.contracts.package_storage import REMOTE, mounted_path
from kfloop.components.deployment.packages import package_rows
from kfloop.components.deployment.publish_remote import publish_remote
from kfloop.components.deployment.smoke_test import request_columns

SCRATCH_PREFIX = ".publishing-"
ABANDONED_AFTER_SECONDS = 24 * 3600


def publish_model(model: str | Path, evaluation: str | Path, model_repository: str) -> str:
    """Copies a model package to `<model_repository>/<name>/<next version>` and returns its URI.

    The copy is made beside and becomes the version by one rename, so nobody ever sees half of one,
    and of two publishers at once each gets its own version. For buckets see `publish_remote`.

    Args:
        model: Directory of the package, as training wrote it.
        evaluation: The evaluation's JSON file; it is kept with the version.
        model_repository: Where the published models are: a directory (or file:// URI), gs://,
            s3://, or pvc:// of a mounted claim.

    Returns:
        Absolute path of the published package, or its URI.

    Raises:
        InputError: If the package is incomplete, or the repository cannot be written.
    """
    source = Path(model)
    package = read_model_json(source)
    for needed in (f"{SAVED_MODEL}/saved_model.pb", REFERENCE, GOLDEN):
        if not (source / needed).is_file():
            raise InputError(f"The model package {source} is incomplete: {needed} is missing.")
    if not package.name or "/" in package.name or package.name.startswith("."):
        raise InputError(
            f"The model name {package.name!r} cannot be a directory's name; train it under another."
        )
    scheme = urlsplit(model_repository).scheme
    if scheme in REMOTE:
        with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX) as scratch:
            _complete(source, evaluation, package, Path(scratch))
            return publish_remote(Path(scratch), package, model_repository)
    if scheme == "pvc":
        mounted = publish_model(model, evaluation, str(mounted_path(model_repository)))
        version = Path(mounted).name
        return f"{model_repository.rstrip('/')}/{package.name}/{version}"
    shelf = local_path(model_repository, "model_repository") / package.name
    shelf.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(shelf)
    copy = Path(tempfile.mkdtemp(dir=shelf, prefix=SCRATCH_PREFIX))
    try:
        _complete(source, evaluation, package, copy)
        copy.chmod(0o755)
        while True:
            version = str(max(published_versions(shelf), default=0) + 1)
            write_model_json(replace(package, version=version), copy)
            if _rename_new(copy, shelf / version):
                return str(shelf / version)
    except BaseException:
        shutil.rmtree(copy, ignore_errors=True)
        raise


def _complete(source: Path, evaluation: str | Path, package: ModelPackage, copy: Path) -> None:
    """Fills a directory with everything of a version but its number."""
    shutil.copytree(source, copy, dirs_exist_ok=True)
    shutil.copyfile(evaluation, copy / EVALUATION)
    instances, _ = package_rows(str(copy), GOLDEN, request_columns(package), 1)
    write_json(copy / REQUEST, {"instances": instances})


def published_versions(shelf: Path) -> list[int]:
    """Returns the version numbers below a model's directory, in order."""
    return sorted(int(entry.name) for entry in shelf.iterdir() if entry.name.isdecimal())


def _rename_new(source: Path, target: Path) -> bool:
    """Renames a directory; False when another publisher took the name first."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _remove_abandoned(shelf: Path) -> None:
    """Removes what killed publishers left; a day is longer than any copy takes."""
    for scratch in shelf.glob(f"{SCRATCH_PREFIX}*"):
        try:
            age = time.time() - scratch.stat().st_mtime
        except FileNotFoundError:  # another publisher removed it just now
            continue
        if age > ABANDONED_AFTER_SECONDS:
            shutil.rmtree(scratch, ignore_errors=True)
