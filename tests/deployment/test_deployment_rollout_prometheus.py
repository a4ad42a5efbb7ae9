# SPDX-License-Identifier: Apache-2.0
"""`roll_out_model` on KServe, judged from beginning to end by a real Prometheus."""

import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from doubles.prometheus import prometheus
from kubernetes_bench import (
    BAD_ROW,
    FLAKY,
    MODES,
    NAMESPACE,
    REAL,
    ROW,
    SERVICE,
    Bench,
    bench,
)

from kfloop.components.contracts.decision import Decision
from kfloop.components.deployment.backend import connect
from kfloop.components.deployment.canary_checks import Limits
from kfloop.components.deployment.canary_sources import Source
from kfloop.components.deployment.client import ServiceClient
from kfloop.components.deployment.roll_out import Analysis

REAL_PROMETHEUS = os.environ.get("KFLOOP_TEST_PROMETHEUS", "")
# A real one scrapes every 15 s.
WAIT_SECONDS = 180.0 if REAL else 60.0


@contextmanager
def prometheus_of(cluster: Bench) -> Iterator[str]:
    """The cluster's Prometheus; for the double one that scrapes versions 1 to 4 by the proxy."""
    if REAL:
        if not REAL_PROMETHEUS:
            pytest.skip("KFLOOP_TEST_PROMETHEUS is not set: there is no Prometheus to ask")
        yield REAL_PROMETHEUS
        return
    address = cluster.api.url.removeprefix("http://")
    # Revisions are numbered as they come: the third one is of the fourth version.
    services = {
        "Standard": [f"{SERVICE}-v{version}-predictor" for version in (1, 2, FLAKY)],
        "Knative": [f"{SERVICE}-predictor-{number:05}-private" for number in (1, 2, 3)],
    }
    proxies = f"{address}/api/v1/namespaces/{NAMESPACE}/services"
    targets = [f"{proxies}/{service}:80/proxy/metrics" for service in services[cluster.mode]]
    with prometheus(cluster.work / "prometheus", targets, up=1) as url:
        yield url


@contextmanager
def traffic() -> Iterator[Counter[str]]:
    """Sends requests to the public address, as clients do; counts which version answered."""
    stop = threading.Event()
    answered: Counter[str] = Counter()
    url = connect().status(SERVICE).url

    def ask() -> None:
        with ServiceClient(url, SERVICE) as client:
            for row in itertools.cycle([ROW, ROW, BAD_ROW]):
                if stop.is_set():
                    return
                answered[client.predict([row]).model_version] += 1
                time.sleep(0.01 if REAL else 0.002)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield answered
    finally:
        stop.set()
        asking.join()


def roll_out(cluster: Bench, version: int, url: str) -> Decision:
    # Two versions are as quick as each other, but a machine has its moods.
    limits = Limits(max_latency_ratio=1000.0)
    analysis = Analysis(limits, wait_seconds=WAIT_SECONDS, source=Source("prometheus", url))
    return cluster.roll_out(version, [25, 50], analysis=analysis)


@pytest.mark.parametrize("mode", MODES)
def test_prometheus_lets_a_good_candidate_through_every_step_and_stops_a_failing_one(
    mode: str, tmp_path: Path
) -> None:
    with bench(mode, tmp_path) as cluster:
        cluster.deploy(1)
        with prometheus_of(cluster) as url, traffic() as answered:
            made = roll_out(cluster, 2, url)
            assert (made.decision, made.action) == ("pass", "promoted"), made.summary
            judged = [reason.slice for reason in made.reasons if reason.check == "canary"]
            assert judged == ["25 %", "50 %"]
            assert cluster.live == "2"
            assert "increase(kfloop_requests_total{" in (cluster.work / "page.html").read_text()

            # It passes its smoke test, and then fails every third request.
            made = roll_out(cluster, FLAKY, url)
            assert (made.decision, made.action) == ("fail", "rolled_back"), made.summary
            told = next(reason.why for reason in made.reasons if reason.check == "canary")
            assert told.startswith("25 %") and "requests failed" in told
            assert cluster.live == "2"
            assert cluster.record.undone == cluster.model(FLAKY)
        assert answered["2"] > 100 and answered[str(FLAKY)] > 5
        assert set(cluster.answering(20)) == {"2"}
