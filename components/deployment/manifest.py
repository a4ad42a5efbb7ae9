# SPDX-License-Identifier: Apache-2.0
"""Edits of an InferenceService manifest. Every function is pure: a manifest in, a new one out.

The shape is KServe's Standard mode (v1beta1): `spec.predictor` is the live version, `spec.canary`
holds at most one candidate beside it. The deployment record is an annotation of the same manifest,
so one write changes what runs and what is known about it; a crash cannot come between the two.
"""

import copy
import re
from dataclasses import replace
from typing import Any

from kfloop.components.contracts.deployment_record import (
    RECORD_ANNOTATION,
    DeploymentRecord,
    Rollout,
    Target,
    parse_record,
)
from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment.autoscaling import KNATIVE, SCALING_KEYS

LOG_ANNOTATION = "kfloop.org/inference-log"
VERSION_ANNOTATION = "kfloop.org/model-version"
MODE_ANNOTATION = "serving.kserve.io/deploymentMode"
DEPLOYED, CANARY, PROMOTED, ROLLED_BACK = "deployed", "canary", "promoted", "rolled_back"
# The version before is brought up beside the live one, which it will replace.
RESTORING = "restoring"
REASON_LENGTH = 500
# The API server's limit for all annotations of an object.
ANNOTATION_BYTES = 256 * 1024

Manifest = dict[str, Any]


def new_service(
    name: str,
    namespace: str,
    target: Target,
    labels: dict[str, str],
    now: str,
    rollout: Rollout | None = None,
) -> Manifest:
    """Returns a service with `target` live at 100 %.

    Args:
        name: Name of the service.
        namespace: Its namespace.
        target: The version.
        labels: Labels beside kfloop's own; they never change.
        now: ISO 8601 time for the record.
        rollout: The rollout that it begins, if it does.

    Raises:
        InputError: If `name` cannot name a service.
    """
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name):
        raise InputError(
            f"The service name {name!r} cannot be used; take at most 40 lower-case letters, digits "
            "and hyphens, beginning with a letter and not ending with a hyphen."
        )
    manifest: Manifest = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/managed-by": "kfloop", **labels},
            "annotations": dict(target.annotations),
        },
        "spec": {"predictor": copy.deepcopy(target.predictor)},
    }
    record = DeploymentRecord(
        name, namespace, DEPLOYED, stable=target, changed_at=now, rollout=rollout
    )
    return _recorded(manifest, record)


def with_log(manifest: Manifest, inference_log: str) -> Manifest:
    """Returns the manifest with the place of its inference log."""
    edited = copy.deepcopy(manifest)
    edited["metadata"].setdefault("annotations", {})[LOG_ANNOTATION] = inference_log
    return edited


def with_canary(
    manifest: Manifest,
    target: Target,
    traffic_percent: int,
    now: str,
    rollout: Rollout | None = None,
    reason: str = "",
) -> Manifest:
    """Puts `target` beside the live version as its only candidate.

    Args:
        manifest: The service as it is; a candidate already there is replaced.
        target: The candidate.
        traffic_percent: Its share of the requests, 0 to 100.
        now: ISO 8601 time for the record.
        rollout: The rollout that this is a step of; None keeps the one of the same model.
        reason: Why, for the record.

    Raises:
        InputError: If the percentage is out of range, or the candidate is the live version or has
            its name.
    """
    # The CRD of KServe's Knative mode takes 150 without a word, so the bound is checked here.
    if not 0 <= traffic_percent <= 100:
        raise InputError(f"traffic_percent is {traffic_percent}; give a number from 0 to 100.")
    record = record_of(manifest)
    if target.storage_uri == record.stable.storage_uri:
        raise InputError(f"{target.storage_uri} is live already; it cannot be its own candidate.")
    if target.predictor["name"] == record.stable.predictor["name"]:
        raise InputError(
            f"The candidate {target.storage_uri} and the live {record.stable.storage_uri} both say "
            f"that they are version {target.version}; publish the candidate again."
        )
    # In Knative mode the spec is the candidate's at once, and revisions keep what they began with.
    frozen = (manifest["metadata"].get("annotations") or {}).get(MODE_ANNOTATION) == KNATIVE
    edited = _annotated(copy.deepcopy(manifest), target if frozen else record.stable)
    predictor = candidate_predictor(target.predictor, traffic_percent)
    edited["spec"]["canary"] = [{"trafficPercent": traffic_percent, "predictor": predictor}]
    return _recorded(
        edited,
        replace(
            record,
            state=CANARY,
            candidate=target,
            reason=reason,
            changed_at=now,
            undone="",
            rollout=rollout or _rollout_of(record, target),
        ),
    )


