# SPDX-License-Identifier: Apache-2.0
"""What a job elsewhere reads and writes: a directory on a volume that its pods and this one mount.

A pipeline's artifacts lie in an object store that only the pipeline's own pods see as files.
"""

import hashlib
import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kfloop.components.contracts.dataset import fingerprint
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import new_directory, write_json
from kfloop.components.training.columns import Roles
from kfloop.components.training.settings import TrainSettings

DATASET, SCHEMA, SPEC, MODEL, CURVES = (
    "dataset",
    "schema.pbtxt",
    "train.json",
    "model",
    "curves.html",
)


@dataclass(frozen=True)
class Volume:
    """A volume that several pods write: a PersistentVolumeClaim with ReadWriteMany.

    Attributes:
        claim: Name of the claim, in the job's namespace.
        path: Where it is mounted, here and in the job's pods alike.
    """

    claim: str
    path: str


def job_name(name: str, content: Any, dataset: str | Path) -> str:
    """Returns a name that is the same for the same work on the same data: a DNS label."""
    identity = json.dumps([content, fingerprint(dataset)], sort_keys=True).encode()
    readable = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-")
    start = readable if readable[:1].isalpha() else f"m-{readable}".rstrip("-")
    return f"{start}-{hashlib.sha256(identity).hexdigest()[:10]}"


def specification(directory: Path, roles: Roles, settings: TrainSettings) -> dict[str, Any]:
    """Returns what `kfloop.components.training.distributed` reads."""
    places = (("dataset", DATASET), ("schema", SCHEMA), ("model", MODEL), ("curves", CURVES))
    return {
        **{name: str(directory / place) for name, place in places},
        "roles": asdict(roles),
        "settings": asdict(settings),
    }


def share(
    volume: Volume, name: str, dataset: str | Path, schema: str | Path, spec: dict[str, Any]
) -> Path:
    """Copies a job's data to the volume, once, and returns its directory there.

    Raises:
        InputError: If the volume is not mounted here.
    """
    root = Path(volume.path)
    if not root.is_dir():
        raise InputError(
            f"There is no {root}: mount the claim {volume.claim!r} there in this step too, by "
            "`volumes` in the loop file."
        )
    directory = root / name
    if not (directory / DATASET).is_dir():
        with new_directory(directory / DATASET) as beside:
            shutil.copytree(dataset, beside, dirs_exist_ok=True)
    shutil.copyfile(schema, directory / SCHEMA)
    write_json(directory / SPEC, spec)
    return directory
