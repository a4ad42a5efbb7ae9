# SPDX-License-Identifier: Apache-2.0
"""Publishing into a bucket: a package becomes an immutable version below gs:// or s3://.

A bucket has no rename, so a version is claimed first, by an object in its directory. Whoever finds
another's claim beside the own one takes the own away and tries again: of two claims one was
written last, and its publisher sees both. `model.json` is written last, so that half a package is
none.
"""

import random
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import ModelPackage, write_model_json
from kfloop.components.contracts.package_storage import first_line, open_storage

CLAIM_PREFIX = ".claim-"
ATTEMPTS = 50
LONGEST_PAUSE = 1.0
MODEL_JSON = "model.json"


def publish_remote(copy: Path, package: ModelPackage, model_repository: str) -> str:
    """Uploads a complete package as the next version and returns its URI.

    Args:
        copy: Directory with everything to publish; its model.json gets the version.
        package: What model.json says.
        model_repository: gs:// or s3:// URI of the directory of the published models.

    Raises:
        InputError: If the bucket cannot be written, or no version can be claimed.
    """
    system, root = open_storage(model_repository)
    shelf = f"{root}/{package.name}"
    try:
        version = _claim(system, shelf)
        write_model_json(replace(package, version=version), copy)
        files = sorted(path.relative_to(copy).as_posix() for path in copy.rglob("*"))
        files.sort(key=lambda name: name == MODEL_JSON)
        for name in files:
            if (copy / name).is_file():
                with system.open_output_stream(f"{shelf}/{version}/{name}") as stream:
                    stream.write((copy / name).read_bytes())
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{model_repository} cannot be written: {first_line(error)}.") from error
    return f"{model_repository.rstrip('/')}/{package.name}/{version}"


def remote_versions(system: pafs.FileSystem, shelf: str) -> list[int]:
    """Returns the version numbers below a model's directory, claimed ones too, in order."""
    found = system.get_file_info(pafs.FileSelector(shelf, allow_not_found=True, recursive=True))
    names = {entry.path.removeprefix(f"{shelf}/").split("/")[0] for entry in found}
    return sorted(int(name) for name in names if name.isdecimal())


def _claim(system: pafs.FileSystem, shelf: str) -> str:
    """Takes the next version for this publisher alone."""
    for _ in range(ATTEMPTS):
        version = str(max(remote_versions(system, shelf), default=0) + 1)
        claim = f"{shelf}/{version}/{CLAIM_PREFIX}{uuid.uuid4().hex}"
        with system.open_output_stream(claim) as stream:
            stream.write(b"published by kfloop")
        beside = system.get_file_info(pafs.FileSelector(f"{shelf}/{version}", recursive=True))
        if [entry.path for entry in beside if entry.type == pafs.FileType.File] == [claim]:
            return version
        system.delete_file(claim)
        time.sleep(random.uniform(0, LONGEST_PAUSE))
    raise InputError(
        f"No version of {shelf} could be claimed in {ATTEMPTS} attempts; others publish there all "
        "the time, so run this step again."
    )
