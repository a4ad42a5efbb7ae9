# SPDX-License-Identifier: Apache-2.0
"""What the model server tells Prometheus, by model and version.

The prediction's distribution counts whole batches at once; a `Histogram` would take a call per row.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq
from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily

from kfloop.components.contracts.inference_log import version_label
from kfloop.components.contracts.model_package import PREDICTION, REFERENCE, ModelPackage

MODEL = ("model", "version")
LABELS = (*MODEL, "protocol", "status")
LATENCIES = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
# Bounds of a probability's histogram, and into how many parts the reference of a value is cut.
PROBABILITIES = tuple(np.linspace(0.05, 0.95, 19).round(2).tolist())
PARTS = 20

REQUESTS = Counter("kfloop_requests", "Answered inference requests.", LABELS)
SECONDS = Histogram(
    "kfloop_request_seconds",
    "Time from request to answer, in the model server.",
    LABELS,
    buckets=LATENCIES,
)
ROWS = Histogram(
    "kfloop_request_rows", "Rows per request that reached the model.", MODEL, buckets=SIZES
)
BATCH_ROWS = Histogram(
    "kfloop_batch_rows",
    "Rows per run of the model: requests that came together.",
    MODEL,
    buckets=SIZES,
)
LOOK_UPS = Histogram(
    "kfloop_feature_lookup_seconds",
    "Time of a look-up of online features, for a batch; result is ok or failed.",
    (*MODEL, "result"),
    buckets=(0.0002, 0.0005, *LATENCIES),
)
FEATURES = Counter(
    "kfloop_feature_rows",
    "Rows by feature view and by what was found: found, absent, expired, no key.",
    (*MODEL, "view", "outcome"),
)
STORE_OPEN = Gauge(
    "kfloop_feature_store_left_alone", "1 while a failing online store is not asked.", MODEL
)


class Distribution:
    """A histogram of the model's answers (`kfloop_prediction`), which Prometheus can collect."""

    def __init__(self, labels: tuple[str, str], bounds: Sequence[float]) -> None:
        self._labels = labels
        self._bounds = np.array(bounds)
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, values: npt.NDArray[np.float32]) -> None:
        """Counts the answers of a batch."""
        places = np.searchsorted(self._bounds, values)  # a bound belongs to its bucket, as there
        counts = np.bincount(places, minlength=len(self._counts))
        with self._lock:
            self._counts += counts
            self._sum += float(values.sum(dtype=np.float64))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yields the histogram as it is now."""
        with self._lock:
            below, total = np.cumsum(self._counts).tolist(), self._sum
        bounds = [*map(str, self._bounds.tolist()), "+Inf"]
        family = HistogramMetricFamily("kfloop_prediction", "The model's answers.", labels=MODEL)
        family.add_metric(list(self._labels), list(zip(bounds, below, strict=True)), total)
        yield family


class Classes:
    """How often each class was the answer (`kfloop_predicted_class`)."""

    COUNTER = Counter("kfloop_predicted_class", "Answers by class.", (*MODEL, "class"))

    def __init__(self, labels: tuple[str, str], classes: Sequence[str]) -> None:
        self._counters = [self.COUNTER.labels(*labels, name) for name in classes]

    def observe(self, scores: npt.NDArray[np.float32]) -> None:
        """Counts the answers of a batch."""
        for place, count in enumerate(np.bincount(scores.argmax(1)).tolist()):
            self._counters[place].inc(count)


class ModelMetrics:
    """The metrics of one model, with its labels filled in."""

    def __init__(self, name: str, package: ModelPackage, directory: str | Path) -> None:
        labels = (name, version_label(package.version))
        self._labels = labels
        self.rows = ROWS.labels(*labels)
        self.batch_rows = BATCH_ROWS.labels(*labels)
        self.looked_up = LOOK_UPS.labels(*labels, "ok")
        self.look_up_failed = LOOK_UPS.labels(*labels, "failed")
        self.store_open = STORE_OPEN.labels(*labels)
        self._outcomes: dict[tuple[str, str], Counter] = {}
        self.predictions: Distribution | Classes
        if package.task == "multiclass":
            self.predictions = Classes(labels, package.classes)
        else:
            self.predictions = Distribution(labels, _bounds(package, Path(directory) / REFERENCE))
            REGISTRY.register(self.predictions)

    @contextmanager
    def time_look_up(self) -> Iterator[None]:
        """Counts a look-up and how long it took."""
        started = time.perf_counter()
        ended = self.look_up_failed
        try:
            yield
            ended = self.looked_up
        finally:
            ended.observe(time.perf_counter() - started)

    def count_features(self, outcomes: dict[str, list[str]]) -> None:
        """Counts what was found of each view."""
        for view, found in outcomes.items():
            for outcome in set(found):
                key = (view, outcome)
                if key not in self._outcomes:
                    self._outcomes[key] = FEATURES.labels(*self._labels, *key)
                self._outcomes[key].inc(found.count(outcome))


def observe_request(labels: tuple[str, str], protocol: str, status: int, seconds: float) -> None:
    """Counts one answered request."""
    filled = (*labels, protocol, str(status))
    REQUESTS.labels(*filled).inc()
    SECONDS.labels(*filled).observe(seconds)


def _bounds(package: ModelPackage, reference: Path) -> Sequence[float]:
    """Returns bucket bounds: twentieths for a probability, else of the reference's predictions."""
    if package.task == "binary":
        return PROBABILITIES
    if not reference.is_file():
        return [
            sign * 10.0**power
            for sign, powers in ((-1, range(6, -4, -1)), (1, range(-3, 7)))
            for power in powers
        ]
    values: Any = pq.read_table(reference, columns=[PREDICTION])[PREDICTION]
    shares = [part / PARTS for part in range(PARTS + 1)]
    return sorted(set(pc.quantile(values, shares).to_pylist()) - {None})
