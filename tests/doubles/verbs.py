# SPDX-License-Identifier: Apache-2.0
"""What the verbs of the Kubernetes API do to a store."""

import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from . import patches
from .checks import check_name, check_preconditions, decoded, manifest
from .deletion import Deletion
from .documents import copied
from .errors import ApiError, invalid, not_found
from .ownership import drop
from .resources import Resource
from .store import Key, Object, Store

Mutator = Callable[[Object, Object | None], Object]
Validator = Callable[[Object, Object | None], None]
MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = ("application/apply-patch+yaml", "application/apply-patch+json")
KEPT = ("uid", "creationTimestamp", "name", "namespace", "deletionTimestamp")


@dataclass(frozen=True)
class Options:
    """Of one request.

    Attributes:
        dry_run: Everything is checked and answered, nothing is kept.
        strict: Unknown fields are refused; else they are dropped.
        manager: Who writes, for field ownership.
        force: Whether an apply takes fields that others own.
        status: Whether the status subresource is written, else everything but the status.
    """

    dry_run: bool = False
    strict: bool = True
    manager: str = "unknown"
    force: bool = False
    status: bool = False


@dataclass
class Admission:
    """The webhooks of one kind: first a mutating one, after the schema a validating one."""

    mutate: Mutator = field(default=lambda new, old: new)
    validate: Validator = field(default=lambda new, old: None)


