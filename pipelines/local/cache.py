# SPDX-License-Identifier: Apache-2.0
"""Step caching by content: the same code on the same bytes is not run twice.

Unlike the cluster's cache, which compares names, a changed file under an unchanged name is a miss:
input artifacts count by their content, and a parameter that names a local file or directory counts
by what is there.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from kfloop.components.contracts.files import read_json, write_json
from kfloop.pipelines.local.pipeline_spec import Artifact


def digest_path(path: str | Path) -> str:
    """Returns a hash of a file's or directory's names and bytes; `absent` when there is nothing."""
    root = Path(path)
    if not root.exists():
        return "absent"
    files = [root] if root.is_file() else sorted(f for f in root.rglob("*") if f.is_file())
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(file.relative_to(root).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


@lru_cache(maxsize=32)
def digest_source(family_directory: Path, contracts: Path) -> str:
    """Returns a hash of a family's own code and the contracts it shares."""
    digest = hashlib.blake2b(digest_size=16)
    for directory in (family_directory, contracts):
        for file in sorted(directory.glob("*.py")) if directory.is_dir() else ():
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def cache_key(
    command: list[str],
    environment: str,
    source: str,
    variables: Mapping[str, str],
    parameters: Mapping[str, Any],
    artifacts: Mapping[str, list[Artifact]],
) -> str:
    """Returns the key of a task: everything its outputs may depend on."""
    content = {
        "command": command,
        "environment": environment,
        "source": source,
        "variables": dict(variables),
        "parameters": dict(parameters),
        "named files": sorted(_stamp(path) for path in _local_paths(parameters)),
        "artifacts": {
            name: [(artifact.digest, dict(artifact.metadata)) for artifact in listed]
            for name, listed in artifacts.items()
        },
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _local_paths(value: Any) -> Iterator[Path]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _local_paths(item)
    elif isinstance(value, list):
        for item in value:
            yield from _local_paths(item)
    elif isinstance(value, str) and value.startswith("/") and len(value) < 4096:
        path = Path(value)
        if "\n" not in value and path.exists():
            yield path


def _stamp(path: Path) -> str:
    # Size and time, not bytes: sources can be far larger than what a step makes of them.
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    stats = [(str(file), file.stat()) for file in files if "__pycache__" not in file.parts]
    return json.dumps([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])


def load(directory: Path, key: str) -> tuple[dict[str, Any], dict[str, list[Artifact]]] | None:
    """Returns the outputs kept under `key`, or None when there are none or their files are gone."""
    path = directory / f"{key}.json"
    if not path.is_file():
        return None
    document = read_json(path)
    artifacts = {
        name: [Artifact(**entry) for entry in listed]
        for name, listed in document["artifacts"].items()
    }
    for listed in artifacts.values():
        for artifact in listed:
            if artifact.digest != "absent" and not Path(artifact.uri).exists():
                return None
    return document["parameters"], artifacts


def store(
    directory: Path,
    key: str,
    parameters: Mapping[str, Any],
    artifacts: Mapping[str, list[Artifact]],
) -> None:
    """Keeps a task's outputs; the files stay where the run wrote them."""
    write_json(
        directory / f"{key}.json",
        {
            "parameters": dict(parameters),
            "artifacts": {
                name: [asdict(artifact) for artifact in listed]
                for name, listed in artifacts.items()
            },
        },
    )
