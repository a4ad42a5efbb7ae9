# SPDX-License-Identifier: Apache-2.0
"""Rollouts, step by step: deploy beside what is live, shift requests, promote.

Each step reads the manifest, edits it once and proves the result by an answer of the right
version. What a step needs to know is in the manifest and its deployment record, so a step that was
killed is completed by running it again. `roll_out` takes all steps in order; `roll_back` goes back.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kfloop.components.contracts.deployment_record import DeploymentRecord, Target, write_record
from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment import acts
from kfloop.components.deployment.backend import Backend, connect, require_service
from kfloop.components.deployment.dry_run import preview
from kfloop.components.deployment.manifest import (
    CANARY,
    DEPLOYED,
    RESTORING,
    ROLLED_BACK,
    Manifest,
    promoted,
    record_of,
    traffic_of,
    with_canary,
    with_log,
    without_canary,
)
from kfloop.components.deployment.resources import predictor_options
from kfloop.components.deployment.wait import (
    TIMEOUT_SECONDS,
    RolloutError,
    ensure_live,
    wait_for_version,
)

LIVE, DRY_RUN = "live", "dry_run"


def deploy_model(
    model_uri: str,
    service: str,
    record: str | Path,
    traffic_percent: int = 10,
    inference_log: str = "",
    namespace: str = "",
    timeout_seconds: float = TIMEOUT_SECONDS,
    *,
    predictor: Mapping[str, Any] | None = None,
    run_id: str = "",
    gate_decision: str = "",
    dry_run: bool = False,
) -> str:
    """Deploys a published model: alone when nothing is live yet, else as a canary.

    Args:
        model_uri: What publish_model returned.
        service: Name of the service; it is created when there is none.
        record: Where the deployment record goes, a JSON file.
        traffic_percent: Share of the requests for the candidate, 0 to 99; 0 is a dark launch.
        inference_log: Where the service logs; empty keeps its own place.
        namespace: Kubernetes namespace; empty for the current one. The laptop has only `local`.
        timeout_seconds: Longest wait for the model to load and answer.
        predictor: Resources, autoscaling and the like; see `resources.predictor_options`.
        run_id: Id of the pipeline run, for the lineage.
        gate_decision: What the gate said of the model, for the lineage.
        dry_run: Print what would change, and change nothing.

    Returns:
        `live` when the model is the only version, `canary` when it is beside a live one,
        `dry_run`.

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
    manifest = backend.get(service)
    log = acts.log_of(backend, service, manifest, inference_log)
    options = predictor_options(predictor or {})
    target = acts.describe_target(backend, model_uri, options, log, run_id, gate_decision)
    if not dry_run:
        manifest = live_manifest(backend, service, timeout_seconds)
    if manifest is None:
        edited = acts.first_manifest(backend, service, target, log)
    else:
        edited = _beside(with_log(manifest, log) if log else manifest, target, traffic_percent)
    if dry_run:
        return _previewed(backend, manifest, edited, record)
    if manifest is None:
        acts.create(backend, edited, timeout_seconds)
    elif record_of(edited).candidate:
        acts.place(backend, edited, timeout_seconds)
    else:
        acts.say(service, f"{target.storage_uri} is live already")
        generation = backend.apply(edited)
        wait_for_version(backend, service, generation, target, timeout_seconds, alone=True)
    write_record(record_of(require_service(backend, service)), record)
    return CANARY if record_of(edited).candidate else LIVE


def shift_traffic(
    service: str,
    percent: int,
    record: str | Path,
    model_uri: str = "",
    namespace: str = "",
    timeout_seconds: float = TIMEOUT_SECONDS,
    *,
    force: str = "",
    dry_run: bool = False,
) -> str:
    """Gives the candidate a share of the requests; the same share again changes nothing.

    Args:
        service: Name of the service.
        percent: The share, 0 to 100. All requests only for a candidate that passed every step of
            its rollout, or with `force`.
        record: Where the deployment record goes, a JSON file.
        model_uri: The candidate that is meant; another one is left alone. Empty: whatever it is.
        namespace: Kubernetes namespace; empty for the current one.
        timeout_seconds: Longest wait until the share is in effect.
        force: Why a candidate gets all requests that nobody judged; it is kept in the record.
        dry_run: Print what would change, and change nothing.

    Returns:
        URI of the candidate.

    Raises:
        InputError: If there is no such candidate, it may not have the share, or the share does
            not come into effect.
    """
    backend = connect(namespace)
    manifest = require_service(backend, service)
    before = record_of(manifest)
    edited = acts.shifted(manifest, percent, reason=f"forced: {force}" if force else "")
    candidate = record_of(edited).candidate
    assert candidate is not None
    if model_uri and backend.storage_uri(model_uri) != candidate.storage_uri:
        raise InputError(
            f"The candidate of {service!r} is {candidate.storage_uri}, not {model_uri}; "
            "its share is left as it is."
        )
    if before.state == RESTORING:
        raise InputError(f"{service!r} is being rolled back; run the roll back again.")
    if percent == 100 and not force and not has_passed(before):
        raise InputError(
            f"{candidate.storage_uri} did not pass the steps of a rollout, so it does not get all "
            "requests; run roll_out_model, or say with force why it shall have them."
        )
    if dry_run:
        _previewed(backend, manifest, edited, record)
        return candidate.storage_uri
    if traffic_of(manifest)[candidate.predictor["name"]] == percent:
        edited = manifest
    generation = backend.apply(edited)
    wait_for_version(backend, service, generation, candidate, timeout_seconds, traffic=percent)
    acts.say(service, f"{candidate.storage_uri} gets {percent} % of the requests")
    write_record(record_of(require_service(backend, service)), record)
    return candidate.storage_uri


