# SPDX-License-Identifier: Apache-2.0
"""What is wrong with an object, whatever its kind: its form, its name, its version."""

import json
import re
from typing import Any

from . import schema
from .documents import copied
from .errors import ApiError, conflict, invalid
from .resources import Resource
from .store import Object

NAME = r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"


def decoded(
    kind: Resource, new: Object, strict: bool, patched: bool
) -> tuple[Object, list[tuple[str, str]]]:
    """Checks an object against its kind's schema; unknown fields are refused or dropped.

    Returns:
        The object as it would be stored, and which of its fields are wrong.

    Raises:
        ApiError: 400 for unknown fields, 422 when they came by a patch.
    """
    base = {"apiVersion": "string", "kind": "string", "metadata": "any"}
    fields: dict[str, Any] = kind.schema or {}
    checked, found = schema.check({**base, **fields}, new, "")
    if found.unknown and strict:
        told = ", ".join(f'unknown field "{path}"' for path in found.unknown)
        text = f"strict decoding error: {told}"
        if patched:
            # The real server names neither kind nor object here, and quotes the whole result.
            wrong = f"Invalid value: {json.dumps(json.dumps(new))}: {text}"
            raise invalid("", "", "", [("patch", wrong)])
        raise ApiError(
            400,
            f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: {text}',
        )
    return checked, found.problems


def manifest(kind: Resource, body: Any) -> Object:
    """Returns a copy of a manifest that is one of this kind.

    Raises:
        ApiError: 400 when it is none.
    """
    if not isinstance(body, dict):
        raise ApiError(400, "the object provided is unrecognized: it is no JSON object")
    sent = body.get("apiVersion", kind.api_version), body.get("kind", kind.kind)
    # The typed clients leave both out for the core kinds; for custom ones they must be there.
    if sent != (kind.api_version, kind.kind) or (kind.custom and "kind" not in body):
        raise ApiError(
            400,
            f"the API version in the data ({body.get('apiVersion', '')}, {body.get('kind', '')}) "
            f"does not match the expected API version ({kind.api_version}, {kind.kind})",
        )
    body = copied(body)
    body.update(apiVersion=kind.api_version, kind=kind.kind)
    body["metadata"] = {k: v for k, v in (body.get("metadata") or {}).items() if v is not None}
    return body


def check_preconditions(kind: Resource, old: Object, sent: dict[str, Any]) -> None:
    """Refuses a write that was meant for another version or another object of this name.

    Raises:
        ApiError: 409.
    """
    name = old["metadata"]["name"]
    version, uid = sent.get("resourceVersion"), sent.get("uid")
    if uid and uid != old["metadata"]["uid"]:
        raise ApiError(
            409,
            f'Operation cannot be fulfilled on {kind.name} "{name}": Precondition failed: UID in '
            f"precondition: {uid}, UID in object meta: {old['metadata']['uid']}",
        )
    if version and version != old["metadata"]["resourceVersion"]:
        raise conflict(kind.name, name)


def check_name(kind: Resource, namespace: str, metadata: dict[str, Any]) -> None:
    """Refuses a name that cannot be one, and a namespace other than the URL's.

    Raises:
        ApiError: 400 or 422.
    """
    name = metadata.get("name")
    if not name:
        wrong = "Required value: name or generateName is required"
        raise invalid(kind.kind, kind.group, "", [("metadata.name", wrong)])
    if len(name) > 253 or not re.fullmatch(NAME, name):
        wrong = (
            f'Invalid value: "{name}": a lowercase RFC 1123 subdomain must consist of lower '
            "case alphanumeric characters, '-' or '.', and must start and end with an "
            "alphanumeric character"
        )
        raise invalid(kind.kind, kind.group, name, [("metadata.name", wrong)])
    if namespace and metadata.get("namespace", namespace) != namespace:
        raise ApiError(
            400,
            f"the namespace of the provided object does not match the namespace sent on the "
            f"request: {metadata['namespace']} != {namespace}",
        )
