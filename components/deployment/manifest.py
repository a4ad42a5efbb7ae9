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
    Target,
    parse_record,
)
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import ModelPackage

LOG_ANNOTATION = "kfloop.org/inference-log"
VERSION_ANNOTATION = "kfloop.org/model-version"
DEPLOYED, CANARY, PROMOTED, ROLLED_BACK = "deployed", "canary", "promoted", "rolled_back"
MODEL_FORMAT = "kfloop"

Manifest = dict[str, Any]


def target_of(package: ModelPackage, model_uri: str) -> Target:
    """Describes a published model version as something to deploy.

    The predictor's name comes from the version: KServe's Standard mode keeps the name of a
    promoted canary for good and wants a new one for each candidate.

    Raises:
        InputError: If the package was never published, so it has no version.
    """
    if not package.version:
        raise InputError(
            f"The model package {model_uri} has no version; deploy what publish_model returned."
        )
    lineage = {
        VERSION_ANNOTATION: package.version,
        "kfloop.org/model": package.name,
        "kfloop.org/dataset-fingerprint": package.dataset_fingerprint,
        "kfloop.org/schema-fingerprint": package.schema_fingerprint,
        "kfloop.org/feature-service": package.feature_service,
        "kfloop.org/git-commit": package.git_commit,
    }
    predictor = {
        "name": f"v{package.version}",
        "annotations": {key: value for key, value in lineage.items() if value},
        "model": {"modelFormat": {"name": MODEL_FORMAT}, "storageUri": model_uri},
    }
    return Target(package.version, model_uri, predictor)


def new_service(
    name: str, namespace: str, target: Target, labels: dict[str, str], now: str
) -> Manifest:
    """Returns a service with `target` live at 100 %.

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
            "annotations": {"serving.kserve.io/deploymentMode": "Standard"},
        },
        "spec": {"predictor": copy.deepcopy(target.predictor)},
    }
    return _recorded(
        manifest, DeploymentRecord(name, namespace, DEPLOYED, stable=target, changed_at=now)
    )


def with_log(manifest: Manifest, inference_log: str) -> Manifest:
    """Returns the manifest with the place of its inference log."""
    edited = copy.deepcopy(manifest)
    edited["metadata"].setdefault("annotations", {})[LOG_ANNOTATION] = inference_log
    return edited


def with_canary(manifest: Manifest, target: Target, traffic_percent: int, now: str) -> Manifest:
    """Puts `target` beside the live version as its only candidate.

    Args:
        manifest: The service as it is; a candidate already there is replaced.
        target: The candidate.
        traffic_percent: Its share of the requests, 0 to 100.
        now: ISO 8601 time for the record.

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
    edited = copy.deepcopy(manifest)
    predictor = copy.deepcopy(target.predictor)
    if traffic_percent == 0:
        # KServe takes the replicas from the percentage: without this, 0 % would run nothing.
        predictor["minReplicas"] = 1
    edited["spec"]["canary"] = [{"trafficPercent": traffic_percent, "predictor": predictor}]
    return _recorded(
        edited, replace(record, state=CANARY, candidate=target, reason="", changed_at=now)
    )


def without_canary(manifest: Manifest, reason: str, now: str) -> Manifest:
    """Takes the candidate away; the live version gets all requests."""
    record = record_of(manifest)
    edited = copy.deepcopy(manifest)
    edited["spec"].pop("canary", None)
    return _recorded(
        edited,
        replace(record, state=ROLLED_BACK, candidate=None, reason=reason, changed_at=now),
    )


def promoted(manifest: Manifest, now: str) -> Manifest:
    """Makes the candidate the live version and keeps the one before it for a roll back.

    Raises:
        InputError: If there is no candidate.
    """
    record = record_of(manifest)
    if record.candidate is None:
        raise InputError(f"The service {record.service!r} has no candidate to promote.")
    edited = copy.deepcopy(manifest)
    edited["spec"] = {"predictor": copy.deepcopy(record.candidate.predictor)}
    return _recorded(
        edited,
        replace(
            record,
            state=PROMOTED,
            stable=record.candidate,
            candidate=None,
            previous=record.stable,
            reason="",
            changed_at=now,
        ),
    )


def restored(manifest: Manifest, reason: str, now: str) -> Manifest:
    """Puts the version before the live one back.

    Raises:
        InputError: If the record knows of none.
    """
    record = record_of(manifest)
    if record.previous is None:
        raise InputError(
            f"The service {record.service!r} has nothing to roll back to: "
            f"{record.stable.storage_uri} is the only version its deployment record knows."
        )
    edited = copy.deepcopy(manifest)
    edited["spec"] = {"predictor": copy.deepcopy(record.previous.predictor)}
    return _recorded(
        edited,
        replace(
            record,
            state=ROLLED_BACK,
            stable=record.previous,
            candidate=None,
            previous=None,
            reason=reason,
            changed_at=now,
        ),
    )


def record_of(manifest: Manifest) -> DeploymentRecord:
    """Returns the deployment record of a service.

    What the spec says wins: where somebody edited it by hand, or there is no annotation, the
    record is made from the spec, and only what the annotation still truly knows is kept.
    """
    metadata, spec = manifest["metadata"], manifest["spec"]
    stable = _target_of_predictor(spec["predictor"])
    canary = spec.get("canary") or []
    candidate = _target_of_predictor(canary[0]["predictor"]) if canary else None
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
    manifest["metadata"].setdefault("annotations", {})[RECORD_ANNOTATION] = record.to_json()
    return manifest
