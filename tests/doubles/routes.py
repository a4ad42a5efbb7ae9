# SPDX-License-Identifier: Apache-2.0
"""URLs of the Kubernetes API taken apart."""

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

RESOURCE = re.compile(
    r"/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+)/(?P<version>[^/]+))"
    r"(?:/namespaces/(?P<namespace>[^/]+)(?=/[^/]))?"
    r"/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<subresource>[^/]+)(?P<rest>/.*)?)?"
)
VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete", "HEAD": "get"}


@dataclass(frozen=True)
class Route:
    """What a request asks for.

    Attributes:
        verb: get, list, watch, create, update, patch, delete or deletecollection.
        group: API group; empty for the core.
        version: For example `v1beta1`.
        plural: For example `pods`.
        namespace: Empty for the whole cluster.
        name: Empty for all objects.
        subresource: For example `status`, `log` or `proxy`.
        rest: What follows the subresource, for the proxy.
        query: The parameters; of repeated ones the first.
    """

    verb: str
    group: str
    version: str
    plural: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    rest: str = ""
    query: dict[str, str] = field(default_factory=dict)

    def asked(self, parameter: str) -> bool:
        """Whether a parameter is true, as Go reads it (the Python client writes `True`)."""
        return self.query.get(parameter, "").lower() in ("true", "1", "t")


def parse(method: str, url: str) -> Route | None:
    """Takes a URL apart; None when it names no resource."""
    parts = urlsplit(url)
    query = {
        key: values[0] for key, values in parse_qs(parts.query, keep_blank_values=True).items()
    }
    found = RESOURCE.fullmatch(parts.path)
    if not found or (found["group"] is None and found["core"] is None):
        return None
    namespace, plural = found["namespace"] or "", found["plural"]
    name, subresource = unquote(found["name"] or ""), found["subresource"] or ""
    verb = VERBS.get(method, "get")
    if method == "GET" and not name:
        watched = query.get("watch", "").lower() in ("true", "1", "t")
        verb = "watch" if watched else "list"
    if method == "DELETE" and not name:
        verb = "deletecollection"
    if subresource == "proxy" and verb == "get" and parts.query:
        query["?"] = parts.query
    return Route(
        verb,
        found["group"] or "",
        found["version"] or "v1",
        plural,
        namespace,
        name,
        subresource,
        found["rest"] or "",
        query,
    )
