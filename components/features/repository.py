# SPDX-License-Identifier: Apache-2.0
"""The feature repository as an artifact: definitions, feature tables, registry, online store.

Layout::

    <artifact>/
      feature_store.yaml      completed; its paths are relative, so the artifact can be moved
      *.py, …                 the user's definitions
      data/<table>/           one dataset per feature table
      data/registry.db        what was applied
      data/online_store.db    what was materialized

A loop without features has an artifact with only `no-feature-repo.txt` (see `steps`).
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.dataset as ds
from feast import FeatureStore, FeatureView, FileSource, Project
from feast.errors import FeastError
from feast.feature_view import DUMMY_ENTITY_ID
from feast.repo_config import RepoConfig
from feast.repo_contents import RepoContents
from feast.repo_operations import extract_objects_for_apply_delete, parse_repo

from kfloop.components.contracts.dataset import fingerprint, row_count, table_names
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import local_path, new_directory
from kfloop.components.features.cloud import download_directory
from kfloop.components.features.config import complete, load
from kfloop.components.features.offline_store import local_path as local_path_of
from kfloop.components.features.registry import require_shared_online_store, sole_writer
from kfloop.components.features.steps import CONFIG

# Of a user's repository, what an artifact makes itself.
LEFT_OUT = ("__pycache__", "data")
# What the user's definitions can raise while they are imported and checked.
DEFINITION_ERRORS = (
    FeastError,
    ImportError,
    SyntaxError,
    NameError,
    AttributeError,
    TypeError,
    ValueError,
    LookupError,
)


def apply(
    feature_tables: str | Path, path: str | Path, repo_uri: str, feature_service: str = ""
) -> dict[str, Any]:
    """Copies a Feast repository, puts feature tables into it and applies its definitions.

    Args:
        feature_tables: Tables; each becomes `data/<table>/` of the repository.
        path: The artifact to write.
        repo_uri: The user's repository, a directory or `gs://` address.
        feature_service: Feature service that must exist; empty for none.

    Returns:
        `project`, `feature_service`, `feature_services`, `feature_views`, `entities` (join keys),
        `tables` (rows by name) and `fingerprint` (of definitions and tables).

    Raises:
        InputError: If the repository or the service is not there, or a definition does not fit
            the tables.
    """
    with new_directory(Path(path).absolute()) as repo:
        _copy(repo_uri, repo)
        tables = {}
        for name in table_names(feature_tables):
            shutil.copytree(Path(feature_tables) / name, repo / "data" / name)
            tables[name] = row_count(repo / "data" / name)
        (repo / "data").mkdir(exist_ok=True)
        complete(repo, PurePosixPath(repo_uri).name)
        # Before apply, which writes the time of the day into the registry.
        identity = fingerprint(repo)
        _apply_definitions(repo, repo_uri)
        store = open_store(repo)
        services = sorted(service.name for service in store.list_feature_services())
        if feature_service and feature_service not in services:
            raise InputError(
                f"The feature service {feature_service!r} does not exist in {repo_uri}; "
                f"it has {', '.join(services) or 'none'}."
            )
        views = [*store.list_feature_views(), *store.list_on_demand_feature_views()]
        print(f"Applied {len(views)} feature views; services: {', '.join(services)}", flush=True)
        return {
            "project": store.project,
            "feature_service": feature_service,
            "feature_services": services,
            "feature_views": sorted(view.name for view in views),
            "entities": sorted(entity.join_key for entity in store.list_entities()),
            "tables": tables,
            "fingerprint": identity,
        }


def _copy(uri: str, repo: Path) -> None:
    """Copies a user's repository without its data."""
    if uri.startswith("gs://"):
        download_directory(uri, repo, LEFT_OUT)
    elif "://" in uri and not uri.startswith("file://"):
        raise InputError(
            f"The feature repository is {uri!r}; it can be a directory, also of a mounted volume, "
            "or at gs://, so copy it there."
        )
    else:
        shutil.copytree(
            local_path(uri, "The feature repository"),
            repo,
            ignore=shutil.ignore_patterns(*LEFT_OUT, ".*"),
            dirs_exist_ok=True,
        )
    if not any(repo.glob("*.py")):
        raise InputError(f"The feature repository {uri} holds no definitions (*.py).")


