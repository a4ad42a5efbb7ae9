"""Waiting for proof: the right version serves, and has answered."""

import time
import uuid
from collections.abc import Callable

from kfloop.components.contracts.deployment_record import Target
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import GOLDEN
from kfloop.components.deployment.backend import Backend, PredictorStatus, ServiceStatus
from kfloop.components.deployment.client import ServiceClient
from kfloop.components.deployment.manifest import Manifest, record_of
from kfloop.components.deployment.packages import package_rows, read_package

TIMEOUT_SECONDS = 300.0
POLL_SECONDS = 0.25
PROGRESS_SECONDS = 5.0
# A status may be seen once before it is withdrawn: proof is wanted twice in a row.
PROOFS = 2


class RolloutError(InputError):
    """A version does not come up: it cannot load, or not in time."""


def ensure_live(
    backend: Backend, manifest: Manifest, timeout_seconds: float = TIMEOUT_SECONDS
) -> str:
    """Sees to it that a service runs and its live version answers; returns its public address.

    Raises:
        RolloutError: If the live version does not answer.
    """
    service = manifest["metadata"]["name"]
    backend.ensure_running(service)
    generation = manifest["metadata"]["generation"]
    live = record_of(manifest).stable
    wait_for_version(backend, service, generation, live, timeout_seconds)
    return backend.status(service).url


def wait_for_version(
    backend: Backend,
    service: str,
    generation: int,
    target: Target,
    timeout_seconds: float,
    alone: bool = False,
) -> PredictorStatus:
    """Waits until `target` serves under its own address and has answered a golden row.

    The question goes to the predictor itself: at the public address it would be split, and it
    would stand in the inference log as a request that nobody sent.

    Args:
        backend: Where the service lives.
        service: Its name.
        generation: The manifest that must be in effect.
        target: The version that must answer.
        timeout_seconds: Longest wait.
        alone: Whether it must also be the only version that gets requests.

    Raises:
        RolloutError: If the version cannot load (at once, with the reason), or time is up.
    """
    name = target.predictor["name"]

    def proof(status: ServiceStatus) -> str:
        predictor = status.predictors.get(name)
        if predictor is None or not predictor.ready:
            return f"{name} is loading"
        if predictor.model_version != target.version:
            return f"{name} serves version {predictor.model_version!r}, not {target.version!r}"
        if alone:
            if status.observed_generation < generation:
                return f"{name} does not get all requests yet"
            serving = sorted(key for key, other in status.predictors.items() if other.traffic)
            if serving != [name]:
                return f"requests go to {', '.join(serving) or 'nobody'}, not to {name} alone"
        return _wrong_answer(predictor.url, service, target)

    _poll(backend, service, generation, target, proof, timeout_seconds)
    return backend.status(service).predictors[name]


def _wrong_answer(url: str, service: str, target: Target) -> str:
    """Asks for a golden row; returns why the answer is no proof of `target`, or ''."""
    columns = read_package(target.storage_uri).feature_names
    rows, _ = package_rows(target.storage_uri, GOLDEN, columns, limit=1)
    with ServiceClient(url, service) as client:
        # A row of missing values will do where the package has no golden row.
        answer = client.predict(
            rows or [dict.fromkeys(columns)], request_id=f"probe-{uuid.uuid4().hex}"
        )
    if not answer.ok:
        return f"{url} answers {answer.status} {answer.error}".strip()
    if answer.model_version != target.version:
        return f"{url} is answered by version {answer.model_version!r}"
    return ""


def _poll(
    backend: Backend,
    service: str,
    generation: int,
    target: Target,
    proof: Callable[[ServiceStatus], str],
    timeout_seconds: float,
) -> None:
    """Polls until `proof` finds nothing missing, twice; raises early when `target` cannot load."""
    name = target.predictor["name"]
    started = time.monotonic()
    told, proofs = started, 0
    while proofs < PROOFS:
        status = backend.status(service)
        if not status.running:
            missing = "the service does not run"
            backend.ensure_running(service)
        elif status.generation < generation:
            missing = f"it still works on generation {status.generation}, not {generation}"
        else:
            predictor = status.predictors.get(name)
            if predictor and predictor.error and predictor.storage_uri == target.storage_uri:
                raise RolloutError(f"{target.storage_uri} cannot be served: {predictor.error}")
            missing = proof(status)
        proofs = 0 if missing else proofs + 1
        waited = time.monotonic() - started
        if missing and waited > timeout_seconds:
            raise RolloutError(
                f"The service {service!r} is not ready after {timeout_seconds:g} s ({missing}); "
                "see its logs."
            )
        if missing and time.monotonic() - told > PROGRESS_SECONDS:
            print(f"{service}: waiting, {waited:.0f} s: {missing}", flush=True)
            told = time.monotonic()
        time.sleep(POLL_SECONDS)
