"""Rollouts: deploy beside what is live, promote, roll back.

Each step reads the manifest, edits it once and proves the result by an answer of the right
version. What a step needs to know is in the manifest and its deployment record, so a step that was
killed is completed by running it again.
"""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from kfloop.components.contracts.deployment_record import Target, write_record
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import local_path
from kfloop.components.deployment.backend import Backend, connect, require_service
from kfloop.components.deployment.manifest import (
    CANARY,
    DEPLOYED,
    ROLLED_BACK,
    Manifest,
    new_service,
    promoted,
    record_of,
    restored,
    target_of,
    traffic_of,
    with_canary,
    with_log,
    without_canary,
)
from kfloop.components.deployment.packages import read_package
from kfloop.components.deployment.wait import (
    TIMEOUT_SECONDS,
    RolloutError,
    ensure_live,
    wait_for_version,
)

LIVE = "live"


def deploy_model(
    model_uri: str,
    service: str,
    record: str | Path,
    traffic_percent: int = 10,
    inference_log: str = "",
    namespace: str = "",
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> str:
    """Deploys a published model: alone when nothing is live yet, else as a canary.

    Args:
        model_uri: What publish_model returned.
        service: Name of the service; it is created when there is none.
        record: Where the deployment record goes, a JSON file.
        traffic_percent: Share of the requests for the candidate, 0 to 99.
        inference_log: Directory of the inference log; empty keeps the service's own.
        namespace: Kubernetes namespace; empty for the current one. The laptop has only `local`.
        timeout_seconds: Longest wait for the model to load and answer.

    Returns:
        `live` when the model is the only version, `canary` when it is beside a live one.

    Raises:
        InputError: If the model cannot be deployed. A candidate that cannot load is taken away
            again; a live version is not touched.
    """
    if not 0 <= traffic_percent <= 99:
        raise InputError(
            f"traffic_percent is {traffic_percent}; a candidate gets 0 to 99 percent, and all of "
            "it by promote_model."
        )
    backend = connect(namespace)
    target = target_of(read_package(model_uri), str(local_path(model_uri, "model_uri")))
    log = str(local_path(inference_log, "inference_log")) if inference_log else ""
    manifest = backend.get(service)
    if manifest is not None and not _live_answers(backend, manifest, timeout_seconds):
        print(f"{service}: the live version never worked; starting over.", flush=True)
        backend.delete(service)
        manifest = None
    if manifest is None:
        _deploy_first(
            backend, service, target, log or backend.default_log(service), timeout_seconds
        )
        outcome = LIVE
    else:
        if log:
            manifest = with_log(manifest, log)
        outcome = _deploy_beside(backend, manifest, target, traffic_percent, timeout_seconds)
    _write_record(backend, service, record)
    return outcome


def promote_model(
    service: str,
    record: str | Path,
    model_uri: str = "",
    namespace: str = "",
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> str:
    """Makes the candidate the live version; without a candidate it changes nothing.

    Args:
        service: Name of the service.
        record: Where the deployment record goes, a JSON file.
        model_uri: The version that was judged; another one is not promoted. Empty: whatever the
            candidate is.
        namespace: Kubernetes namespace; empty for the current one.
        timeout_seconds: Longest wait until it alone answers.

    Returns:
        URI of the model that is live now.

    Raises:
        InputError: If the candidate was rolled back or is another one, or it does not come up
            alone; the version before is live again then.
    """
    backend = connect(namespace)
    manifest = require_service(backend, service)
    before = record_of(manifest)
    wanted = str(local_path(model_uri, "model_uri")) if model_uri else ""
    if wanted and wanted not in _uris(before.candidate, before.stable):
        raise InputError(
            f"{wanted} is neither the candidate nor the live version of {service!r}; deploy it "
            "before it is promoted."
        )
    if before.candidate is None or wanted == before.stable.storage_uri:
        if before.state == ROLLED_BACK and not wanted:
            raise InputError(
                f"The service {service!r} has no candidate to promote: the last one was rolled "
                f"back ({before.reason})."
            )
        print(f"{service}: {before.stable.storage_uri} is live already.", flush=True)
        generation = backend.apply(manifest)
        alone = before.candidate is None
        wait_for_version(backend, service, generation, before.stable, timeout_seconds, alone)
        _write_record(backend, service, record)
        return before.stable.storage_uri
    edited = promoted(manifest, _now())
    generation = backend.apply(edited)
    try:
        wait_for_version(
            backend, service, generation, before.candidate, timeout_seconds, alone=True
        )
    except RolloutError as error:
        reason = f"promotion failed: {_told(error)}"
        generation = backend.apply(restored(require_service(backend, service), reason, _now()))
        wait_for_version(backend, service, generation, before.stable, timeout_seconds, alone=True)
        _write_record(backend, service, record)
        raise InputError(
            f"{before.candidate.storage_uri} could not be promoted ({_told(error)}); "
            f"{before.stable.storage_uri} is live again."
        ) from error
    print(f"{service}: {before.candidate.storage_uri} is live.", flush=True)
    _write_record(backend, service, record)
    return before.candidate.storage_uri


def roll_back_model(
    service: str,
    record: str | Path,
    reason: str = "",
    model_uri: str = "",
    namespace: str = "",
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> str:
    """Takes the candidate away or, when there is none, restores the version before the live one.

    A first version, named by `model_uri`, has nothing before it: its service is removed. Running
    this twice does not roll back twice: what was rolled back stays so.

    Args:
        service: Name of the service.
        record: Where the deployment record goes, a JSON file.
        reason: Why; it is kept in the deployment record.
        model_uri: The version to get away from; nothing happens when it is neither the candidate
            nor live. Empty: the newest one.
        namespace: Kubernetes namespace; empty for the current one.
        timeout_seconds: Longest wait until the good version alone answers.

    Returns:
        URI of the model that is live now; empty when the service was removed.

    Raises:
        InputError: If there is nothing to roll back to, or it does not come up.
    """
    backend = connect(namespace)
    manifest = require_service(backend, service)
    before = record_of(manifest)
    unwanted = str(local_path(model_uri, "model_uri")) if model_uri else ""
    if unwanted in _uris(before.stable) and before.state == DEPLOYED and not before.previous:
        backend.delete(service)
        write_record(replace(before, state=ROLLED_BACK, reason=reason, changed_at=_now()), record)
        print(f"{service}: removed, nothing served before {unwanted}.", flush=True)
        return ""
    if unwanted and unwanted not in _uris(before.candidate, before.stable):
        done = f"{unwanted} does not serve"
    elif not unwanted and before.candidate is None and before.state == ROLLED_BACK:
        done = f"rolled back already ({before.reason}); name a model_uri to go back further"
    else:
        done = ""
    if done:
        print(f"{service}: {done}; nothing to do.", flush=True)
    elif before.candidate is not None and unwanted != before.stable.storage_uri:
        manifest = without_canary(manifest, reason, _now())
    else:
        manifest = restored(manifest, reason, _now())
    generation = backend.apply(manifest)
    live = record_of(manifest).stable
    alone = record_of(manifest).candidate is None
    wait_for_version(backend, service, generation, live, timeout_seconds, alone)
    print(f"{service}: {live.storage_uri} is live.", flush=True)
    _write_record(backend, service, record)
    return live.storage_uri


def _live_answers(backend: Backend, manifest: Manifest, timeout_seconds: float) -> bool:
    """Whether the live version answers; False when no version of this service ever did.

    Raises:
        InputError: If a version that once worked does not answer: that is not for a deployment to
            repair.
    """
    service, record = manifest["metadata"]["name"], record_of(manifest)
    try:
        ensure_live(backend, manifest, timeout_seconds)
    except RolloutError as error:
        if record.state == DEPLOYED and record.previous is None:
            return False
        raise InputError(
            f"The live version of {service!r} does not answer ({_told(error)}); "
            "repair it or roll it back before deploying beside it."
        ) from error
    return True


def _deploy_first(
    backend: Backend, service: str, target: Target, log: str, timeout_seconds: float
) -> None:
    labels = {"kfloop.org/model": target.predictor["annotations"]["kfloop.org/model"]}
    manifest = new_service(service, backend.namespace, target, labels, _now())
    generation = backend.apply(with_log(manifest, log))
    try:
        wait_for_version(backend, service, generation, target, timeout_seconds, alone=True)
    except RolloutError as error:
        backend.delete(service)
        raise InputError(
            f"{target.storage_uri} could not be deployed as the first version of {service!r}, "
            f"which is removed again: {_told(error)}."
        ) from error
    print(f"{service}: {target.storage_uri} is live, alone.", flush=True)


def _deploy_beside(
    backend: Backend,
    manifest: Manifest,
    target: Target,
    traffic_percent: int,
    timeout_seconds: float,
) -> str:
    service, before = manifest["metadata"]["name"], record_of(manifest)
    if before.candidate and before.candidate.storage_uri != target.storage_uri:
        print(f"{service}: {before.candidate.storage_uri} was left as a canary; it is removed.")
    if before.stable.storage_uri == target.storage_uri:
        print(f"{service}: {target.storage_uri} is live already.", flush=True)
        if before.candidate:
            manifest = without_canary(manifest, "the live version was deployed again", _now())
        generation = backend.apply(manifest)
        wait_for_version(backend, service, generation, target, timeout_seconds, alone=True)
        return LIVE
    if _uris(before.candidate) != {target.storage_uri} or (
        traffic_of(manifest)[target.predictor["name"]] != traffic_percent
    ):
        manifest = with_canary(manifest, target, traffic_percent, _now())
    generation = backend.apply(manifest)
    try:
        wait_for_version(backend, service, generation, target, timeout_seconds)
    except RolloutError as error:
        reason = f"the candidate {target.storage_uri} did not come up: {_told(error)}"
        generation = backend.apply(
            without_canary(require_service(backend, service), reason, _now())
        )
        wait_for_version(backend, service, generation, before.stable, timeout_seconds, alone=True)
        raise InputError(
            f"{target.storage_uri} could not be deployed as a canary and is taken away again; "
            f"{before.stable.storage_uri} stays live: {_told(error)}."
        ) from error
    print(
        f"{service}: {target.storage_uri} is a canary with {traffic_percent} % of the requests, "
        f"beside {before.stable.storage_uri}.",
        flush=True,
    )
    return CANARY


def _told(error: RolloutError) -> str:
    return str(error).rstrip(".")


def _uris(*targets: Target | None) -> set[str]:
    return {target.storage_uri for target in targets if target}


def _write_record(backend: Backend, service: str, path: str | Path) -> None:
    write_record(record_of(require_service(backend, service)), path)


def _now() -> str:
    return datetime.now(UTC).isoformat()
