# SPDX-License-Identifier: Apache-2.0
"""The patch formats of the Kubernetes API. Every function returns a new object."""

from typing import Any

from .documents import copied
from .errors import ApiError

# Keys by which strategic merge joins lists, for the lists of the core types that have one.
MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
    "conditions": "type",
    "ownerReferences": "uid",
    "imagePullSecrets": "name",
    "secrets": "name",
}
UNIONS = {"finalizers"}


def merge(target: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7386): null removes, lists are replaced whole."""
    if not isinstance(patch, dict):
        return copied(patch)
    result = copied(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def strategic(target: Any, patch: Any, field: str = "") -> Any:
    """Strategic merge patch: as merge patch, but known lists are joined by their keys.

    `$patch: delete` and `$patch: replace` are understood; the other directives are not.
    """
    if isinstance(patch, list) and isinstance(target, list):
        if field in UNIONS:
            return [*target, *(entry for entry in patch if entry not in target)]
        if field in MERGE_KEYS:
            return _strategic_list(target, patch, field)
    if not isinstance(patch, dict):
        return copied(patch)
    if patch.get("$patch") == "replace":
        return {key: copied(value) for key, value in patch.items() if key != "$patch"}
    result = copied(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = strategic(result.get(key), value, key)
    return result


def _strategic_list(target: list[Any], patch: list[Any], field: str) -> list[Any]:
    result = copied(target)
    for entry in patch:
        # A Service's ports go by `port`, a container's by `containerPort`.
        key = "port" if field == "ports" and "port" in entry else MERGE_KEYS[field]
        same = [i for i, old in enumerate(result) if old.get(key) == entry.get(key)]
        if entry.get("$patch") == "delete":
            result = [old for i, old in enumerate(result) if i not in same]
        elif same:
            result[same[0]] = strategic(result[same[0]], entry)
        else:
            result.append(copied(entry))
    return result


def json_patch(target: Any, operations: Any) -> Any:
    """JSON patch (RFC 6902).

    Raises:
        ApiError: 400 when it is no patch, 422 when it does not apply.
    """
    if not isinstance(operations, list):
        raise ApiError(400, "error decoding patch: a JSON patch is a list of operations")
    document = {"": copied(target)}
    for operation in operations:
        try:
            _operate(document, operation)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise ApiError(
                422,
                "the server rejected our request due to an error in our request: "
                f"{operation.get('op')} operation does not apply: doc is missing path: "
                f"{operation.get('path')!r}: {error}",
            ) from error
    return document[""]


def _operate(document: dict[str, Any], operation: dict[str, Any]) -> None:
    kind = operation["op"]
    if kind == "test":
        if _get(document, operation["path"]) != operation["value"]:
            raise ApiError(
                422,
                "the server rejected our request due to an error in our request: "
                f"testing path {operation['path']} failed: test failed",
            )
    elif kind == "remove":
        _remove(document, operation["path"])
    elif kind == "replace":
        _get(document, operation["path"])
        _put(document, operation["path"], operation["value"], insert=False)
    elif kind == "add":
        _put(document, operation["path"], operation["value"], insert=True)
    elif kind in ("move", "copy"):
        value = copied(_get(document, operation["from"]))
        if kind == "move":
            _remove(document, operation["from"])
        _put(document, operation["path"], value, insert=True)
    else:
        raise ApiError(400, f"error decoding patch: unknown operation {kind!r}")


def _steps(path: str) -> list[str]:
    return [step.replace("~1", "/").replace("~0", "~") for step in path.split("/")]


def _walk(document: Any, steps: list[str]) -> Any:
    for step in steps:
        document = document[int(step)] if isinstance(document, list) else document[step]
    return document


def _get(document: dict[str, Any], path: str) -> Any:
    return _walk(document, _steps(path))


def _remove(document: dict[str, Any], path: str) -> None:
    *parents, last = _steps(path)
    parent = _walk(document, parents)
    del parent[int(last) if isinstance(parent, list) else last]


def _put(document: dict[str, Any], path: str, value: Any, insert: bool) -> None:
    *parents, last = _steps(path)
    parent = _walk(document, parents)
    if not isinstance(parent, list):
        parent[last] = copied(value)
    elif insert:
        at = len(parent) if last == "-" else int(last)
        if at > len(parent):
            raise IndexError(at)
        parent.insert(at, copied(value))
    else:
        parent[int(last)] = copied(value)
