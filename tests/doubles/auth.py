# SPDX-License-Identifier: Apache-2.0
"""Bearer tokens and rules, for clients that must live with fewer rights than an administrator."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import ApiError

Rule = dict[str, list[str]]


@dataclass(frozen=True)
class Attempt:
    """What a request wants to do."""

    verb: str
    group: str
    resource: str
    namespace: str
    name: str = ""
    subresource: str = ""


@dataclass
class User:
    """Somebody with a token.

    Attributes:
        name: For example `system:serviceaccount:ml:pipeline-runner`.
        rules: As in a Role: `apiGroups`, `resources`, `verbs`, and if wanted `resourceNames`.
        namespaces: Where the rules hold; empty: everywhere.
    """

    name: str
    rules: Sequence[Rule]
    namespaces: Sequence[str] = ()


@dataclass
class Gate:
    """Lets requests in. With no token known, everybody may do everything."""

    users: dict[str, User] = field(default_factory=dict)

    def user(self, authorization: str) -> User:
        """Returns who asks.

        Raises:
            ApiError: 401 for a missing or unknown token.
        """
        if not self.users:
            return User("system:admin", [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}])
        token = authorization.removeprefix("Bearer ").strip()
        if token not in self.users:
            raise ApiError(401, "Unauthorized")
        return self.users[token]

    def check(self, user: User, attempt: Attempt) -> None:
        """Refuses what a user may not do.

        Raises:
            ApiError: 403.
        """
        if allows(user, attempt):
            return
        full = attempt.resource + (f"/{attempt.subresource}" if attempt.subresource else "")
        plural = f"{attempt.resource}.{attempt.group}" if attempt.group else attempt.resource
        named = f' "{attempt.name}"' if attempt.name else ""
        where = (
            f' in the namespace "{attempt.namespace}"'
            if attempt.namespace
            else " at the cluster scope"
        )
        raise ApiError(
            403,
            f'{plural}{named} is forbidden: User "{user.name}" cannot {attempt.verb} resource '
            f'"{full}" in API group "{attempt.group}"{where}',
            details={"name": attempt.name, "group": attempt.group, "kind": attempt.resource},
        )

    def review(self, user: User, body: dict[str, Any]) -> dict[str, Any]:
        """Answers a SelfSubjectAccessReview."""
        asked = (body.get("spec") or {}).get("resourceAttributes") or {}
        attempt = Attempt(
            asked.get("verb", ""),
            asked.get("group", ""),
            asked.get("resource", ""),
            asked.get("namespace", ""),
            asked.get("name", ""),
            asked.get("subresource", ""),
        )
        about = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
        spec = {"spec": body.get("spec") or {}}
        return {**about, "metadata": {}, **spec, "status": {"allowed": allows(user, attempt)}}


def allows(user: User, attempt: Attempt) -> bool:
    """Whether the rules of a user allow something."""
    if user.namespaces and attempt.namespace not in user.namespaces:
        return False
    full = attempt.resource + (f"/{attempt.subresource}" if attempt.subresource else "")
    return any(
        _among(attempt.verb, rule.get("verbs", []))
        and _among(attempt.group, rule.get("apiGroups", [""]))
        and _among(full, rule.get("resources", []))
        and (not rule.get("resourceNames") or attempt.name in rule["resourceNames"])
        for rule in user.rules
    )


def _among(value: str, allowed: Sequence[str]) -> bool:
    return "*" in allowed or value in allowed
