# SPDX-License-Identifier: Apache-2.0
"""A server that speaks the part of the Kubeflow Model Registry REST API that is used, over HTTP.

It follows the OpenAPI description `v1alpha3` and the server's own code where that is stricter:
unknown fields, wrong types, ids and page sizes are refused with 400; names are unique (409); a find
needs a name; lists come in pages with an opaque token, sorted by id; `customProperties` of a PATCH
replace all that were there, and a PATCH without them keeps them; a name cannot be changed.
"""

import base64
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

API = "/api/model_registry/v1alpha3"
_RESOURCE = {"name", "state", "description", "externalId", "customProperties"}
FIELDS = {
    "registered_models": _RESOURCE | {"owner", "language", "libraryName", "readme", "tasks"},
    "model_versions": _RESOURCE | {"registeredModelId", "author"},
    "artifacts": _RESOURCE
    | {"id", "artifactType", "uri", "modelFormatName", "modelFormatVersion", "storageKey"},
}
REQUIRED = {
    "registered_models": {"name"},
    "model_versions": {"name", "registeredModelId"},
    "artifacts": {"artifactType"},
}
STATES = {"registered_models": ("LIVE", "ARCHIVED"), "model_versions": ("LIVE", "ARCHIVED")}
ARTIFACT_STATES = (
    "UNKNOWN", "PENDING", "LIVE", "MARKED_FOR_DELETION", "DELETED", "ABANDONED", "REFERENCE",
)  # fmt: skip
VALUES: dict[str, tuple[str, type | tuple[type, ...]]] = {
    "MetadataStringValue": ("string_value", str),
    "MetadataDoubleValue": ("double_value", (int, float)),
    "MetadataBoolValue": ("bool_value", bool),
    "MetadataIntValue": ("int_value", str),
}
_ID = re.compile(r"[1-9][0-9]{0,8}")
_FILTER = re.compile(r"name\s*=\s*(['\"])(.*)\1")
Answer = tuple[int, Any]


