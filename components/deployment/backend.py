# SPDX-License-Identifier: Apache-2.0
"""Where a service lives: the one interface that rollouts are written against."""

import os
from dataclasses import dataclass, field
from typing import Protocol

from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment.manifest import Manifest

STANDARD, KNATIVE = "Standard", "Knative"


class ConflictError(InputError):
    """Somebody else changed the service since it was read."""


@dataclass(frozen=True)
class PredictorStatus:
    """One running model version.

    Attributes:
        name: Predictor name, for example `v2`.
        url: Its own address, past the traffic split.
        model_version: The version that it loaded; empty before.
        storage_uri: The package that it serves.
        ready: Whether it answers.
        error: Why it cannot load or gets no share of the requests; or empty.
        traffic: Its share of the requests, in percent.
        patience: Seconds that the error must last before it is final; a cluster heals itself of
            some.
        workload: What a cluster's metrics call it: its Kubernetes Service, its Knative revision.
    """

    name: str
    url: str
    model_version: str
    storage_uri: str
    ready: bool
    error: str
    traffic: int
    patience: float = 0.0
    workload: str = ""


@dataclass(frozen=True)
class ServiceStatus:
    """What a service is doing now, which may lag behind its manifest.

    Attributes:
        running: Whether anything of it runs.
        url: Public address, where the traffic is split.
        generation: The manifest that it works on now.
        observed_generation: Newest manifest that is in effect whole.
        predictors: Running versions by predictor name.
        pending: What is not in effect yet, or empty.
        routed: Whether requests really go by the shares that the predictors have; what splits
            them may follow later.
    """

    running: bool
    url: str
    generation: int
    observed_generation: int
    predictors: dict[str, PredictorStatus] = field(default_factory=dict)
    pending: str = ""
    routed: bool = True


class Backend(Protocol):
    """Keeps manifests and makes them real.

    Attributes:
        namespace: Where its services are.
        mode: How new services run: `STANDARD` or `KNATIVE`.
        poll_seconds: How often to look while one waits.
    """

    namespace: str
    poll_seconds: float

    @property
    def mode(self) -> str:
        """How new services run: `STANDARD` or `KNATIVE`."""

    def names(self) -> list[str]:
        """Returns the names of all services."""

    def get(self, service: str) -> Manifest | None:
        """Returns a service's manifest, or None when there is none."""

    def apply(self, manifest: Manifest) -> int:
        """Writes a manifest whole, sees to it that the service runs, and returns its generation.

        A manifest that `get` returned carries its generation. When somebody else wrote a newer
        one meanwhile, nothing is written. A manifest that is stored already is not written again.

        Raises:
            ConflictError: If the service was changed by somebody else.
            InputError: If the manifest is refused.
        """

    def dry_run(self, manifest: Manifest) -> Manifest:
        """Returns what `apply` would store, and writes nothing."""

    def advance(self, service: str) -> None:
        """Takes the next step towards what was applied, where a step had to wait for the last."""

    def delete(self, service: str) -> None:
        """Stops a service and forgets its manifest."""

    def ensure_running(self, service: str) -> None:
        """Starts a service that is not running, for example after a restart of the machine."""

    def status(self, service: str) -> ServiceStatus:
        """Returns what the service is doing now."""

    def flush_log(self, service: str) -> None:
        """Waits, if it can, until every answered request is in the inference log."""

    def default_log(self, service: str) -> str:
        """Returns where a new service writes its inference log when nobody says, or ''."""

    def storage_uri(self, model_uri: str) -> str:
        """Returns a model's URI as the service's storageUri.

        Raises:
            InputError: If the service could not read the model there.
        """

    def log_uri(self, inference_log: str) -> str:
        """Returns the place of an inference log as the service knows it."""

    def drain_seconds(self, service: str) -> float:
        """Returns how long requests may still go to a version after its share is gone.

        0: they never do, or nothing but the version itself can be taken away.
        """

    def splits_traffic(self, service: str) -> bool:
        """Whether a candidate can get a share of the requests."""


def connect(namespace: str = "") -> Backend:
    """Returns the backend of this process: the laptop's when `KFLOOP_STATE` is set, else KServe.

    Args:
        namespace: Kubernetes namespace; empty for the current one.

    Raises:
        InputError: If there is neither a state directory nor a cluster.
    """
    state = os.environ.get("KFLOOP_STATE", "")
    if state:
        from kfloop.components.deployment.local_backend import LocalBackend

        return LocalBackend(state)
    # The Kubernetes client takes a moment to import, which the laptop does not need.
    from kfloop.components.deployment.kubernetes_api import connect_cluster
    from kfloop.components.deployment.kubernetes_backend import KubernetesBackend

    return KubernetesBackend(connect_cluster(namespace))


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