class Verbs:
    """Create, read, update, patch and delete, as the API server does them.

    Attributes:
        admission: Webhooks by kind (`plural.group`).
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._deletion = Deletion(store)
        self.admission: dict[str, Admission] = {}

    def create(self, kind: Resource, namespace: str, body: Any, options: Options) -> Object:
        """Creates an object.

        Raises:
            ApiError: 400, 404, 409, 422 or what a webhook says.
        """
        body = manifest(kind, body)
        metadata = body["metadata"]
        if metadata.get("resourceVersion"):
            raise ApiError(500, "resourceVersion should not be set on objects to be created")
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + secrets.token_hex(3)[:5]
        check_name(kind, namespace, metadata)
        name = metadata["name"]
        with self.store.lock:
            if namespace and self.store.get(("namespaces", "", namespace)) is None:
                raise not_found("namespaces", namespace)
            key = (kind.name, namespace, name)
            if self.store.get(key) is not None:
                details = {"name": name, "group": kind.group, "kind": kind.plural}
                message = f'{kind.name} "{name}" already exists'
                raise ApiError(409, message, "AlreadyExists", details)
            if kind.has_status:
                body.pop("status", None)
            new = self._admitted(kind, body, None, options, patched=False)
            stamps = {"uid": str(uuid.uuid4()), "creationTimestamp": self.store.now()}
            kept = {k: v for k, v in new["metadata"].items() if k not in ("uid", "generation")}
            new["metadata"] = {**kept, "name": name, **stamps}
            if kind.counts_generations:
                new["metadata"]["generation"] = 1
            new["metadata"].pop("deletionTimestamp", None)
            if namespace:
                new["metadata"]["namespace"] = namespace
            return self._commit(kind, key, new, None, options)

    def get(self, kind: Resource, namespace: str, name: str) -> Object:
        """Returns an object.

        Raises:
            ApiError: 404.
        """
        with self.store.lock:
            found = self.store.get((kind.name, namespace, name))
        if found is None:
            raise not_found(kind.name, name)
        return found

    def replace(
        self, kind: Resource, namespace: str, name: str, body: Any, options: Options
    ) -> Object:
        """Replaces an object, or its status.

        Raises:
            ApiError: 400, 404, 409, 422 or what a webhook says.
        """
        body = manifest(kind, body)
        sent = body["metadata"]
        if sent.get("name", name) != name:
            raise ApiError(
                400,
                f"the name of the object ({sent['name']}) does not match the name on the URL "
                f"({name})",
            )
        with self.store.lock:
            old = self.get(kind, namespace, name)
            version = sent.get("resourceVersion")
            if kind.custom and not version:
                wrong = "Invalid value: 0x0: must be specified for an update"
                raise invalid(kind.kind, kind.group, name, [("metadata.resourceVersion", wrong)])
            check_preconditions(kind, old, sent)
            return self._write(kind, old, body, options, patched=False)

    def patch(
        self,
        kind: Resource,
        namespace: str,
        name: str,
        body: Any,
        content_type: str,
        options: Options,
    ) -> tuple[Object, bool]:
        """Patches an object; an apply creates it when it is not there.

        Returns:
            The object, and whether it was created.

        Raises:
            ApiError: 400, 404, 409, 415, 422 or what a webhook says.
        """
        if content_type in APPLY:
            return self._apply(kind, namespace, name, body, options)
        accepted = [JSON_PATCH, MERGE, *([] if kind.custom else [STRATEGIC])]
        if content_type not in accepted:
            raise ApiError(
                415,
                "the body of the request was in an unknown format - accepted media types include: "
                + ", ".join([*accepted, APPLY[0]]),
            )
        with self.store.lock:
            old = self.get(kind, namespace, name)
            if content_type == JSON_PATCH:
                new = patches.json_patch(old, body)
            elif not isinstance(body, dict):
                raise ApiError(400, "error decoding patch: json: cannot unmarshal the patch")
            else:
                join = patches.merge if content_type == MERGE else patches.strategic
                new = join(old, body)
            check_preconditions(kind, old, new.get("metadata") or {})
            return self._write(kind, old, new, options, patched=True), False

    def delete(self, kind: Resource, namespace: str, name: str, body: Any, dry_run: bool) -> Object:
        """Deletes an object: at once, or by its finalizers when it has any.

        Returns:
            The object while finalizers keep it (and a pod), else a Status.

        Raises:
            ApiError: 404 or 409.
        """
        wishes = body if isinstance(body, dict) else {}
        with self.store.lock:
            old = self.get(kind, namespace, name)
            check_preconditions(kind, old, wishes.get("preconditions") or {})
            if not dry_run:
                self._deletion.delete(kind, old, wishes.get("propagationPolicy") or "Background")
            there = self.store.get((kind.name, namespace, name))
        if there is not None and not dry_run:
            return there
        if not kind.custom and kind.plural == "pods":
            return old
        details = {"name": name, "kind": kind.plural, "uid": old["metadata"]["uid"]}
        if kind.group:
            details["group"] = kind.group
        success = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        return {**success, "details": details}

    def _apply(
        self, kind: Resource, namespace: str, name: str, body: Any, options: Options
    ) -> tuple[Object, bool]:
        if not isinstance(body, dict):
            raise ApiError(400, "error decoding YAML: an apply configuration is an object")
        body = manifest(kind, body)
        body["metadata"].setdefault("name", name)
        key = (kind.name, namespace, name)
        with self.store.lock:
            old = self.store.get(key)
            owners = self.store.owners(key).copy()
            dropped = owners.apply(options.manager, old, body, options.force)
            if old is None:
                new = self.create(kind, namespace, body, options)
            else:
                check_preconditions(kind, old, body["metadata"])
                joined = (patches.merge if kind.custom else patches.strategic)(old, body)
                drop(joined, dropped)
                new = self._write(kind, old, joined, options, patched=True)
            if not options.dry_run:
                self.store.set_owners(key, owners)
                fields = owners.managed_fields(kind.api_version)
                self.store.everything()[key]["metadata"]["managedFields"] = fields
                new["metadata"]["managedFields"] = fields
            return new, old is None

    def _write(
        self, kind: Resource, old: Object, new: Object, options: Options, patched: bool
    ) -> Object:
        """Keeps what a write may not touch, checks the rest, and stores it."""
        name, namespace = old["metadata"]["name"], old["metadata"].get("namespace", "")
        if not isinstance(new, dict) or not isinstance(new.get("metadata"), dict):
            raise ApiError(400, "Object 'metadata' is missing")
        if options.status:
            new = {**copied(old), "status": new.get("status")}
            if new["status"] is None:
                del new["status"]
        elif kind.has_status:
            new = {**new, "status": old["status"]} if "status" in old else _without(new, "status")
        metadata = {k: v for k, v in new["metadata"].items() if k != "deletionTimestamp" and v}
        metadata.update({k: old["metadata"][k] for k in KEPT if k in old["metadata"]})
        if kind.counts_generations:
            metadata["generation"] = old["metadata"]["generation"]
        metadata["resourceVersion"] = old["metadata"]["resourceVersion"]
        new = {"apiVersion": old["apiVersion"], "kind": old["kind"], **new, "metadata": metadata}
        admitted = self._admitted(kind, new, old, options, patched)
        if kind.counts_generations and _content(admitted) != _content(old):
            admitted["metadata"]["generation"] = old["metadata"]["generation"] + 1
        key = (kind.name, namespace, name)
        if _without_managed(admitted) == _without_managed(old):
            return old
        return self._commit(kind, key, admitted, old, options)

    def _commit(
        self, kind: Resource, key: Key, new: Object, old: Object | None, options: Options
    ) -> Object:
        if options.dry_run:
            new["metadata"].setdefault("resourceVersion", "")
            return new
        owners = self.store.owners(key)
        owners.wrote(options.manager, old, new)
        new["metadata"]["managedFields"] = owners.managed_fields(kind.api_version)
        if new["metadata"].get("deletionTimestamp") and not new["metadata"].get("finalizers"):
            self._deletion.finish(key, new)
            return new
        return self.store.put(key, new)

    def _admitted(
        self, kind: Resource, new: Object, old: Object | None, options: Options, patched: bool
    ) -> Object:
        """Runs the schema and the webhooks in the real server's order."""
        name = new["metadata"].get("name", "")
        hooks = self.admission.get(kind.name) or Admission()
        wrong: list[tuple[str, str]] = []
        if kind.schema is not None:
            new, wrong = decoded(kind, new, options.strict, patched)
        if not wrong and not options.status:
            # A webhook cannot read what has the wrong types; the schema's message comes first.
            new = hooks.mutate(new, old)
        if wrong:
            raise invalid(kind.kind, kind.group, name, wrong)
        if not options.status:
            hooks.validate(new, old)
        return new


def _content(document: Object) -> Object:
    """What counts for the generation: everything but metadata and status."""
    return {key: value for key, value in document.items() if key not in ("metadata", "status")}


def _without(document: Object, field: str) -> Object:
    return {key: value for key, value in document.items() if key != field}


def _without_managed(document: Object) -> Object:
    ignored = ("managedFields", "resourceVersion")
    metadata = {k: v for k, v in document["metadata"].items() if k not in ignored}
    return {**document, "metadata": metadata}