def candidate_predictor(predictor: dict[str, Any], traffic_percent: int) -> dict[str, Any]:
    """Returns a predictor as Standard mode takes it for a candidate: without autoscaling.

    KServe takes its replicas from the percentage; what is left out here comes at the promotion.
    """
    fields = {key: value for key, value in predictor.items() if key not in SCALING_KEYS}
    if traffic_percent == 0:
        # Else 0 % would run nothing.
        fields["minReplicas"] = 1
    return copy.deepcopy(fields)


def with_share(manifest: Manifest, traffic_percent: int) -> Manifest:
    """Gives the candidate another share on its way out or up; the record stays as it is."""
    candidate = record_of(manifest).candidate
    assert candidate is not None
    predictor = candidate_predictor(candidate.predictor, traffic_percent)
    edited = copy.deepcopy(manifest)
    edited["spec"]["canary"] = [{"trafficPercent": traffic_percent, "predictor": predictor}]
    return edited


def with_rollout(manifest: Manifest, rollout: Rollout) -> Manifest:
    """Notes how far a rollout is; what serves does not change."""
    return _recorded(copy.deepcopy(manifest), replace(record_of(manifest), rollout=rollout))


def without_canary(manifest: Manifest, reason: str, now: str) -> Manifest:
    """Takes the candidate away; the live version gets all requests."""
    record = record_of(manifest)
    edited = _annotated(copy.deepcopy(manifest), record.stable)
    edited["spec"].pop("canary", None)
    rollout = _rollout_of(record, record.candidate)
    return _recorded(
        edited,
        replace(
            record,
            state=ROLLED_BACK,
            candidate=None,
            reason=reason,
            changed_at=now,
            undone=record.candidate.storage_uri if record.candidate else "",
            rollout=replace(rollout, outcome=ROLLED_BACK) if rollout else None,
        ),
    )


def promoted(manifest: Manifest, now: str) -> Manifest:
    """Makes the candidate the live version and keeps the one before it for a roll back.

    Raises:
        InputError: If there is no candidate.
    """
    record = record_of(manifest)
    if record.candidate is None:
        raise InputError(f"The service {record.service!r} has no candidate to promote.")
    rollout = _rollout_of(record, record.candidate)
    return _recorded(
        _alone(manifest, record.candidate),
        replace(
            record,
            state=PROMOTED,
            stable=record.candidate,
            candidate=None,
            previous=record.stable,
            reason="",
            changed_at=now,
            undone="",
            rollout=replace(rollout, outcome=PROMOTED) if rollout else None,
        ),
    )


def restoring(manifest: Manifest, reason: str, now: str) -> Manifest:
    """Brings the version before the live one up beside it, without requests.

    In Standard mode KServe ends the live version's pods in the moment in which it is replaced; so
    the other one must be there before.

    Raises:
        InputError: If the record knows of none.
    """
    record = record_of(manifest)
    previous = _previous(record)
    edited = with_canary(manifest, previous, 0, now)
    return _recorded(
        edited,
        replace(record, state=RESTORING, candidate=previous, reason=reason, changed_at=now),
    )


def restored(manifest: Manifest, reason: str, now: str) -> Manifest:
    """Makes the version before the live one live again.

    Raises:
        InputError: If the record knows of none.
    """
    record = record_of(manifest)
    previous = _previous(record)
    rollout = _rollout_of(record, record.stable)
    return _recorded(
        _alone(manifest, previous),
        replace(
            record,
            state=ROLLED_BACK,
            stable=previous,
            candidate=None,
            previous=None,
            reason=reason,
            changed_at=now,
            undone=record.stable.storage_uri,
            rollout=replace(rollout, outcome=ROLLED_BACK) if rollout else None,
        ),
    )


