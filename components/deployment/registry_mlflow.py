# SPDX-License-Identifier: Apache-2.0
"""MLflow as the registry: a run with metrics and parameters, and a model version of it."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException

from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment.registry import SQLITE, Version

_NOT_THERE = "RESOURCE_DOES_NOT_EXIST"


class MlflowRegistry:
    """A registry at an MLflow tracking URI."""

    def __init__(self, uri: str) -> None:
        # A first use of a sqlite registry tells every migration of its schema.
        for chatty in ("alembic", "mlflow", "sqlalchemy"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        self.uri = uri

    def register(self, version: Version) -> str:
        """Logs a run and makes it a model version; a URI that is known gets neither again."""
        with self._told(f"{version.uri} could not be registered") as client:
            name = version.name
            try:
                client.get_registered_model(name)
            except MlflowException as error:
                if error.error_code != _NOT_THERE:
                    raise
                client.create_registered_model(name)
            made = _registered(client, name, version.uri) or _make(client, version, self._shelf())
            return f"{name}/{made.version}"

    def set_alias(self, name: str, alias: str, uri: str) -> str:
        """Moves MLflow's alias, or takes it away."""
        with self._told(f"The alias {alias} of {name} could not be moved") as client:
            try:
                client.get_registered_model(name)
            except MlflowException as error:
                if error.error_code != _NOT_THERE:
                    raise
                return ""
            wanted = _registered(client, name, uri) if uri else None
            if wanted is None:
                client.delete_registered_model_alias(name, alias)
                return ""
            client.set_registered_model_alias(name, alias, wanted.version)
            return f"{name}/{wanted.version}"

    def find(self, name: str, alias: str) -> str:
        """Returns the source of the version with the alias."""
        with self._told(f"{name} could not be looked up") as client:
            try:
                return str(client.get_model_version_by_alias(name, alias).source)
            except MlflowException as error:
                # An alias that is not set is an invalid parameter to MLflow.
                if error.error_code in (_NOT_THERE, "INVALID_PARAMETER_VALUE"):
                    return ""
                raise

    @contextmanager
    def _told(self, failure: str) -> Iterator[MlflowClient]:
        try:
            if self.uri.startswith(SQLITE):
                _require_writable(Path(self.uri.removeprefix(SQLITE)))
            yield MlflowClient(self.uri)
        except MlflowException as error:
            raise InputError(f"{failure} in {self.uri}: {str(error).splitlines()[0]}") from error

    def _shelf(self) -> str:
        """Where a new experiment of a file registry keeps its files; servers know it themselves."""
        if not self.uri.startswith(SQLITE):
            return ""
        database = Path(self.uri.removeprefix(SQLITE)).absolute()
        return (database.parent / f"{database.stem}-files").as_uri()


def _require_writable(database: Path) -> None:
    """Raises InputError at once, where MLflow would try again for minutes."""
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with database.open("ab"):  # an empty file is an empty database
            pass
        # SQLite puts its journal beside the file.
        writable = os.access(database.parent, os.W_OK)
    except OSError as error:
        raise InputError(
            f"The registry {database} cannot be written ({error.strerror}); give another registry."
        ) from error
    if not writable:
        raise InputError(
            f"The registry {database} cannot be written, since its directory may only be read; "
            "give another registry."
        )


def _registered(client: MlflowClient, name: str, uri: str) -> Any:
    """Returns the version that was made from a package, the first of them, or None."""
    known = [
        each for each in client.search_model_versions(f"name = '{name}'") if each.source == uri
    ]
    return min(known, key=lambda each: int(each.version)) if known else None


def _make(client: MlflowClient, version: Version, shelf: str) -> Any:
    name = version.name
    experiment = client.get_experiment_by_name(name)
    experiment_id = (
        experiment.experiment_id
        if experiment
        else client.create_experiment(name, f"{shelf}/{name}" if shelf else None)
    )
    title = f"{name} {version.version}"
    run = client.create_run(experiment_id, run_name=title, tags=version.tags).info
    client.log_batch(
        run.run_id,
        [Metric(key, value, run.start_time, 0) for key, value in version.metrics.items()],
        [Param(key, str(value)) for key, value in version.parameters.items()],
    )
    client.log_inputs(run.run_id, [_input(*each, version.uri) for each in version.datasets.items()])
    # Other stores need packages and credentials that this step does not have.
    if urlsplit(run.artifact_uri).scheme in ("", "file", "mlflow-artifacts", "http", "https"):
        for path in version.files.values():
            client.log_artifact(run.run_id, str(path))
    client.set_terminated(run.run_id)
    return client.create_model_version(
        name,
        source=version.uri,
        run_id=run.run_id,
        tags=version.tags,
        description=f"Published version {version.version}, at {version.uri}",
    )


def _input(context: str, fingerprint: str, uri: str) -> DatasetInput:
    """Returns a dataset as MLflow shows it; it holds 36 characters of the fingerprint."""
    data = Dataset(f"{context} data", fingerprint[:36], "kfloop", json.dumps({"model": uri}))
    return DatasetInput(data, [InputTag("mlflow.data.context", context)])
