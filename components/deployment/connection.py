# SPDX-License-Identifier: Apache-2.0
"""How to reach an address: past a cluster's API server, through its ingress, or as it is."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

# Where a cluster's host names do not resolve: the address of its ingress. The name of the service
# goes into the Host header then.
INGRESS = "KFLOOP_INGRESS_URL"
_LOCAL = re.compile(r"(^|\.)(localhost|svc|svc\.[a-z0-9.-]+)$|^127\.|^\[?::1\]?$")

# Options of an httpx client by the address of an API server that this process is connected to.
_api_servers: dict[str, Callable[[], dict[str, Any]]] = {}


@dataclass(frozen=True)
class Connection:
    """Where to send requests, and what an httpx client needs for it."""

    base_url: str
    headers: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


def register_api_server(url: str, options: Callable[[], dict[str, Any]]) -> None:
    """Lets addresses below an API server be reached with this process's credentials."""
    _api_servers[url.rstrip("/")] = options


def connection_to(url: str) -> Connection:
    """Returns how to reach an address of a service or predictor."""
    for server, options in _api_servers.items():
        if url.startswith(f"{server}/api/"):
            return Connection(url, options=options())
    host = urlsplit(url).hostname or ""
    ingress = os.environ.get(INGRESS, "")
    if ingress and not url.startswith(ingress) and not _LOCAL.search(host):
        return Connection(
            ingress.rstrip("/") + urlsplit(url).path,
            {"Host": urlsplit(url).netloc},
            _unverified(ingress),
        )
    return Connection(url, options=_unverified(url))


def _unverified(url: str) -> dict[str, Any]:
    """Spares httpx reading all certificates for an address that has none."""
    return {} if url.startswith("https:") else {"verify": False}