def _previous(record: DeploymentRecord) -> Target:
    if record.previous is None:
        raise InputError(
            f"The service {record.service!r} has nothing to roll back to: "
            f"{record.stable.storage_uri} is the only version its deployment record knows."
        )
    return record.previous


def _rollout_of(record: DeploymentRecord, target: Target | None) -> Rollout | None:
    found = record.rollout
    return found if found and target and found.model_uri == target.storage_uri else None


def _alone(manifest: Manifest, new: Target) -> Manifest:
    """Gives `new` the whole service, with the annotations that go with it."""
    edited = _annotated(copy.deepcopy(manifest), new)
    edited["spec"] = {"predictor": copy.deepcopy(new.predictor)}
    return edited


def _annotated(manifest: Manifest, target: Target) -> Manifest:
    """Puts a version's annotations in the place of the other versions'; changes the manifest."""
    record = record_of(manifest)
    versions = (record.stable, record.candidate, record.previous)
    others = {key for known in versions if known for key in known.annotations}
    annotations = manifest["metadata"].get("annotations") or {}
    kept = {key: value for key, value in annotations.items() if key not in others}
    manifest["metadata"]["annotations"] = kept | target.annotations
    return manifest


def record_of(manifest: Manifest) -> DeploymentRecord:
    """Returns the deployment record of a service.

    What the spec says wins: where somebody edited it by hand, or there is no annotation, the
    record is made from the spec, and only what the annotation still truly knows is kept.
    """
    metadata, spec = manifest["metadata"], manifest["spec"]
    stable = _target_of_predictor(spec["predictor"])
    canary = spec.get("canary") or []
    candidate = None
    if canary:
        # A candidate says nothing of autoscaling; promoted, it goes on as the live version did.
        scaling = {key: stable.predictor[key] for key in SCALING_KEYS if key in stable.predictor}
        candidate = _target_of_predictor(canary[0]["predictor"] | scaling)
    text = (metadata.get("annotations") or {}).get(RECORD_ANNOTATION)
    known = parse_record(text) if text else None
    if known and known.stable.storage_uri == stable.storage_uri:
        known_candidate = known.candidate.storage_uri if known.candidate else None
        if known_candidate == (candidate.storage_uri if candidate else None):
            return known
        previous = known.previous
    else:
        previous = known.stable if known else None
    state = CANARY if candidate else DEPLOYED
    return DeploymentRecord(
        metadata["name"],
        metadata.get("namespace", ""),
        state,
        stable=stable,
        candidate=candidate,
        previous=previous,
        reason="made from the spec, which was edited outside kfloop",
        changed_at=metadata.get("creationTimestamp", ""),
    )


def traffic_of(manifest: Manifest) -> dict[str, int]:
    """Returns each predictor's share of the requests in percent; they sum to 100."""
    shares = {
        entry["predictor"]["name"]: int(entry["trafficPercent"])
        for entry in manifest["spec"].get("canary") or []
    }
    live = manifest["spec"]["predictor"].get("name", "")
    return {live: 100 - sum(shares.values()), **shares}


def _target_of_predictor(predictor: dict[str, Any]) -> Target:
    name = predictor.get("name", "")
    annotations = predictor.get("annotations") or {}
    version = annotations.get(VERSION_ANNOTATION) or name.removeprefix("v")
    uri = (predictor.get("model") or {}).get("storageUri", "")
    return Target(version, uri, copy.deepcopy(predictor))


def _recorded(manifest: Manifest, record: DeploymentRecord) -> Manifest:
    """Writes the record into a manifest, which it changes.

    Raises:
        InputError: If the annotations become larger than the API server takes.
    """
    record = replace(record, reason=record.reason[:REASON_LENGTH])
    annotations = manifest["metadata"].setdefault("annotations", {})
    annotations[RECORD_ANNOTATION] = record.to_json()
    size = sum(len(key.encode()) + len(str(annotations[key]).encode()) for key in annotations)
    if size > ANNOTATION_BYTES:
        raise InputError(
            f"The annotations of {record.service!r} would be {size:,} bytes, more than the "
            f"{ANNOTATION_BYTES:,} that Kubernetes takes; make its predictor's settings shorter."
        )
    return manifest
