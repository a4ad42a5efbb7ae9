# SPDX-License-Identifier: Apache-2.0
"""What the simulated controllers share: writing objects they own, conditions, events."""

import hashlib
import json
from typing import Any

from .documents import copied
from .errors import ApiError
from .server import ApiServer
from .store import Object
from .verbs import Options

ISVC_LABEL = "serving.kserve.io/inferenceservice"
SOURCE_ANNOTATION = "internal.serving.kserve.io/storage-initializer-sourceuri"
REVISION_LABEL = "serving.knative.dev/revision"
SERVICE_TYPE_LABEL = "networking.internal.knative.dev/serviceType"
ISVCS, DEPLOYMENTS = "inferenceservices.serving.kserve.io", "deployments.apps"
KSERVICES, REVISIONS = "services.serving.knative.dev", "revisions.serving.knative.dev"
ROUTES = "httproutes.gateway.networking.k8s.io"
OPTIONS = Options(manager="controller")


def owner_of(owner: Object) -> list[dict[str, Any]]:
    """Returns metadata.ownerReferences that name `owner` as the controller."""
    return [
        {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]


def ensure(api: ApiServer, resource: str, wanted: Object, owner: Object) -> Object:
    """Creates an object, or brings its spec, labels and annotations to what is wanted.

    Returns:
        It as it was before an update, which is what KServe's reconcilers go on with, or as it
        was created.
    """
    metadata = wanted["metadata"]
    old = api.get(resource, metadata["name"], metadata["namespace"])
    if old is None:
        return api.create({**wanted, "metadata": {**metadata, "ownerReferences": owner_of(owner)}})
    new = copied(old)
    new["spec"] = wanted["spec"]
    for part in ("labels", "annotations"):
        if metadata.get(part):
            new["metadata"][part] = {**old["metadata"].get(part, {}), **metadata[part]}
    kind = api.registry.find(resource)
    api.verbs.replace(kind, metadata["namespace"], metadata["name"], new, OPTIONS)
    return old


def set_status(api: ApiServer, resource: str, document: Object, status: Object) -> None:
    """Writes a status when it says something new."""
    if document.get("status") == status:
        return
    metadata = document["metadata"]
    try:
        api.set_status(resource, metadata["name"], metadata.get("namespace", ""), status)
    except ApiError as error:
        if error.code != 404:  # it was deleted meanwhile
            raise


def set_condition(
    api: ApiServer, conditions: list[dict[str, Any]], name: str, state: str, **told: str
) -> None:
    """Sets a condition; the time of its last transition changes with its state only.

    Args:
        api: Tells the time.
        conditions: Changed in place and kept sorted, as Knative's library keeps them.
        name: Its type.
        state: "True", "False" or "Unknown".
        told: `reason` and `message`, `severity`.
    """
    old = find_condition(conditions, name)
    since = api.store.now()
    if old.get("status") == state:
        since = old["lastTransitionTime"]
    about = {key: value for key, value in told.items() if value}
    if old:
        conditions.remove(old)
    conditions.append({"type": name, "status": state, "lastTransitionTime": since, **about})
    conditions.sort(key=lambda condition: str(condition["type"]))


def find_condition(conditions: list[dict[str, Any]] | None, name: str) -> dict[str, Any]:
    """Returns a condition; empty when there is none of that type."""
    return next((entry for entry in conditions or [] if entry["type"] == name), {})


def is_true(conditions: list[dict[str, Any]] | None, name: str) -> bool:
    """Whether a condition is there and True."""
    return find_condition(conditions, name).get("status") == "True"


def fingerprint(value: Any) -> str:
    """Returns ten letters for a template, as in the names of ReplicaSets."""
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    return "".join("bcdfghjklmnpqrst"[int(digit, 16)] for digit in digest[:10])


def tell(api: ApiServer, about: Object, kind: str, reason: str, message: str) -> None:
    """Records an Event; the same one again is only counted."""
    metadata = about["metadata"]
    namespace = metadata.get("namespace", "default")
    name = f"{metadata['name']}.{fingerprint([about['kind'], reason, message])}"
    old = api.get("events", name, namespace)
    if old is not None:
        # Counting every tick would never settle; three says that it repeats.
        if old["count"] < 3:
            api.patch("events", name, namespace, {"count": old["count"] + 1})
        return
    api.create(
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                "name": metadata["name"],
                "namespace": namespace,
                "uid": metadata["uid"],
            },
            "type": kind,
            "reason": reason,
            "message": message,
            "count": 1,
            "firstTimestamp": api.store.now(),
            "lastTimestamp": api.store.now(),
        }
    )