def open_store(repo: str | Path, config: RepoConfig | None = None) -> FeatureStore:
    """Opens an applied repository.

    With its path: a store that is given only its configuration looks for the registry below the
    working directory, and quietly makes an empty one there.

    Args:
        repo: The repository.
        config: Its configuration, when it is loaded already.

    Raises:
        InputError: If its configuration asks for an environment variable that is not set.
    """
    return FeatureStore(repo_path=str(Path(repo).absolute()), config=config or load(repo))


@contextlib.contextmanager
def at_home(repo: str | Path) -> Iterator[None]:
    """Works inside a repository, as Feast's own command line does.

    Feast's DuckDB store resolves relative paths against the working directory, and definitions
    import each other by file name. Modules of the repository are forgotten afterwards, so that
    another one in the same process does not get them.
    """
    home = str(Path(repo).absolute())
    before = set(sys.modules)
    sys.path.insert(0, home)
    # Otherwise importing the definitions leaves __pycache__ in the artifact.
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        with contextlib.chdir(home):
            yield
    finally:
        sys.dont_write_bytecode = writes
        sys.path.remove(home)
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None) or ""
            if file.startswith(home + os.sep):
                del sys.modules[name]


def _apply_definitions(repo: Path, source: str) -> None:
    config = load(repo)
    require_shared_online_store(config, repo)
    with at_home(repo):
        try:
            contents = parse_repo(repo)
            _require_columns(contents, repo)
            _require_project(contents, config.project)
            with sole_writer(config, repo):
                store = open_store(repo, config)
                changed, gone, *_ = extract_objects_for_apply_delete(
                    config.project, store.registry, contents
                )
                # Feast's command line takes another way with SQLite: there it drops the online
                # tables of other projects in the same registry, and notes where this directory is.
                store.apply(changed, objects_to_delete=gone, partial=False)
        except InputError:
            raise
        except DEFINITION_ERRORS as error:
            told = " ".join(str(error).split())
            raise InputError(
                f"The feature repository {source} cannot be applied: "
                f"{type(error).__name__}: {told}."
            ) from error


def _require_project(contents: RepoContents, name: str) -> None:
    """Adds the project when the definitions have none, as Feast does."""
    if not contents.projects:
        contents.projects.append(Project(name=name))
    names = [project.name for project in contents.projects]
    if names != [name]:
        raise InputError(
            f"The definitions are of the project {', '.join(names)} and {CONFIG} is of {name}; "
            "a repository has one project."
        )


def _require_columns(contents: RepoContents, repo: Path) -> None:
    """Checks what Feast would find out only when features are read."""
    tables = sorted(entry.name for entry in (repo / "data").iterdir())
    keys = {entity.name: entity.join_key for entity in contents.entities}
    for view in contents.feature_views:
        found = local_source(view, repo)
        if found is None:
            continue
        source, file = found
        if not file.exists():
            raise InputError(
                f"The feature view {view.name!r} reads {source.path}, which is not "
                f"there; the feature tables are {', '.join(tables) or 'none'}."
            )
        schema = ds.dataset(file, format="parquet").schema
        renamed = {new: old for old, new in source.field_mapping.items()}
        named = {*(field.name for field in view.schema), *(keys[name] for name in view.entities)}
        needed = {renamed.get(name, name) for name in named - {DUMMY_ENTITY_ID}}
        needed |= {
            renamed.get(name, name)
            for name in (source.timestamp_field, source.created_timestamp_column)
        }
        missing = sorted(needed - set(schema.names) - {""})
        if missing:
            raise InputError(
                f"The feature view {view.name!r} needs the column {', '.join(missing)}, which "
                f"{source.path} lacks; it has {', '.join(schema.names)}."
            )


def local_source(view: FeatureView, repo: str | Path) -> tuple[FileSource, Path] | None:
    """Returns a view's source and where its Parquet files are, or None when they are not local."""
    path = local_path_of(view.batch_source, repo)
    return None if path is None else (view.batch_source, path)
