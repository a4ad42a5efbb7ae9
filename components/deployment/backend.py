"""Where a service lives: the one interface that rollouts are written against."""

import os
from dataclasses import dataclass, field
from typing import Protocol

from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment.manifest import Manifest


@dataclass(frozen=True)
class PredictorStatus:
    """One running model version.

    Attributes:
        name: Predictor name, for example `v2`.
        url: Its own address, past the traffic split.
        model_version: The version that it loaded; empty before.
        storage_uri: The package that it serves.
        ready: Whether it answers.
        error: Why it cannot load, or empty.
        traffic: Its share of the requests, in percent.
    """

    name: str
    url: str
    model_version: str
    storage_uri: str
    ready: bool
    error: str
    traffic: int


@dataclass(frozen=True)
class ServiceStatus:
    """What a service is doing now, which may lag behind its manifest.

    Attributes:
        running: Whether anything of it runs.
        url: Public address, where the traffic is split.
        generation: The manifest that it works on now.
        observed_generation: Newest manifest that is in effect whole.
        predictors: Running versions by predictor name.
    """

    running: bool
    url: str
    generation: int
    observed_generation: int
    predictors: dict[str, PredictorStatus] = field(default_factory=dict)


class Backend(Protocol):
    """Keeps manifests and makes them real."""

    namespace: str

    def names(self) -> list[str]:
        """Returns the names of all services."""

    def get(self, service: str) -> Manifest | None:
        """Returns a service's manifest, or None when there is none."""

    def apply(self, manifest: Manifest) -> int:
        """Writes a manifest whole, sees to it that the service runs, and returns its generation.

        A manifest that `get` returned carries its generation. When somebody else wrote a newer
        one meanwhile, nothing is written.

        Raises:
            InputError: If the service was changed by somebody else.
        """

    def delete(self, service: str) -> None:
        """Stops a service and forgets its manifest."""

    def ensure_running(self, service: str) -> None:
        """Starts a service that is not running, for example after a restart of the machine."""

    def status(self, service: str) -> ServiceStatus:
        """Returns what the service is doing now."""

    def flush_log(self, service: str) -> None:
        """Waits, if it can, until every answered request is in the inference log."""

    def default_log(self, service: str) -> str:
        """Returns where a new service writes its inference log when nobody says."""


def connect(namespace: str = "") -> Backend:
    """Returns the backend of this process: the laptop's when `KFLOOP_STATE` is set.

    Raises:
        InputError: If it is not set: this release deploys to the local service only.
    """
    state = os.environ.get("KFLOOP_STATE", "")
    if not state:
        raise InputError(
            "KFLOOP_STATE is not set, so this would deploy to a Kubernetes cluster, which this "
            "release cannot do yet; run the pipeline with `kfloop run`."
        )
    from kfloop.components.deployment.local_backend import LocalBackend

    return LocalBackend(state)


def require_service(backend: Backend, service: str) -> Manifest:
    """Returns the manifest of a service.

    Raises:
        InputError: If there is no such service; the message names the ones there are.
    """
    manifest = backend.get(service)
    if manifest is None:
        names = ", ".join(backend.names()) or "none"
        raise InputError(
            f"There is no service {service!r} in namespace {backend.namespace!r} (there is: "
            f"{names}); deploy a model to it first."
        )
    return manifest
