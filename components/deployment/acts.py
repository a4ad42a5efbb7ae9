# SPDX-License-Identifier: Apache-2.0
"""What a rollout does to a service: each act is one or two writes, each with its proof.

An act reads nothing but the manifest it is given. Where the version that it brings up does not come
up, the act is undone and says so.
"""

from datetime import UTC, datetime

from kfloop.components.contracts.deployment_record import Rollout, Target
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.package_storage import read_package
from kfloop.components.deployment.autoscaling import require_mode
from kfloop.components.deployment.backend import Backend, require_service
from kfloop.components.deployment.manifest import (
    LOG_ANNOTATION,
    RESTORING,
    Manifest,
    new_service,
    promoted,
    record_of,
    restored,
    restoring,
    traffic_of,
    with_canary,
    with_log,
    with_share,
    without_canary,
)
from kfloop.components.deployment.resources import PredictorOptions
from kfloop.components.deployment.targets import MODEL_ANNOTATION, target_of
from kfloop.components.deployment.wait import RolloutError, wait_for_share, wait_for_version

# The namespace of the laptop's services, where nothing scales.
LOCAL = "local"


class VersionFailed(InputError):
    """A version did not come up; what had been changed for it is undone."""


def describe_target(
    backend: Backend,
    model_uri: str,
    options: PredictorOptions,
    log: str,
    run_id: str = "",
    gate_decision: str = "",
) -> Target:
    """Describes a published model for a backend; see `target_of`."""
    if backend.namespace != LOCAL:
        require_mode(options.autoscaling, backend.mode)
    uri = backend.storage_uri(model_uri)
    package = read_package(model_uri)
    return target_of(package, uri, options, backend.mode, log, run_id, gate_decision)


def log_of(backend: Backend, service: str, manifest: Manifest | None, inference_log: str) -> str:
    """Returns where a service logs: where it is told to, where it did, or the default."""
    if inference_log:
        return backend.log_uri(inference_log)
    if manifest is None:
        return backend.default_log(service)
    return str((manifest["metadata"].get("annotations") or {}).get(LOG_ANNOTATION, ""))


def first_manifest(
    backend: Backend, service: str, target: Target, log: str, rollout: Rollout | None = None
) -> Manifest:
    """Returns the manifest of a service that does not exist yet."""
    labels = {MODEL_ANNOTATION: target.predictor["annotations"][MODEL_ANNOTATION]}
    manifest = new_service(service, backend.namespace, target, labels, now(), rollout)
    return with_log(manifest, log) if log else manifest


def create(backend: Backend, manifest: Manifest, timeout_seconds: float) -> None:
    """Creates a service with its first version.

    Raises:
        VersionFailed: If it does not come up; the service is removed.
    """
    service, target = manifest["metadata"]["name"], record_of(manifest).stable
    generation = backend.apply(manifest)
    try:
        wait_for_version(backend, service, generation, target, timeout_seconds, alone=True)
    except RolloutError as error:
        backend.delete(service)
        raise VersionFailed(
            f"{target.storage_uri} could not be deployed as the first version of {service!r}, "
            f"which is removed again: {told(error)}."
        ) from error
    say(service, f"{target.storage_uri} is live, alone")


def place(backend: Backend, manifest: Manifest, timeout_seconds: float) -> None:
    """Brings the candidate of a manifest up beside the live version.

    Raises:
        VersionFailed: If it does not come up; it is taken away.
    """
    service, record = manifest["metadata"]["name"], record_of(manifest)
    assert record.candidate is not None
    percent = traffic_of(manifest)[record.candidate.predictor["name"]]
    generation = backend.apply(manifest)
    try:
        wait_for_version(
            backend, service, generation, record.candidate, timeout_seconds, traffic=percent
        )
    except RolloutError as error:
        reason = f"the candidate {record.candidate.storage_uri} did not come up: {told(error)}"
        take_away(backend, require_service(backend, service), reason, timeout_seconds)
        raise VersionFailed(
            f"{record.candidate.storage_uri} could not be deployed as a canary and is taken away "
            f"again; {record.stable.storage_uri} stays live: {told(error)}."
        ) from error
    say(
        service,
        f"{record.candidate.storage_uri} is a canary with {percent} % of the requests, beside "
        f"{record.stable.storage_uri}",
    )


