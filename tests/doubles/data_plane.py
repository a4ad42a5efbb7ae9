# SPDX-License-Identifier: Apache-2.0
"""The way of a request to a model: the public gateway, and the API server's service proxy."""

import json
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from .http_handler import Server
from .models import Model

Answer = tuple[int, dict[str, str], bytes]
Site = tuple[str, str]
JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Backend:
    """Where a share of a site's requests goes.

    Attributes:
        service: Name of a Service.
        weight: Its share; the weights of a site need not add up to 100.
        nested: Whether it is a site itself when it is no Service: a Knative Service's own route.
    """

    service: str
    weight: int = 100
    nested: bool = False


class DataPlane:
    """Routes requests to ready pods, as the last tick of the gateway knew them.

    Attributes:
        sites: What the gateway serves: by namespace and name, the backends with their weights.
        hosts: Site by host name.
        endpoints: Models of the ready pods, by namespace and Service; a Service without ready
            pods has an empty list.
        activated: Services whose endpoints are Knative's activator, in another namespace.
        answered: How many requests each model version answered.
    """

    def __init__(self, seed: int = 0) -> None:
        self.sites: dict[Site, list[Backend]] = {}
        self.hosts: dict[str, Site] = {}
        self.endpoints: dict[tuple[str, str], list[Model]] = {}
        self.activated: set[tuple[str, str]] = set()
        self.answered: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        handler = type("BoundGateway", (_Gateway,), {"plane": self})
        self._server = Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), name="gateway", daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """Address of the gateway."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stops serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def public(
        self, host: str, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> Answer:
        """Answers a request at the gateway: by host name, or below /serving/NAMESPACE/NAME."""
        found = re.fullmatch(r"/serving/([^/]+)/([^/]+)(/.*)?", path)
        if found:
            site: Site | None = (found[1], found[2])
            path = found[3] or "/"
        else:
            site = self.hosts.get(host.partition(":")[0].lower())
        backends = self.sites.get(site) if site else None
        if site is None or not backends:
            return 404, {}, b""
        with self._lock:
            weights = [backend.weight for backend in backends]
            if not sum(weights):
                return 503, {}, b"no healthy upstream"
            chosen = self._random.choices(backends, weights)[0]
        models = self.endpoints.get((site[0], chosen.service))
        if models is None and (site[0], chosen.service) in self.sites and chosen.nested:
            inner = f"/serving/{site[0]}/{chosen.service}{path}"
            return self.public("", method, inner, headers, body)
        if models is None:
            # A backend that is not there at all, as the Gateway API asks for.
            return 500, {}, b""
        return self._ask(models, method, path, headers, body, b"no healthy upstream")

    def proxy(
        self,
        namespace: str,
        service: str,
        port: str,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes,
    ) -> Answer:
        """Answers a request through the API server's service proxy: that Service alone.

        The API server takes no endpoint that is a pod of another namespace.
        """
        site = (namespace, service)
        models = [] if site in self.activated else self.endpoints.get(site, [])
        named = f"{service}:{port}" if port else service
        if port not in ("", "80", "http", "8080", "http1"):
            models = []
        message = f'no endpoints available for service "{named}"'
        status = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": "ServiceUnavailable",
            "code": 503,
        }
        return self._ask(models, method, path, headers, body, json.dumps(status).encode())

    def _ask(
        self,
        models: list[Model],
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes,
        nobody: bytes,
    ) -> Answer:
        with self._lock:
            model = self._random.choice(models) if models else None
        if model is None:
            return 503, JSON if nobody.startswith(b"{") else {}, nobody
        status, answered, content = serve(model, method, path, body)
        with self._lock:
            self.answered[model.version] += method == "POST"
        if "x-request-id" in headers:
            answered["x-request-id"] = headers["x-request-id"]
        return status, answered, content


def serve(model: Model, method: str, path: str, body: bytes) -> Answer:
    """Answers as a KServe model server does: V1, V2, health, and what it counted."""
    headers = {**JSON, "x-model-version": model.version}
    path = urlsplit(path).path
    if method == "GET" and path == "/metrics":
        return 200, {"content-type": "text/plain; version=0.0.4"}, model.metrics().encode()
    if method == "GET":
        return _about(model, path, headers)
    v1 = re.fullmatch(r"/v1/models/([^/:]+):predict", path)
    v2 = re.fullmatch(r"/v2/models/([^/]+)/infer", path)
    if not v1 and not v2:
        return 404, headers, json.dumps({"error": f"no such path: {path}"}).encode()
    began = time.perf_counter()
    status, content = _predicted(model, body, v1 is not None, v2[1] if v2 else "")
    seconds = time.perf_counter() - began
    model.count(v1[1] if v1 else path.split("/")[3], "v1" if v1 else "v2", status, seconds)
    return status, headers, content


def _predicted(model: Model, body: bytes, v1: bool, name: str) -> tuple[int, bytes]:
    try:
        document = json.loads(body)
        rows = document["instances"] if v1 else _rows(document["inputs"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        return 400, json.dumps({"error": f"the request cannot be read: {error}"}).encode()
    try:
        predictions = model.answer(rows)
    except RuntimeError as error:
        return 500, json.dumps({"error": str(error)}).encode()
    if v1:
        named = [{model.output: value} if model.output else value for value in predictions]
        return 200, json.dumps({"predictions": named}).encode()
    answer = _tensor(predictions, model.output or "prediction")
    document = {"model_name": name, "model_version": model.version, "outputs": [answer]}
    return 200, json.dumps({"id": document.get("id", ""), **document}).encode()


def _about(model: Model, path: str, headers: dict[str, str]) -> Answer:
    name = path.rpartition("/")[2]
    known: dict[str, Callable[[], Any]] = {
        r"/": lambda: {"status": "alive"},
        r"/v2/health/live": lambda: {"live": True},
        r"/v2/health/ready": lambda: {"ready": True},
        r"/v1/models/[^/]+": lambda: {"name": name, "ready": True},
        r"/v2/models/[^/]+/ready": lambda: {"name": path.split("/")[3], "ready": True},
        r"/v2/models/[^/]+": lambda: {"name": name, "versions": [model.version]},
    }
    for pattern, make in known.items():
        if re.fullmatch(pattern, path):
            return 200, headers, json.dumps(make()).encode()
    return 404, headers, json.dumps({"error": f"no such path: {path}"}).encode()


def _rows(tensors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turns V2 tensors, one per feature, into rows."""
    count = tensors[0]["shape"][0]
    return [{tensor["name"]: tensor["data"][i] for tensor in tensors} for i in range(count)]


def _tensor(predictions: list[Any], name: str) -> dict[str, Any]:
    kind = "BYTES" if predictions and isinstance(predictions[0], str) else "FP64"
    shape = [len(predictions)]
    return {"name": name, "shape": shape, "datatype": kind, "data": predictions}


class _Gateway(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    plane: DataPlane

    def log_message(self, *arguments: object) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _handle(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size) if size else b""
        headers = {key.lower(): value for key, value in self.headers.items()}
        host = headers.get("host", "")
        try:
            status, answered, content = self.plane.public(
                host, self.command, self.path, headers, body
            )
            self.send_response(status)
            for key, value in answered.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            self.wfile.flush()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_DELETE = _handle