def promote_model(
    service: str,
    record: str | Path,
    model_uri: str = "",
    namespace: str = "",
    timeout_seconds: float = TIMEOUT_SECONDS,
    *,
    dry_run: bool = False,
) -> str:
    """Makes the candidate the live version; without a candidate it changes nothing.

    Args:
        service: Name of the service.
        record: Where the deployment record goes, a JSON file.
        model_uri: The version that was judged; another one is not promoted. Empty: whatever the
            candidate is.
        namespace: Kubernetes namespace; empty for the current one.
        timeout_seconds: Longest wait until it alone answers.
        dry_run: Print what would change, and change nothing.

    Returns:
        URI of the model that is live now.

    Raises:
        InputError: If the candidate was rolled back or is another one, or it does not come up
            alone; the version before is live again then.
    """
    backend = connect(namespace)
    manifest = require_service(backend, service)
    before = record_of(manifest)
    wanted = backend.storage_uri(model_uri) if model_uri else ""
    if wanted and wanted not in uris(before.candidate, before.stable):
        raise InputError(
            f"{wanted} is neither the candidate nor the live version of {service!r}; deploy it "
            "before it is promoted."
        )
    if before.state == RESTORING:
        raise InputError(f"{service!r} is being rolled back; run the roll back again.")
    if before.candidate is None or wanted == before.stable.storage_uri:
        if before.state == ROLLED_BACK and not wanted:
            raise InputError(
                f"The service {service!r} has no candidate to promote: the last one was rolled "
                f"back ({before.reason})."
            )
        acts.say(service, f"{before.stable.storage_uri} is live already")
        if not dry_run:
            generation = backend.apply(manifest)
            alone = before.candidate is None
            wait_for_version(backend, service, generation, before.stable, timeout_seconds, alone)
        write_record(before, record)
        return before.stable.storage_uri
    if dry_run:
        _previewed(backend, manifest, promoted(manifest, acts.now()), record)
        return before.stable.storage_uri
    try:
        acts.promote(backend, manifest, timeout_seconds)
    except acts.VersionFailed:
        write_record(record_of(require_service(backend, service)), record)
        raise
    write_record(record_of(require_service(backend, service)), record)
    return before.candidate.storage_uri


def live_manifest(backend: Backend, service: str, timeout_seconds: float) -> Manifest | None:
    """Returns the manifest of a service whose live version answers, or None when there is none.

    A service of which no version ever worked is removed: a deployment that was killed left it.

    Raises:
        InputError: If a version that once worked does not answer: that is not for a deployment to
            repair. Or the service is being rolled back.
    """
    manifest = backend.get(service)
    if manifest is None:
        return None
    record = record_of(manifest)
    if record.state == RESTORING:
        raise InputError(
            f"{service!r} is being rolled back to {_uri(record.previous)}; run the roll back again "
            "before deploying."
        )
    try:
        ensure_live(backend, manifest, timeout_seconds)
    except RolloutError as error:
        if record.state == DEPLOYED and record.previous is None:
            acts.say(service, "the live version never worked; starting over")
            backend.delete(service)
            return None
        raise InputError(
            f"The live version of {service!r} does not answer ({acts.told(error)}); "
            "repair it or roll it back before deploying beside it."
        ) from error
    return manifest


def has_passed(record: DeploymentRecord) -> bool:
    """Whether the candidate passed its smoke test and every step of its rollout."""
    rollout, candidate = record.rollout, record.candidate
    return bool(
        rollout
        and candidate
        and rollout.model_uri == candidate.storage_uri
        and rollout.smoke_test == "pass"
        and all(step.decision == "pass" for step in rollout.steps)
    )


def uris(*targets: Target | None) -> set[str]:
    """Returns the URIs of those targets that are there."""
    return {target.storage_uri for target in targets if target}


def _uri(target: Target | None) -> str:
    return target.storage_uri if target else "nothing"


def _beside(manifest: Manifest, target: Target, percent: int) -> Manifest:
    """Returns the manifest with `target` beside the live version, unless it is that."""
    service, before = manifest["metadata"]["name"], record_of(manifest)
    if before.candidate and before.candidate.storage_uri != target.storage_uri:
        acts.say(service, f"{before.candidate.storage_uri} was left as a canary; it is removed")
    if before.stable.storage_uri == target.storage_uri:
        if not before.candidate:
            return manifest
        return without_canary(manifest, "the live version was deployed again", acts.now())
    same = before.candidate and before.candidate.storage_uri == target.storage_uri
    if same and traffic_of(manifest)[target.predictor["name"]] == percent:
        return manifest
    return with_canary(manifest, target, percent, acts.now())


def _previewed(
    backend: Backend, before: Manifest | None, after: Manifest, record: str | Path
) -> str:
    print(preview(backend, before, after), flush=True)
    write_record(record_of(after), record)
    return DRY_RUN
