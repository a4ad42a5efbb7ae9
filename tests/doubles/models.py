# SPDX-License-Identifier: Apache-2.0
"""Model servers of the double: what answers for a storageUri."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

Instance = dict[str, Any]
Predict = Callable[[list[Any]], Sequence[Any]]
Factory = Callable[[str, dict[str, str]], "Model"]
REFERENCES = ("reference/golden.parquet", "reference/reference.parquet")
PREDICTION = "prediction"
# As kfloop's model server names a prediction, by the task of the package.
OUTPUTS = {"binary": "probability", "multiclass": "label", "regression": "value"}
# As kfloop's model server names what it counts, and the edges of its histogram, in seconds.
REQUESTS, SECONDS = "kfloop_requests_total", "kfloop_request_seconds_bucket"
EDGES = (0.001, 0.01, 0.1, 1.0, float("inf"))
Labels = tuple[str, str, int]  # model, protocol, status


@dataclass
class Model:
    """How one served model behaves; every attribute can be changed while it serves.

    Attributes:
        version: What the header `x-model-version` tells.
        predict: From instances (V1) or rows made of V2 tensors to predictions.
        output: What a prediction is called, as kfloop's model server does; empty: bare values.
        error_rate: Share of the requests that get a 500.
        latency_seconds: How long an answer takes.
        wrong: Whether it answers shifted predictions: 1 minus a number, or a wrong label.
        seed: Of the draws for `error_rate`.
    """

    version: str = ""
    predict: Predict = lambda rows: [0.5 for _ in rows]
    output: str = ""
    error_rate: float = 0.0
    latency_seconds: float = 0.0
    wrong: bool = False
    seed: int = 0
    _random: random.Random = field(init=False, repr=False)
    _counts: Counter[tuple[Labels, float]] = field(default_factory=Counter, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def answer(self, rows: list[Any]) -> list[Any]:
        """Returns one prediction for each row.

        Raises:
            RuntimeError: For the share of requests that `error_rate` asks for.
        """
        if self.latency_seconds:
            time.sleep(self.latency_seconds)
        with self._lock:
            failed = self._random.random() < self.error_rate
        if failed:
            raise RuntimeError("the model failed, as asked for")
        predictions = list(self.predict(rows))
        return [_shifted(value) for value in predictions] if self.wrong else predictions

    def count(self, model: str, protocol: str, status: int, seconds: float) -> None:
        """Counts an answered request for the metrics."""
        edge = next(edge for edge in EDGES if seconds <= edge)
        with self._lock:
            self._counts[(model, protocol, status), edge] += 1

    def metrics(self) -> str:
        """Returns what it counted, as Prometheus reads it."""
        with self._lock:
            counts = dict(self._counts)
        lines = []
        for labels in sorted({labels for labels, _ in counts}):
            model, protocol, status = labels
            told = f'model="{model}",version="{self.version}",protocol="{protocol}"'
            told += f',status="{status}"'
            upto = 0
            for edge in EDGES:
                upto += counts.get((labels, edge), 0)
                name = "+Inf" if edge == float("inf") else edge
                lines.append(f'{SECONDS}{{{told},le="{name}"}} {upto}')
            lines.append(f"{REQUESTS}{{{told}}} {upto}")
        return "".join(f"{line}\n" for line in lines)


def _shifted(value: Any) -> Any:
    return f"not {value}" if isinstance(value, str) else 1 - value


def model_for(storage_uri: str, annotations: dict[str, str]) -> Model:
    """Makes the model of a storageUri that nobody described.

    A model package in a local directory answers the rows of its golden and reference files, and
    the mean prediction for any other row; everything else answers 0.5.
    """
    annotated = annotations.get("kfloop.org/model-version", "")
    package = _package(storage_uri)
    if package is None:
        digits = "".join(c if c.isdigit() else " " for c in storage_uri).split()
        return Model(annotated or (digits[-1] if digits else "1"))
    document = json.loads((package / "model.json").read_text())
    output = OUTPUTS.get(document.get("task", ""), "")
    return Model(annotated or document.get("version", ""), _recorded(package), output)


def _package(storage_uri: str) -> Path | None:
    parts = urlsplit(storage_uri)
    if parts.scheme not in ("", "file"):
        return None
    path = Path(unquote(parts.path))
    return path if (path / "model.json").is_file() else None


def _recorded(package: Path) -> Predict:
    """Returns a function that knows the predictions of a package's own rows."""
    import pyarrow.parquet as pq

    features = [f["name"] for f in json.loads((package / "model.json").read_text())["features"]]
    known: dict[str, Any] = {}
    for name in reversed(REFERENCES):
        if (package / name).is_file():
            for row in pq.read_table(package / name).to_pylist():
                known[_key(row, features)] = row[PREDICTION]
    values = list(known.values())
    numeric = bool(values) and isinstance(values[0], int | float)
    if not values:
        fallback: Any = 0.5
    else:
        fallback = sum(values) / len(values) if numeric else max(set(values), key=values.count)

    def predict(rows: list[Any]) -> list[Any]:
        return [known.get(_key(row, features), fallback) for row in rows]

    return predict


def _key(row: Any, features: list[str]) -> str:
    """Identifies a row by its features; numbers are equal whatever type they came as."""
    values = [row.get(name) if isinstance(row, dict) else None for name in features]
    return json.dumps(
        [float(f"{v:.6g}") if isinstance(v, int | float) else (v or None) for v in values]
    )
