"""A server that speaks the part of the Kubeflow Model Registry REST API that is used, over HTTP.

It is strict where the real one is: unknown fields and wrong property types are refused, names are
unique, and what is not found is 404.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

API = "/api/model_registry/v1alpha3"
FIELDS = {
    "registered_models": {"name", "state", "description", "customProperties"},
    "model_versions": {"name", "registeredModelId", "state", "description", "customProperties"},
    "artifacts": {"artifactType", "name", "uri", "modelFormatName", "state", "customProperties"},
}
VALUES = {
    "MetadataStringValue": ("string_value", str),
    "MetadataDoubleValue": ("double_value", float),
}


class Store:
    """What the server keeps, and the requests it had."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.entities: dict[str, list[dict[str, Any]]] = {kind: [] for kind in FIELDS}
        self.requests: list[str] = []

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        self.requests.append(f"{method} {path}")
        parts = path.strip("/").split("/")
        if method == "GET" and parts in (["registered_model"], ["model_version"]):
            return self._find(f"{parts[0]}s", query)
        if len(parts) == 3 and parts[::2] == ["model_versions", "artifacts"]:
            if not self._with_id("model_versions", parts[1]):
                return 404, {"code": "404", "message": "no model version found"}
            if method == "GET":
                items = [a for a in self.entities["artifacts"] if a["parent"] == parts[1]]
                return 200, {"items": items, "size": len(items), "pageSize": 0, "nextPageToken": ""}
            return self._create("artifacts", body, parent=parts[1])
        if method == "POST" and parts[0] in ("registered_models", "model_versions"):
            return self._create(parts[0], body)
        if method == "PATCH" and parts[0] == "registered_models":
            found = self._with_id(parts[0], parts[1])
            if "name" in body or not found:
                return 400, {"code": "400", "message": "bad update"}
            found[0].update(body)
            return 200, found[0]
        return 405, {"code": "405", "message": "method not allowed"}

    def _with_id(self, kind: str, identity: str) -> list[dict[str, Any]]:
        return [each for each in self.entities[kind] if each["id"] == identity]

    def _find(self, kind: str, query: dict[str, str]) -> tuple[int, Any]:
        for each in self.entities[kind]:
            parent = query.get("parentResourceId")
            if each["name"] == query["name"] and parent in (None, each.get("registeredModelId")):
                return 200, each
        return 404, {"code": "404", "message": f"no {kind} found"}

    def _create(self, kind: str, body: Any, **more: str) -> tuple[int, Any]:
        unknown = set(body) - FIELDS[kind]
        wrong = [
            name
            for name, value in body.get("customProperties", {}).items()
            if not isinstance(
                value.get(VALUES[value["metadataType"]][0]), VALUES[value["metadataType"]][1]
            )
        ]
        if unknown or wrong:
            return 400, {"code": "400", "message": f"bad fields {unknown} {wrong}"}
        made = {"id": str(sum(map(len, self.entities.values())) + 1), **body, **more}
        same = [
            each
            for each in self.entities[kind]
            if (each["name"], each.get("registeredModelId"))
            == (made["name"], made.get("registeredModelId"))
        ]
        if same:
            return 409, {"code": "409", "message": "already exists"}
        self.entities[kind].append(made)
        return 201, made


@contextmanager
def model_registry(token: str = "") -> Iterator[tuple[str, Store]]:
    """Serves an empty registry on 127.0.0.1; gives its URL and what it keeps."""
    store = Store(token)

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            if store.token and self.headers.get("Authorization") != f"Bearer {store.token}":
                status, document = 401, {"code": "401", "message": "unauthorized"}
            elif not parts.path.startswith(API):
                status, document = 404, {"code": "404", "message": "no such path"}
            else:
                status, document = store.answer(
                    self.command, parts.path.removeprefix(API), query, body
                )
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = _handle

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", store
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
