# SPDX-License-Identifier: Apache-2.0
"""The smoke test of a runtime that is not ours: V1 alone, no versions, no missing values."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from memory_backend import DataPlane, MemoryBackend

from kfloop.components.contracts.model_package import (
    GOLDEN,
    Feature,
    ModelPackage,
    write_model_json,
)
from kfloop.components.deployment import rollout, smoke_test
from kfloop.components.deployment.smoke_test import smoke_test_model

SERVICE = "m"


@dataclass
class TensorFlowServing:
    """Answers as TensorFlow Serving does: bare outputs, an unknown input is an error."""

    url: str
    requests: list[dict[str, Any]]


@contextmanager
def tensorflow_serving(predict: Callable[[dict[str, Any]], Any]) -> Iterator[TensorFlowServing]:
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, {"model_version_status": [{"state": "AVAILABLE"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            requests.append(body)
            instances = body.get("instances", [])
            if self.path != f"/1/v1/models/{SERVICE}:predict" or any(
                set(row) != {"a"} or row["a"] is None for row in instances
            ):
                self.answer(400, {"error": "Failed to process element"})
                return
            self.answer(200, {"predictions": [predict(row) for row in instances]})

        def answer(self, status: int, document: dict[str, Any]) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(document).encode())

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield TensorFlowServing(f"http://127.0.0.1:{server.server_port}", requests)
        server.shutdown()


def package(directory: Path, classes: list[str], predictions: list[Any]) -> str:
    path = directory / "m" / "1"
    (path / "reference").mkdir(parents=True)
    task = "multiclass" if classes else "binary"
    made = ModelPackage(
        "m",
        task,
        "y",
        [Feature("a", "float")],
        classes=classes,
        entities=["tail"],
        version="1",
        framework={"tensorflow": "2.21.0"},
    )
    write_model_json(made, path)
    rows = {"a": [1.0, None, 2.0], "tail": ["x", "y", "z"], "prediction": predictions}
    pq.write_table(pa.table(rows), path / GOLDEN)
    return str(path)


@pytest.mark.parametrize(
    ("classes", "expected", "predict"),
    [
        ([], [0.1, 0.9, 0.2], lambda row: row["a"] / 10),
        (["no", "yes"], ["no", "no", "yes"], lambda row: [2 - row["a"], row["a"] - 1]),
    ],
)
def test_tensorflow_serving_is_asked_what_it_can_answer(
    classes: list[str],
    expected: list[Any],
    predict: Callable[[dict[str, Any]], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri = package(tmp_path, classes, expected)
    with tensorflow_serving(predict) as server:
        plane = DataPlane()
        plane.url, own = server.url, plane.url
        backend = MemoryBackend(plane)
        for module in (rollout, smoke_test):
            monkeypatch.setattr(module, "connect", lambda _: backend)
        record = tmp_path / "record.json"
        rollout.deploy_model(uri, SERVICE, record, predictor={"runtime": "tensorflow"})
        made = smoke_test_model(SERVICE, uri, tmp_path / "decision.json")
        plane.url = own
        plane.close()
    assert made.decision == "pass", made.summary
    assert [reason.metric for reason in made.reasons] == ["V1"]
    assert server.requests[-1]["instances"] == [{"a": 1.0}, {"a": 2.0}]
