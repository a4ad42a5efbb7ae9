# SPDX-License-Identifier: Apache-2.0
"""Model packages where a cluster keeps them: gs://, s3:// and pvc://, read by pyarrow.

A published package never changes, so what was read of it once is good for the whole process.
"""

import atexit
import os
import shutil
import tempfile
from datetime import timedelta
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import local_path
from kfloop.components.contracts.model_package import (
    EVALUATION,
    GOLDEN,
    REFERENCE,
    REQUEST,
    ModelPackage,
    read_model_json,
)

# Where claims are mounted in the pods of a pipeline: pvc://CLAIM/PATH is ROOT/CLAIM/PATH there.
PVC_ROOT = "KFLOOP_PVC_ROOT"
EMULATOR = "STORAGE_EMULATOR_HOST"
REMOTE = ("gs", "s3")
MAX_CHARACTERS = 300
# Arrow's own limit is 15 minutes.
RETRY_TIME = timedelta(seconds=60)
# The small ones: the rest is the model itself.
FILES = ("model.json", EVALUATION, REFERENCE, GOLDEN, REQUEST)


def read_package(model_uri: str) -> ModelPackage:
    """Reads `model.json` of a published package.

    Raises:
        InputError: If it cannot be read, or is not a package.
    """
    return read_model_json(package_directory(model_uri))


def package_directory(model_uri: str, whole: bool = False, name: str = "model_uri") -> Path:
    """Returns a local directory with the files of a package.

    Args:
        model_uri: A path, or a URI with file://, pvc://, gs:// or s3://.
        whole: Whether the model itself is needed, beside the small files.
        name: Which setting it is, for the error.

    Raises:
        InputError: If it cannot be read, or has another scheme.
    """
    scheme = urlsplit(model_uri).scheme
    if scheme == "pvc":
        return mounted_path(model_uri)
    return _copy(model_uri, whole) if scheme in REMOTE else local_path(model_uri, name)


def mounted_path(uri: str) -> Path:
    """Returns where a pvc:// URI is mounted.

    Raises:
        InputError: If `KFLOOP_PVC_ROOT` does not say so, or the claim is not mounted there.
    """
    root, parts = os.environ.get(PVC_ROOT, ""), urlsplit(uri)
    if not root or not (Path(root) / parts.netloc).is_dir():
        raise InputError(
            f"{uri} is on a volume that this step does not have; mount the claim "
            f"{parts.netloc!r} at a directory of that name and set {PVC_ROOT} to the one above."
        )
    return Path(root) / parts.netloc / parts.path.lstrip("/")


def open_storage(uri: str) -> tuple[pafs.FileSystem, str]:
    """Returns the file system of a gs:// or s3:// URI, and the path in it.

    Credentials are those of the environment. `STORAGE_EMULATOR_HOST` sends gs:// to an emulator.
    """
    try:
        if uri.startswith("gs://"):
            return _google(), uri.removeprefix("gs://").rstrip("/")
        system, path = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{uri} cannot be opened: {first_line(error)}.") from error
    return system, path.rstrip("/")


def first_line(error: Exception) -> str:
    """Returns what a storage client says, without what it repeats."""
    text = str(error).strip().partition("\n")[0]
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}…"


def _google() -> pafs.GcsFileSystem:
    emulator = os.environ.get(EMULATOR, "")
    if not emulator:
        return pafs.GcsFileSystem(retry_time_limit=RETRY_TIME)
    parts = urlsplit(emulator if "//" in emulator else f"http://{emulator}")
    return pafs.GcsFileSystem(
        anonymous=True,
        scheme=parts.scheme,
        endpoint_override=parts.netloc,
        retry_time_limit=RETRY_TIME,
    )


@cache
def _copy(model_uri: str, whole: bool) -> Path:
    system, path = open_storage(model_uri)
    copy = Path(tempfile.mkdtemp(prefix="kfloop-package-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    try:
        # One that is not there is told by what needs it.
        asked = pafs.FileSelector(path, allow_not_found=True, recursive=True)
        for info in system.get_file_info(asked if whole else [f"{path}/{name}" for name in FILES]):
            if info.type != pafs.FileType.File:
                continue
            name = info.path.removeprefix(f"{path}/")
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            with system.open_input_file(f"{path}/{name}") as file:
                (copy / name).write_bytes(file.read())
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"The model package {model_uri} cannot be read: {first_line(error)}."
        ) from error
    if not (copy / "model.json").exists():
        raise InputError(f"{model_uri} is not a model package: it holds no model.json.")
    return copy
