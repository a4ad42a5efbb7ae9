# SPDX-License-Identifier: Apache-2.0
"""The steps of a training, which import Feast only where there are features: it takes seconds."""

import shutil
from pathlib import Path
from typing import Any

from kfloop.components.contracts.dataset import fingerprint, read_dataset, write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import new_directory, write_text

CONFIG = "feature_store.yaml"
NO_REPO = "no-feature-repo.txt"


def is_repo(path: str | Path) -> bool:
    """Returns whether an artifact of `apply` holds a repository, or says that there is none.

    Raises:
        InputError: If it is neither.
    """
    if (Path(path) / NO_REPO).is_file():
        return False
    if not (Path(path) / CONFIG).is_file():
        raise InputError(f"{path} is not a feature repository: it holds no {CONFIG}.")
    return True


def apply(
    feature_tables: str | Path, path: str | Path, repo_uri: str = "", feature_service: str = ""
) -> dict[str, Any]:
    """Does what `repository.apply` does; without a repository, writes that there is none.

    Raises:
        InputError: If the repository or the service is not there, or a definition does not fit
            the tables.
    """
    if repo_uri:
        from kfloop.components.features import repository

        return repository.apply(feature_tables, path, repo_uri, feature_service)
    if feature_service:
        raise InputError(
            f"The feature service {feature_service!r} needs a feature repository; "
            "set features.repo, or leave the service out."
        )
    with new_directory(path) as directory:
        write_text(directory / NO_REPO, "This loop has no feature repository.\n")
        return {"feature_service": "", "fingerprint": fingerprint(directory)}


def materialize(
    feature_repo: str | Path, path: str | Path, since: str = "", until: str = ""
) -> dict[str, Any]:
    """Does what `materialize.materialize` does; without a repository, copies the artifact.

    Raises:
        InputError: If it is no feature repository, the window is empty, or it ends before values
            that are in the online store already.
    """
    if is_repo(feature_repo):
        _import_feast()
        from kfloop.components.features.materialize import materialize

        return materialize(feature_repo, path, since, until)
    with new_directory(Path(path).absolute()) as copy:
        shutil.copytree(feature_repo, copy, dirs_exist_ok=True)
    print("No feature repository: nothing to materialize.", flush=True)
    return {"feature_views": [], "since": "", "until": "", "intervals": {}}


def retrieve(
    examples: str | Path,
    feature_repo: str | Path,
    path: str | Path,
    timestamp: str,
    feature_service: str = "",
) -> dict[str, Any]:
    """Does what `training_set.retrieve` does; without a service, passes the examples through.

    Raises:
        InputError: If the service, an entity key, a requested column or a timestamp is missing,
            or a feature has the name of a column.
    """
    if feature_service and is_repo(feature_repo):
        _import_feast()
        from kfloop.components.features.training_set import retrieve

        return retrieve(examples, feature_repo, path, timestamp, feature_service)
    if feature_service:
        raise InputError(
            f"The feature service {feature_service!r} needs a feature repository; there is none."
        )
    print("No feature service: the examples are the training set.", flush=True)
    told = {"feature_service": "", "features": [], "missing": {}}
    return write_dataset(read_dataset(examples), path, timestamp) | told


def _import_feast() -> None:
    from kfloop.components.contracts.feast_import import import_feast

    import_feast()
