# SPDX-License-Identifier: Apache-2.0
"""The laptop's backend: the local inference service of `kfloop.serving`."""

import os
from pathlib import Path
from typing import Any

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import local_path
from kfloop.components.deployment.backend import (
    STANDARD,
    ConflictError,
    PredictorStatus,
    ServiceStatus,
)
from kfloop.components.deployment.manifest import Manifest
from kfloop.serving import local_state

NAMESPACE = "local"
POLL_SECONDS = 0.25


class LocalBackend:
    """Services in `<state>/services`; the state survives, processes are started as needed."""

    namespace = NAMESPACE
    mode = STANDARD
    poll_seconds = POLL_SECONDS

    def __init__(self, state: str | Path) -> None:
        self._state = Path(state)

    def names(self) -> list[str]:
        """Returns the names of all services."""
        return [entry["name"] for entry in local_state.list_services(self._state)]

    def get(self, service: str) -> Manifest | None:
        """Returns a service's manifest, or None when there is none."""
        return local_state.read_manifest(self._directory(service))

    def apply(self, manifest: Manifest) -> int:
        """Writes a manifest, starts the service and returns the generation; see `Backend`."""
        metadata = manifest["metadata"]
        directory = self._directory(metadata["name"])
        try:
            stored = local_state.apply_manifest(
                directory, manifest, metadata.get("resourceVersion", "")
            )
        except local_state.ConflictError as error:
            raise ConflictError(
                f"The service {metadata['name']!r} was changed by somebody else meanwhile; "
                "run this step again."
            ) from error
        self.ensure_running(metadata["name"])
        return int(stored["metadata"]["generation"])

    def dry_run(self, manifest: Manifest) -> Manifest:
        """Checks a manifest as `apply` would, and returns it."""
        local_state.predictor_specs(manifest)
        return manifest

    def advance(self, service: str) -> None:
        """Does nothing: the local service goes all the way by itself."""

    def delete(self, service: str) -> None:
        """Stops a service and forgets its manifest; its logs stay."""
        directory = self._directory(service)
        local_state.stop(directory)
        (directory / "manifest.json").unlink(missing_ok=True)

    def ensure_running(self, service: str) -> None:
        """Starts a service that is not running."""
        python = os.environ.get("KFLOOP_SERVING_PYTHON", "")
        if not python:
            raise InputError(
                "KFLOOP_SERVING_PYTHON is not set, so the local service cannot be started; "
                "set it to the python of the serving environment."
            )
        # A component process finds kfloop by this path, and so shall the service.
        code_path = os.environ.get("PYTHONPATH", "").split(os.pathsep)[0]
        if not code_path:
            raise InputError(
                "PYTHONPATH is not set, so the local service would not find kfloop; "
                "run the pipeline with `kfloop run`."
            )
        local_state.start(self._directory(service), python, code_path)

    def status(self, service: str) -> ServiceStatus:
        """Returns what the service is doing now."""
        status = local_state.read_status(self._directory(service))
        return ServiceStatus(
            running=status["running"],
            url=status.get("url", ""),
            generation=status.get("generation", 0),
            observed_generation=status.get("observedGeneration", 0),
            predictors={
                name: _predictor(name, predictor)
                for name, predictor in status["predictors"].items()
            },
        )

    def default_log(self, service: str) -> str:
        """Returns `<state>/inference-log/<service>`."""
        return str(self._state / "inference-log" / service)

    def storage_uri(self, model_uri: str) -> str:
        """Returns the absolute path of a package."""
        return str(local_path(model_uri, "model_uri"))

    def log_uri(self, inference_log: str) -> str:
        """Returns the absolute path of an inference log."""
        return str(local_path(inference_log, "inference_log"))

    def splits_traffic(self, service: str) -> bool:
        """Its router always does."""
        return True

    def drain_seconds(self, service: str) -> float:
        """Returns 0: its router lets a version finish what it was asked."""
        return 0.0

    def flush_log(self, service: str) -> None:
        """Waits until every answered request is in the inference log."""
        local_state.wait_logged(self._directory(service))

    def _directory(self, service: str) -> Path:
        return local_state.service_directory(self._state, service)


def _predictor(name: str, status: dict[str, Any]) -> PredictorStatus:
    return PredictorStatus(
        name=name,
        url=status.get("url") or "",
        model_version=status.get("model_version") or "",
        storage_uri=status.get("storageUri") or "",
        ready=bool(status["ready"]),
        # Without `failed` the service tries again, and the error is not the last word.
        error=status.get("error") or "failed" if status["failed"] else "",
        traffic=status.get("traffic") or 0,
    )
