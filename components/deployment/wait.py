# SPDX-License-Identifier: Apache-2.0
"""Waiting for proof: the right version serves, and has answered.

What a backend's status says is proof by itself already (see the modules of KServe's two modes);
the answer is the last word, and both are wanted twice in a row. A version that cannot come up is
told as soon as its reason has lasted long enough to be final.
"""

import time
import uuid
from collections.abc import Callable

from kfloop.components.contracts.deployment_record import Target
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import GOLDEN
from kfloop.components.contracts.package_storage import read_package
from kfloop.components.deployment.backend import Backend, PredictorStatus, ServiceStatus
from kfloop.components.deployment.client import ServiceClient
from kfloop.components.deployment.manifest import Manifest, record_of
from kfloop.components.deployment.packages import package_rows
from kfloop.components.deployment.resources import KFLOOP

TIMEOUT_SECONDS = 300.0
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
    traffic: int | None = None,
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
        traffic: Share of the requests, in percent, that it must have; None for any.

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
        if (alone or traffic is not None) and status.observed_generation < generation:
            return f"the new split is not in effect ({status.pending or 'no reason given'})"
        if traffic is not None and predictor.traffic != traffic:
            return f"{name} has {predictor.traffic} % of the requests, not {traffic} %"
        if alone:
            serving = sorted(key for key, other in status.predictors.items() if other.traffic)
            if serving != [name]:
                return f"requests go to {', '.join(serving) or 'nobody'}, not to {name} alone"
        return _wrong_answer(predictor.url, service, target)

    _poll(backend, service, generation, target, proof, timeout_seconds)
    return backend.status(service).predictors[name]


def wait_for_share(
    backend: Backend,
    service: str,
    generation: int,
    predictor: str,
    percent: int,
    timeout_seconds: float,
) -> bool:
    """Waits until a predictor has a share of the requests, ready or not.

    KServe ends a version's pods in the moment in which a manifest leaves it out, and a gateway
    may still send it requests then. So a version loses its requests first, and the gateway gets
    some seconds to follow its route, of which it tells nobody.

    Args:
        backend: Where the service lives.
        service: Its name.
        generation: The manifest that says so.
        predictor: Name of the predictor.
        percent: Its share.
        timeout_seconds: Longest wait.

    Returns:
        Whether it has the share; False when time is up, or the cluster never gives it.
    """
    deadline = time.monotonic() + timeout_seconds
    refusing_since = 0.0
    while True:
        status = backend.status(service)
        found = status.predictors.get(predictor)
        share = found.traffic if found else 0
        if status.generation >= generation and status.routed and share == percent:
            time.sleep(backend.drain_seconds(service))
            return True
        now = time.monotonic()
        refused = found is not None and found.ready and bool(found.error)
        refusing_since = (refusing_since or now) if refused else 0.0
        if now > deadline or (refused and found and now - refusing_since >= found.patience):
            return False
        time.sleep(backend.poll_seconds)


def _wrong_answer(url: str, service: str, target: Target) -> str:
    """Asks the version itself; returns why the answer is no proof of `target`, or ''.

    Our model server answers a golden row and says its version. Another runtime, which does not,
    is asked whether the model is loaded: that it is this one is proved by its own address.
    """
    model_format = target.predictor.get("model", {}).get("modelFormat", {}).get("name", KFLOOP)
    with ServiceClient(url, service) as client:
        if model_format != KFLOOP:
            answer = client.state()
            return "" if answer.ok else f"{url} answers {answer.status} {answer.error}".strip()
        columns = read_package(target.storage_uri).feature_names
        rows, _ = package_rows(target.storage_uri, GOLDEN, columns, limit=1)
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
    told, proofs, failing_since = started, 0, 0.0
    while proofs < PROOFS:
        backend.advance(service)
        status = backend.status(service)
        predictor = status.predictors.get(name)
        error = ""
        if not status.running:
            missing = "the service does not run"
            backend.ensure_running(service)
        elif status.generation < generation:
            missing = f"it still works on generation {status.generation}, not {generation}"
        else:
            if predictor and predictor.storage_uri == target.storage_uri:
                error = predictor.error
            missing = error or proof(status)
        now = time.monotonic()
        failing_since = (failing_since or now) if error else 0.0
        if error and predictor and now - failing_since >= predictor.patience:
            raise RolloutError(f"{target.storage_uri} cannot be served: {error}")
        proofs = 0 if missing else proofs + 1
        waited = now - started
        if missing and waited > timeout_seconds:
            raise RolloutError(
                f"The service {service!r} is not ready after {timeout_seconds:g} s ({missing}); "
                "see its logs."
            )
        if missing and now - told > PROGRESS_SECONDS:
            print(f"{service}: waiting, {waited:.0f} s: {missing}", flush=True)
            told = now
        time.sleep(backend.poll_seconds)
