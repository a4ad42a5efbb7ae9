# SPDX-License-Identifier: Apache-2.0
"""A cluster in memory: manifests, and controllers that follow them late, or fail.

It behaves as Standard mode does: what is Ready may be the version before; a candidate gets its
share only when it is ready; the live version's pods end when it is replaced. Predictors answer on a
real address, so that proofs are real too.
"""

import copy
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kfloop.components.contracts.model_package import (
    GOLDEN,
    Feature,
    ModelPackage,
    write_model_json,
)
from kfloop.components.deployment.backend import (
    ConflictError,
    PredictorStatus,
    ServiceStatus,
)
from kfloop.components.deployment.manifest import Manifest
from kfloop.serving.local_state import predictor_specs


class Killed(BaseException):
    """The process ends here, as by SIGKILL: no handler may catch it."""


def write_package(directory: Path, version: str) -> str:
    """Writes as much of a published package as a rollout reads."""
    path = directory / "m" / version
    (path / "reference").mkdir(parents=True)
    package = ModelPackage("m", "binary", "y", [Feature("a", "float")], version=version)
    write_model_json(package, path)
    pq.write_table(pa.table({"a": [1.0], "prediction": [0.5]}), path / GOLDEN)
    return str(path)


class DataPlane:
    """Answers for every version: `<url>/<version>/v1/models/<name>:predict`."""

    def __init__(self) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                body = json.dumps({"predictions": [0.5]}).encode()
                self.send_response(200)
                self.send_header("x-model-version", self.path.split("/")[1])
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class MemoryBackend:
    """One service in memory.

    Attributes:
        failing: Versions (their URIs) that cannot load.
        lag: Looks that a controller needs for each thing it does.
        stuck: Whether the controllers do nothing at all.
        writes: Manifests that were written, in order.
    """

    namespace = "ml"
    mode = "Standard"
    poll_seconds = 0.0

    def __init__(self, data_plane: DataPlane, lag: int = 0) -> None:
        self.failing: set[str] = set()
        self.lag = lag
        self.stuck = False
        self.writes: list[Manifest | None] = []
        self._data_plane = data_plane
        self._stored: Manifest | None = None
        self._loaded: dict[str, int] = {}
        self._waits = 0
        self._observed = 0

    def names(self) -> list[str]:
        return [self._stored["metadata"]["name"]] if self._stored else []

    def get(self, service: str) -> Manifest | None:
        return copy.deepcopy(self._stored) if service in self.names() else None

    def apply(self, manifest: Manifest) -> int:
        predictor_specs(manifest)
        new = json.loads(json.dumps(manifest))
        old = self._stored
        metadata = old["metadata"] if old else {"resourceVersion": "0", "generation": 0}
        given = manifest["metadata"].get("resourceVersion", "")
        if given and given != metadata["resourceVersion"]:
            raise ConflictError("The service was changed by somebody else meanwhile.")
        changed = old is None or new["spec"] != old["spec"]
        if old is not None and not changed and _annotations(new) == _annotations(old):
            return int(metadata["generation"])
        new["metadata"]["resourceVersion"] = str(int(metadata["resourceVersion"]) + 1)
        new["metadata"]["generation"] = metadata["generation"] + changed
        self._stored = new
        self._waits = self.lag
        self.writes.append(copy.deepcopy(new))
        return int(new["metadata"]["generation"])

    def dry_run(self, manifest: Manifest) -> Manifest:
        predictor_specs(manifest)
        return json.loads(json.dumps(manifest))

    def advance(self, service: str) -> None:
        self._reconcile()

    def delete(self, service: str) -> None:
        self._stored = None
        self._loaded = {}
        self.writes.append(None)

    def ensure_running(self, service: str) -> None:
        pass

    def status(self, service: str) -> ServiceStatus:
        if self._stored is None:
            return ServiceStatus(False, "", 0, 0)
        generation = self._stored["metadata"]["generation"]
        predictors = {}
        for name, uri, percent in predictor_specs(self._stored):
            version = uri.rsplit("/", 1)[-1]
            ready = self._loaded.get(uri, 1) == 0
            error = "it cannot load" if uri in self.failing else ""
            done = self._observed >= generation and not self.stuck
            predictors[name] = PredictorStatus(
                name,
                f"{self._data_plane.url}/{version}",
                version if ready else "",
                uri,
                ready and not error,
                error,
                percent if done else 0,
            )
        return ServiceStatus(True, "http://nowhere", generation, self._observed, predictors)

    def flush_log(self, service: str) -> None:
        pass

    def default_log(self, service: str) -> str:
        return ""

    def storage_uri(self, model_uri: str) -> str:
        return model_uri

    def log_uri(self, inference_log: str) -> str:
        return inference_log

    def drain_seconds(self, service: str) -> float:
        return 0.0

    def splits_traffic(self, service: str) -> bool:
        return True

    def _reconcile(self) -> None:
        if self._stored is None or self.stuck:
            return
        if self._waits:
            self._waits -= 1
            return
        specs = predictor_specs(self._stored)
        uris = [uri for _, uri, _ in specs]
        self._loaded = {uri: self._loaded.get(uri, self.lag) for uri in uris}
        for uri in uris:
            if uri not in self.failing and self._loaded[uri]:
                self._loaded[uri] -= 1
        if not any(self._loaded.values()) and not self.failing & set(uris):
            self._observed = self._stored["metadata"]["generation"]


class Mortal:
    """A backend whose user is killed at one of its calls, before or after it is done."""

    def __init__(self, backend: Any, call: int, after: bool) -> None:
        self._backend, self._left, self._after = backend, call, after

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._backend, name)
        if not callable(found):
            return found

        def call(*arguments: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                raise Killed(name)
            result = found(*arguments)
            if self._left == 0:
                raise Killed(name)
            return result

        return call


def _annotations(manifest: Manifest) -> dict[str, str]:
    return dict(manifest["metadata"].get("annotations") or {})
