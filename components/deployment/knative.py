# SPDX-License-Identifier: Apache-2.0
"""KServe's Knative mode: our manifest to and from the one predictor spec that it has.

In this mode the newest revision is the candidate and `canaryTrafficPercent` its share; the live
version is a revision that no spec names any more. What it was stands in the deployment record.
Pure functions.

A rollback takes two writes. Putting the live version's spec back makes a third revision, and
until that one is ready the newest ready revision is the candidate: with the percentage removed,
it would get all requests. So the percentage is held at 0, and removed once the revision is ready.

Where a split begins, Knative's route may have it before the new revision exists: both shares are
the live revision's then. KServe (0.20) takes that for a rollback by percentage and gives the live
share to `previousRolledoutRevision` of its status, for good. So that note goes first.
"""

import copy
from typing import Any

from kfloop.components.contracts.deployment_record import RECORD_ANNOTATION, parse_record
from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment.manifest import Manifest

# A predictor's name would make another Knative service of it, so it travels as an annotation.
NAME_ANNOTATION = "kfloop.org/predictor"
# Gives the newest revision an address of its own.
TAG_ANNOTATION = "serving.kserve.io/enable-tag-routing"
PERCENT = "canaryTrafficPercent"
PREVIOUS = "previousRolledoutRevision"

Spec = dict[str, Any]


def to_knative(manifest: Manifest, stored: Manifest | None = None) -> Manifest:
    """Returns an InferenceService for Knative mode.

    Args:
        manifest: The service in our shape, with its deployment record.
        stored: What the cluster has now, in Knative's shape; None for a new service.
    """
    made = copy.deepcopy(manifest)
    spec = made["spec"]
    canary = (spec.pop("canary", None) or [None])[0]
    if canary:
        spec["predictor"] = _unnamed(_whole_candidate(manifest, canary["predictor"]))
        spec["predictor"][PERCENT] = canary["trafficPercent"]
    else:
        live = spec["predictor"] = _unnamed(spec["predictor"])
        if stored and _must_hold(stored, _uri(live)):
            live[PERCENT] = 0
    made["metadata"].setdefault("annotations", {})[TAG_ANNOTATION] = "true"
    return made


def from_knative(stored: Manifest) -> Manifest:
    """Returns an InferenceService in our shape.

    Raises:
        InputError: If it has a candidate and no record of what is live.
    """
    made = copy.deepcopy(stored)
    newest = _named(stored["spec"]["predictor"])
    percent = newest.pop(PERCENT, None)
    made["spec"]["predictor"] = newest
    if percent is None or holds(stored):
        return made
    live = _recorded(stored, "stable")
    if live is None:
        raise InputError(
            f"The service {stored['metadata']['name']!r} has a candidate that kfloop did not "
            f"deploy; remove {PERCENT} from its predictor, or the candidate, first."
        )
    made["spec"]["predictor"] = live
    made["spec"]["canary"] = [{"trafficPercent": int(percent), "predictor": newest}]
    return made


def holds(stored: Manifest) -> bool:
    """Whether a rollback waits for its second step: the live spec is back, at 0 %."""
    predictor = stored["spec"]["predictor"]
    live = _recorded(stored, "stable")
    return (
        predictor.get(PERCENT) == 0
        and live is not None
        and _uri(live) == _uri(predictor)
        and _recorded(stored, "candidate") is None
    )


def released(stored: Manifest) -> Manifest:
    """Returns the second step of a rollback: the live version's new revision gets all requests."""
    made = copy.deepcopy(stored)
    made["spec"]["predictor"].pop(PERCENT, None)
    return made


def forgetting(stored: Manifest, wanted: Manifest) -> Manifest | None:
    """Returns the service without KServe's note of the revision before, where a split begins.

    Args:
        stored: What the cluster has now, with its status.
        wanted: What is to be written.

    Returns:
        None when no split begins, or there is no note.
    """
    begins = PERCENT in wanted["spec"]["predictor"] and PERCENT not in stored["spec"]["predictor"]
    if not begins or not _revisions(stored).get(PREVIOUS):
        return None
    made = copy.deepcopy(stored)
    del _revisions(made)[PREVIOUS]
    return made


def rolled_out(stored: Manifest) -> str:
    """Returns the revision that KServe goes back to when a split begins, or ''."""
    return str(_revisions(stored).get("latestRolledoutRevision", ""))


def _revisions(stored: Manifest) -> dict[str, Any]:
    """What KServe notes of the predictor's revisions."""
    components = (stored.get("status") or {}).get("components") or {}
    found: dict[str, Any] = components.get("predictor") or {}
    return found


def _must_hold(stored: Manifest, live_uri: str) -> bool:
    """Whether a plain spec may not get all requests at once, since the newest revision is bad."""
    if PERCENT not in stored["spec"]["predictor"]:
        return False
    # The same model as the newest revision: a promotion, unless a rollback is still going on.
    return holds(stored) or _uri(stored["spec"]["predictor"]) != live_uri


def _whole_candidate(manifest: Manifest, in_spec: Spec) -> Spec:
    """Returns the candidate as it will be live, so that its promotion makes no new revision."""
    known = _recorded(manifest, "candidate")
    return known if known and _uri(known) == _uri(in_spec) else copy.deepcopy(in_spec)


def _recorded(manifest: Manifest, which: str) -> Spec | None:
    text = (manifest["metadata"].get("annotations") or {}).get(RECORD_ANNOTATION)
    target = getattr(parse_record(text), which) if text else None
    return copy.deepcopy(target.predictor) if target else None


def _unnamed(predictor: Spec) -> Spec:
    made = copy.deepcopy(predictor)
    name = made.pop("name", "")
    if name:
        made["annotations"] = {**(made.get("annotations") or {}), NAME_ANNOTATION: name}
    return made


def _named(predictor: Spec) -> Spec:
    made = copy.deepcopy(predictor)
    name = (made.get("annotations") or {}).pop(NAME_ANNOTATION, "")
    return {"name": name, **made} if name else made


def _uri(predictor: Spec) -> str:
    return str((predictor.get("model") or {}).get("storageUri", ""))
