# SPDX-License-Identifier: Apache-2.0
"""Errors as an API server answers them: a Status object with code, reason and message."""

from typing import Any

REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    410: "Expired",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


class ApiError(Exception):
    """A refusal.

    Attributes:
        code: HTTP status.
        message: What a user reads.
        reason: The machine's word for it; taken from the code when it is not given.
        details: The Status object's details: name, group, kind, causes.
    """

    def __init__(
        self, code: int, message: str, reason: str = "", details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.details = code, message, details
        self.reason = reason or REASONS.get(code, "Unknown")

    def status(self) -> dict[str, Any]:
        """Returns the answer's body."""
        body: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }
        if self.details:
            body["details"] = self.details
        return body


class NoSuchPathError(ApiError):
    """A URL that no handler serves: the real server answers in plain text, not with a Status."""

    def __init__(self) -> None:
        super().__init__(404, "404 page not found\n")


def not_found(resource: str, name: str) -> ApiError:
    """`resource` is the plural with its group, for example `deployments.apps`."""
    plural, _, group = resource.partition(".")
    details = {"name": name, "kind": plural, **({"group": group} if group else {})}
    return ApiError(404, f'{resource} "{name}" not found', details=details)


def conflict(resource: str, name: str) -> ApiError:
    """Somebody else wrote first."""
    plural, _, group = resource.partition(".")
    return ApiError(
        409,
        f'Operation cannot be fulfilled on {resource} "{name}": the object has been modified; '
        "please apply your changes to the latest version and try again",
        details={"name": name, "kind": plural, **({"group": group} if group else {})},
    )


def invalid(kind: str, group: str, name: str, problems: list[tuple[str, str]]) -> ApiError:
    """Returns the answer to an object whose fields are wrong.

    Args:
        kind: The object's kind.
        group: Its API group, empty for the core.
        name: Its name.
        problems: Field and what is wrong with it.
    """
    told = [f"{field}: {problem}" for field, problem in problems]
    text = told[0] if len(told) == 1 else f"[{', '.join(told)}]"
    causes = [
        {"field": field, "message": problem, "reason": "FieldValueInvalid"}
        for field, problem in problems
    ]
    named = f"{kind}.{group}" if group else kind
    return ApiError(
        422,
        f'{named} "{name}" is invalid: {text}',
        details={"name": name, "group": group, "kind": kind, "causes": causes},
    )
