# SPDX-License-Identifier: Apache-2.0
"""Field ownership for server-side apply, kept simple.

Lists are owned whole (as custom resources have them), maps key by key. A plain write takes the
fields that it changes; an apply takes the fields that it names, and drops those that it named
before and names no more.
"""

from typing import Any

from .errors import ApiError

Path = tuple[str, ...]
# Not owned by anybody: the server keeps these.
SERVER_FIELDS = {
    "apiVersion",
    "kind",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "metadata.resourceVersion",
    "metadata.generation",
    "metadata.creationTimestamp",
    "metadata.managedFields",
    "metadata.deletionTimestamp",
    "metadata.deletionGracePeriodSeconds",
}


def leaves(value: Any, path: Path = ()) -> dict[Path, Any]:
    """Returns the owned fields of an object: path to value."""
    if ".".join(path) in SERVER_FIELDS:
        return {}
    if not isinstance(value, dict) or (path and not value):
        return {path: value}
    found: dict[Path, Any] = {}
    for key, entry in value.items():
        found.update(leaves(entry, (*path, key)))
    return found


class Owners:
    """Who owns which fields of one object."""

    def __init__(self) -> None:
        self._fields: dict[tuple[str, str], set[Path]] = {}

    def copy(self) -> "Owners":
        """Returns owners that can be changed apart."""
        other = Owners()
        other._fields = {who: set(fields) for who, fields in self._fields.items()}
        return other

    def wrote(self, manager: str, old: Any, new: Any) -> None:
        """A plain write: changed fields go to `manager`, removed ones to nobody."""
        before, after = leaves(old or {}), leaves(new)
        changed = {path for path, value in after.items() if before.get(path, ...) != value}
        for fields in self._fields.values():
            fields -= changed
            fields &= set(after)
        self._fields.setdefault((manager, "Update"), set()).update(changed)

    def apply(self, manager: str, current: Any, wanted: Any, force: bool) -> set[Path]:
        """An apply: returns the fields to drop.

        Raises:
            ApiError: 409 when another manager owns a field with another value, without `force`.
        """
        before, named = leaves(current or {}), leaves(wanted)
        clashes = [
            (other, path)
            for (other, operation), fields in self._fields.items()
            for path in sorted(fields)
            if (other, operation) != (manager, "Apply")
            and path in named
            and before.get(path, ...) != named[path]
        ]
        if clashes and not force:
            causes = [
                {
                    "reason": "FieldManagerConflict",
                    "message": f'conflict with "{other}"',
                    "field": "." + ".".join(path),
                }
                for other, path in clashes
            ]
            told = ", ".join(cause["field"] for cause in causes)
            plural = "s" if len(clashes) > 1 else ""
            raise ApiError(
                409,
                f"Apply failed with {len(clashes)} conflict{plural}: "
                f'conflict{plural} with "{clashes[0][0]}": {told}',
                details={"causes": causes},
            )
        mine = self._fields.get((manager, "Apply"), set())
        others: set[Path] = set()
        for (other, operation), fields in self._fields.items():
            if (other, operation) != (manager, "Apply"):
                fields -= {path for _, path in clashes}
                others |= fields
        self._fields[manager, "Apply"] = set(named)
        return mine - set(named) - others

    def managed_fields(self, api_version: str) -> list[dict[str, Any]]:
        """Returns metadata.managedFields."""
        entries = []
        for (manager, operation), fields in self._fields.items():
            if not fields:
                continue
            tree: dict[str, Any] = {}
            for path in fields:
                node = tree
                for step in path:
                    node = node.setdefault(f"f:{step}", {})
            about = {"manager": manager, "operation": operation, "apiVersion": api_version}
            entries.append({**about, "fieldsType": "FieldsV1", "fieldsV1": tree})
        return entries


def drop(document: dict[str, Any], paths: set[Path]) -> None:
    """Removes fields, and the maps that this leaves empty."""
    for path in paths:
        parents, node = [], document
        for step in path[:-1]:
            parents.append((node, step))
            node = node.get(step, {}) if isinstance(node, dict) else {}
        node.pop(path[-1], None)
        for parent, step in reversed(parents):
            if parent.get(step) == {}:
                del parent[step]
