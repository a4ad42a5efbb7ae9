# SPDX-License-Identifier: Apache-2.0
"""`feature_store.yaml`: completed with defaults, and with the environment where it says `${NAME}`.

The file that travels keeps `${NAME}`; Feast fills it in each time it opens the repository. So the
address of a registry can differ between a laptop and a cluster, and a password is never written.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from feast.repo_config import RepoConfig, load_repo_config

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import write_text
from kfloop.components.features.offline_store import STORE
from kfloop.components.features.steps import CONFIG

DEFAULTS: dict[str, Any] = {
    "provider": "local",
    "registry": "data/registry.db",
    "offline_store": {"type": STORE},
    "online_store": {"type": "sqlite", "path": "data/online_store.db"},
    "entity_key_serialization_version": 3,
}
# Feast's default store loses rows that share entity and time, and rows whose values are too old.
LOSSY_STORES = ("file", "dask")
VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
SECRET_NAME = re.compile(r"password|passwd|secret|token|private_key|access_key|api_key", re.I)
# user:password@ of an address, and password=… of a connection string
SECRET_VALUE = re.compile(r"://[^/@\s:]*:(?!\$)[^/@\s]+@|password=(?!\$)[^,;\s]+", re.I)


def complete(repo: Path, name: str) -> None:
    """Writes the configuration of a repository with what it leaves open.

    Args:
        repo: The repository.
        name: What it is called where it comes from; the project's name if it gives none.

    Raises:
        InputError: If it cannot be read, or a secret is written in it.
    """
    file = repo / CONFIG
    given = _read(file) if file.is_file() else {}
    for where, value in _leaves(given):
        written = isinstance(value, str) and not VARIABLE.match(value) and value
        if SECRET_VALUE.search(str(value)) or (written and SECRET_NAME.search(where)):
            raise InputError(
                f"{CONFIG} has a secret at {where}, and would carry it into every copy of the "
                "repository; put it into an environment variable and write ${ITS_NAME} there."
            )
    config = {"project": re.sub(r"\W", "_", name).lstrip("_") or "features"} | DEFAULTS | given
    offline = config["offline_store"]
    kind = offline.get("type") if isinstance(offline, dict) else offline
    if kind in LOSSY_STORES:
        print(f"The offline store is {STORE} in place of {kind}, which loses rows.", flush=True)
        config["offline_store"] = DEFAULTS["offline_store"]
    write_text(file, yaml.safe_dump(config, sort_keys=False))


def load(repo: str | Path) -> RepoConfig:
    """Returns the configuration of a repository, filled in from the environment.

    Raises:
        InputError: If it names a variable that is not set.
    """
    repo = Path(repo).absolute()
    named = {
        braced or plain: where
        for where, value in _leaves(_read(repo / CONFIG))
        for braced, plain in VARIABLE.findall(str(value))
    }
    unset = [f"{name} (for {where})" for name, where in named.items() if name not in os.environ]
    if unset:
        raise InputError(
            f"{CONFIG} asks the environment for {', '.join(unset)}; "
            "set it where this step runs, for example from a Secret."
        )
    return load_repo_config(repo, repo / CONFIG)


def _read(file: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{CONFIG} is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(config, dict):
        raise InputError(f"{CONFIG} of the feature repository is not a mapping of settings.")
    return config


def _leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every value below, with its path (`registry.path`)."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, below in items:
            yield from _leaves(below, f"{where}.{key}" if where else str(key))
    else:
        yield where, value