def take_away(
    backend: Backend, manifest: Manifest, reason: str, timeout_seconds: float
) -> Manifest:
    """Takes the candidate away; returns the manifest that was written."""
    service = manifest["metadata"]["name"]
    manifest = drained(backend, manifest, 0, timeout_seconds)
    edited = without_canary(manifest, reason, now())
    generation = backend.apply(edited)
    live = record_of(edited).stable
    wait_for_version(backend, service, generation, live, timeout_seconds, alone=True)
    say(service, f"{live.storage_uri} is live, alone ({reason})")
    return edited


def promote(backend: Backend, manifest: Manifest, timeout_seconds: float) -> None:
    """Makes the candidate the live version.

    Raises:
        VersionFailed: If it does not come up alone; the version before is live again.
    """
    service, before = manifest["metadata"]["name"], record_of(manifest)
    manifest = drained(backend, manifest, 100, timeout_seconds)
    edited = promoted(manifest, now())
    live = record_of(edited).stable
    generation = backend.apply(edited)
    try:
        wait_for_version(backend, service, generation, live, timeout_seconds, alone=True)
    except RolloutError as error:
        reason = f"promotion failed: {told(error)}"
        restore(backend, require_service(backend, service), reason, timeout_seconds)
        raise VersionFailed(
            f"{live.storage_uri} could not be promoted ({told(error)}); "
            f"{before.stable.storage_uri} is live again."
        ) from error
    say(service, f"{live.storage_uri} is live")


def restore(backend: Backend, manifest: Manifest, reason: str, timeout_seconds: float) -> None:
    """Puts the version before the live one back: first beside it, then in its place.

    Raises:
        InputError: If there is none.
    """
    service, record = manifest["metadata"]["name"], record_of(manifest)
    if record.state != RESTORING:
        manifest = restoring(manifest, reason, now())
    reason = record_of(manifest).reason
    generation = backend.apply(manifest)
    previous = record_of(manifest).candidate
    assert previous is not None
    wait_for_version(backend, service, generation, previous, timeout_seconds)
    manifest = drained(backend, require_service(backend, service), 100, timeout_seconds)
    generation = backend.apply(restored(manifest, reason, now()))
    wait_for_version(backend, service, generation, previous, timeout_seconds, alone=True)
    say(service, f"{previous.storage_uri} is live again")


def drained(backend: Backend, manifest: Manifest, percent: int, timeout_seconds: float) -> Manifest:
    """Moves all requests away from the version that is to end, where a gateway follows late.

    Args:
        backend: Where the service lives.
        manifest: The service as it is.
        percent: The candidate's share: 0 when it is to end, 100 when the live version is.
        timeout_seconds: Longest wait for the share; what is to end ends then in any case.

    Returns:
        The service as it is then.
    """
    service, candidate = manifest["metadata"]["name"], record_of(manifest).candidate
    if candidate is None or not backend.drain_seconds(service):
        return manifest
    name = candidate.predictor["name"]
    found = backend.status(service).predictors.get(name)
    if percent == 0 and (found is None or not found.traffic):
        return manifest
    if traffic_of(manifest)[name] != percent:
        backend.apply(with_share(manifest, percent))
        manifest = require_service(backend, service)
    generation = manifest["metadata"]["generation"]
    wait_for_share(backend, service, generation, name, percent, timeout_seconds)
    return manifest


def shifted(
    manifest: Manifest, percent: int, rollout: Rollout | None = None, reason: str = ""
) -> Manifest:
    """Returns the manifest with another share for its candidate.

    Raises:
        InputError: If there is no candidate.
    """
    candidate = record_of(manifest).candidate
    if candidate is None:
        raise InputError(
            f"The service {manifest['metadata']['name']!r} has no candidate to shift requests to; "
            "deploy one beside the live version first."
        )
    return with_canary(manifest, candidate, percent, now(), rollout, reason)


def told(error: RolloutError) -> str:
    """Returns an error as a part of a sentence."""
    return str(error).rstrip(".")


def say(service: str, what: str) -> None:
    """Prints one line."""
    print(f"{service}: {what}.", flush=True)


def now() -> str:
    """Returns the time, as the record keeps it."""
    return datetime.now(UTC).isoformat()