class Store:
    """What the server keeps, and the requests it had."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.entities: dict[str, list[dict[str, Any]]] = {kind: [] for kind in FIELDS}
        self.requests: list[str] = []
        self.last_id = 0

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        self.requests.append(f"{method} {path}")
        match [method, *path.strip("/").split("/")]:
            case ["GET", "registered_model" | "model_version" as kind]:
                return self._find(f"{kind}s", query)
            case ["GET", "registered_models" | "model_versions" as kind]:
                return self._page(self.entities[kind], query)
            case ["POST", "registered_models" | "model_versions" as kind]:
                return self._create(kind, body)
            case [_, "registered_models" | "model_versions", identity, *_] if not _ID.fullmatch(
                identity
            ):
                return _error(400, f"{identity} is not an id")
            case ["GET", "registered_models", identity, "versions"]:
                if not self._with_id("registered_models", identity):
                    return _error(404, f"no registered model found for id {identity}")
                versions = self.entities["model_versions"]
                return self._page(
                    [each for each in versions if each["registeredModelId"] == identity], query
                )
            case ["GET", "model_versions", identity, "artifacts"]:
                if not self._with_id("model_versions", identity):
                    return _error(404, f"no model version found for id {identity}")
                return self._page(
                    [each for each in self.entities["artifacts"] if each["parent"] == identity],
                    query,
                )
            case ["POST", "model_versions", identity, "artifacts"]:
                if not self._with_id("model_versions", identity):
                    return _error(404, f"no model version found for id {identity}")
                return self._create("artifacts", body, parent=identity)
            case ["PATCH", "registered_models" | "model_versions" as kind, identity]:
                return self._update(kind, identity, body)
        return _error(405, "method not allowed")

    def _with_id(self, kind: str, identity: str) -> list[dict[str, Any]]:
        return [each for each in self.entities[kind] if each["id"] == identity]

    def _find(self, kind: str, query: dict[str, str]) -> Answer:
        if "name" not in query and "externalId" not in query:
            return _error(400, "supply either name or externalId")
        if kind == "model_versions" and "parentResourceId" not in query and "name" in query:
            return _error(400, "supply either name and parentResourceId, or externalId")
        parent = query.get("parentResourceId")
        for each in self.entities[kind]:
            if each["name"] == query["name"] and parent in (None, each.get("registeredModelId")):
                return 200, _shown(each)
        return _error(404, f"no {kind} found for name={query['name']}")

    def _page(self, entries: list[dict[str, Any]], query: dict[str, str]) -> Answer:
        size = query.get("pageSize", "")
        if size and not _ID.fullmatch(size):
            return _error(400, f"pageSize is {size}")
        if "filterQuery" in query:
            wanted = _FILTER.fullmatch(query["filterQuery"])
            if not wanted:
                return _error(400, f"invalid filter query: {query['filterQuery']}")
            entries = [each for each in entries if each["name"] == wanted[2]]
        after = 0
        if query.get("nextPageToken"):
            try:
                after = int(base64.b64decode(query["nextPageToken"], validate=True))
            except ValueError:
                return _error(400, "invalid page token")
        left = [each for each in entries if int(each["id"]) > after]
        # Without a page size there is one page.
        shown = left[: int(size)] if size else left
        more = len(left) > len(shown)
        token = base64.b64encode(shown[-1]["id"].encode()).decode() if more else ""
        page = {"items": [_shown(each) for each in shown], "size": len(shown)}
        return 200, {**page, "pageSize": int(size or 0), "nextPageToken": token}

    def _create(self, kind: str, body: Any, **more: str) -> Answer:
        wrong = _mistake(kind, body, FIELDS[kind], REQUIRED[kind])
        if wrong:
            return _error(400, wrong)
        parent = body.get("registeredModelId")
        if kind == "model_versions" and not self._with_id("registered_models", str(parent)):
            return _error(404, f"no registered model found for id {parent}")
        # Versions are unique in their model, artifacts in the version.
        own = (body.get("name"), parent or more.get("parent"))
        for each in self.entities[kind]:
            if (each.get("name"), each.get("registeredModelId") or each.get("parent")) == own:
                return _error(409, f"{kind} with name {body.get('name')} already exists")
        self.last_id += 1
        now = str(int(time.time() * 1000))
        dates = {"createTimeSinceEpoch": now, "lastUpdateTimeSinceEpoch": now}
        made = {"customProperties": {}, **body, "id": str(self.last_id), **dates, **more}
        self.entities[kind].append(made)
        return 201, _shown(made)

    def _update(self, kind: str, identity: str, body: Any) -> Answer:
        found = self._with_id(kind, identity)
        if not found:
            return _error(404, f"no {kind} found for id {identity}")
        wrong = _mistake(kind, body, FIELDS[kind] - {"name", "registeredModelId"}, set())
        if wrong:
            return _error(400, wrong)
        found[0].update(body)
        return 200, _shown(found[0])


def _mistake(kind: str, body: Any, known: set[str], required: set[str]) -> str:
    """Says what is wrong with a body; empty when nothing is."""
    if not isinstance(body, dict):
        return "the body is no object"
    if set(body) - known:
        return f"json: unknown field {sorted(set(body) - known)}"
    missing = [field for field in required if not body.get(field)]
    if missing:
        return f"required field {missing} is zero value"
    if body.get("state") not in (None, *STATES.get(kind, ARTIFACT_STATES)):
        return f"invalid state {body['state']}"
    for name, value in body.get("customProperties", {}).items():
        key, kind_of = VALUES.get(value.get("metadataType"), ("", object))
        if set(value) != {"metadataType", key} or not isinstance(value[key], kind_of):
            return f"invalid property {name}: {value}"
    return ""


def _shown(entity: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entity.items() if key != "parent"}


def _error(status: int, message: str) -> Answer:
    codes = {400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 409: "Conflict"}
    return status, {"code": codes.get(status, str(status)), "message": message}


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
                status, document = _error(401, "unauthorized")
            elif not parts.path.startswith(API):
                status, document = _error(404, "no such path")
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
