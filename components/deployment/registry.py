# SPDX-License-Identifier: Apache-2.0
"""The registry behind one interface: MLflow, Kubeflow Model Registry, or none."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kfloop.components.contracts.errors import InputError

OFF = "none"
URI_TAG = "kfloop.model_uri"
KUBEFLOW = "kubeflow+"
SQLITE = "sqlite:///"


@dataclass(frozen=True)
class Version:
    """A published version as the registry is told of it.

    Attributes:
        name: Model name.
        version: Version of the published package.
        uri: Where the package is.
        tags: Its lineage.
        metrics: Metric values and interval bounds by name.
        parameters: Hyperparameters.
        datasets: Fingerprint of the data, by what it was for: training, evaluation.
        files: What is kept with the version, by name.
    """

    name: str
    version: str
    uri: str
    tags: dict[str, str]
    metrics: dict[str, float]
    parameters: dict[str, Any]
    datasets: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)


class Registry(Protocol):
    """What kfloop asks of a registry; every failure is an `InputError`."""

    def register(self, version: Version) -> str:
        """Registers a version once and returns `<name>/<version>`."""

    def set_alias(self, name: str, alias: str, uri: str) -> str:
        """Moves the alias to the version at the URI; returns `<name>/<version>`.

        Empty when no version is registered from there, or the URI is: then nobody has the alias.
        """

    def find(self, name: str, alias: str) -> str:
        """Returns the URI of the version that has the alias; empty when there is none."""


def open_registry(registry_uri: str) -> Registry | None:
    """Opens a registry; None when it is off.

    Args:
        registry_uri: MLflow tracking URI; `kubeflow+http://host:port` (or `kubeflow+https`) for a
            Kubeflow Model Registry, whose token is read from `KF_REGISTRY_TOKEN`; `none` for no
            registry. Empty takes `MLFLOW_TRACKING_URI`, else the laptop's
            `$KFLOOP_STATE/mlflow.db`.

    Raises:
        InputError: If it is empty and there is no default.
    """
    if registry_uri == OFF:
        return None
    if registry_uri.startswith(KUBEFLOW):
        from kfloop.components.deployment.registry_kubeflow import KubeflowRegistry

        token = os.environ.get("KF_REGISTRY_TOKEN", "")
        return KubeflowRegistry(registry_uri.removeprefix(KUBEFLOW), token)
    # Slow to import, and not needed when the registry is off.
    from kfloop.components.deployment.registry_mlflow import MlflowRegistry

    return MlflowRegistry(registry_uri or default_registry())


def default_registry() -> str:
    """Returns the registry's URI when nobody gives one.

    Raises:
        InputError: If neither MLFLOW_TRACKING_URI nor KFLOOP_STATE is set.
    """
    place = os.environ.get("MLFLOW_TRACKING_URI", "")
    if place:
        return place
    state = os.environ.get("KFLOOP_STATE", "")
    if not state:
        raise InputError(
            "registry_uri is empty and neither MLFLOW_TRACKING_URI nor KFLOOP_STATE is set; give "
            "an MLflow tracking URI, or 'none' to register nothing."
        )
    return f"sqlite:///{Path(state).absolute() / 'mlflow.db'}"


def find_registered(registry_uri: str, name: str, alias: str) -> str:
    """Returns the URI of the version that has the alias; empty when there is none.

    Raises:
        InputError: If the registry cannot be reached.
    """
    registry = open_existing(registry_uri)
    return registry.find(name, alias) if registry else ""


def open_existing(registry_uri: str) -> Registry | None:
    """Opens a registry; None when it is off, or a file that is not there yet.

    Raises:
        InputError: As `open_registry`.
    """
    place = registry_uri or default_registry()
    # Asking a file that is not there yet would make it, and load MLflow for nothing.
    if place.startswith(SQLITE) and not Path(place.removeprefix(SQLITE)).exists():
        return None
    return open_registry(place)
