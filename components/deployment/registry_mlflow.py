"""MLflow as the registry: a run with metrics and parameters, and a model version of it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment.registry import SQLITE, Version


class MlflowRegistry:
    """A registry at an MLflow tracking URI."""

    def __init__(self, uri: str) -> None:
        # A first use of a sqlite registry tells every migration of its schema.
        for chatty in ("alembic", "mlflow", "sqlalchemy"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        self.uri = uri

    def register(self, version: Version, alias: str) -> str:
        """Logs a run and makes it a model version; a URI that is known gets neither again."""
        with self._told(f"{version.uri} could not be registered") as client:
            name = version.name
            try:
                client.get_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                client.create_registered_model(name)
            known = [
                each
                for each in client.search_model_versions(f"name = '{name}'")
                if each.source == version.uri
            ]
            made = (
                min(known, key=lambda each: int(each.version)) if known else _make(client, version)
            )
            if alias:
                client.set_registered_model_alias(name, alias, made.version)
            return f"{name}/{made.version}"

    def find(self, name: str, alias: str) -> str:
        """Returns the source of the version with the alias."""
        with self._told(f"{name} could not be looked up") as client:
            try:
                return str(client.get_model_version_by_alias(name, alias).source)
            except MlflowException as error:
                # An alias that is not set is an invalid parameter to MLflow.
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return ""
                raise

    @contextmanager
    def _told(self, failure: str) -> Iterator[MlflowClient]:
        try:
            if self.uri.startswith(SQLITE):
                Path(self.uri.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
            yield MlflowClient(self.uri)
        except MlflowException as error:
            raise InputError(f"{failure} in {self.uri}: {str(error).splitlines()[0]}") from error


def _make(client: MlflowClient, version: Version) -> Any:
    name = version.name
    experiment = client.get_experiment_by_name(name)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
    title = f"{name} {version.version}"
    run = client.create_run(experiment_id, run_name=title, tags=version.tags).info.run_id
    for metric, value in version.metrics.items():
        client.log_metric(run, metric, value)
    for parameter, value in version.parameters.items():
        client.log_param(run, parameter, value)
    client.set_terminated(run)
    return client.create_model_version(name, source=version.uri, run_id=run, tags=version.tags)
