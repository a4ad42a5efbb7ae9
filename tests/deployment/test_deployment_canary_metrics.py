# SPDX-License-Identifier: Apache-2.0
"""A model server's own metrics, read from an exporter that says what the server says."""

from collections.abc import Iterator

import pytest
from doubles.prometheus import Exporter

from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment.server_metrics import ServerMetrics


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    found = Exporter()
    found.set("process_start_time_seconds", 100.0)
    yield found
    found.close()


def served(exporter: Exporter, answered: int, failed: int, version: str = "2") -> None:
    """Sets what a server says that answered so many requests within 5 ms, some on V2."""
    for protocol, count in (("v1", answered - answered // 4), ("v2", answered // 4)):
        labels = {"model": "m", "version": version, "protocol": protocol}
        exporter.set("kfloop_requests_total", count, **labels, status="200")
        for edge, upto in (("0.001", 0), ("0.005", count), ("+Inf", count)):
            exporter.set("kfloop_request_seconds_bucket", upto, **labels, status="200", le=edge)
    labels = {"model": "m", "version": version, "protocol": "v1", "status": "500"}
    exporter.set("kfloop_requests_total", failed, **labels)
    exporter.set("kfloop_request_seconds_bucket", failed, **labels, le="+Inf")


def test_only_what_came_since_the_beginning_counts(exporter: Exporter) -> None:
    served(exporter, 1000, 50)
    metrics = ServerMetrics(f"http://{exporter.address}", "2")
    assert metrics.evidence().requests == 0
    served(exporter, 1100, 54)
    found = metrics.evidence()
    assert (found.requests, found.errors, found.latencies.count) == (104, 4, 100)
    assert 1 < found.latencies.quantile(0.5) <= 5
    assert found.predictions is None
    served(exporter, 1200, 54)
    assert metrics.evidence().requests == 204


def test_a_server_that_began_anew_goes_on_counting(exporter: Exporter) -> None:
    served(exporter, 1000, 50)
    metrics = ServerMetrics(f"http://{exporter.address}", "2")
    exporter.set("process_start_time_seconds", 200.0)
    served(exporter, 40, 2)
    found = metrics.evidence()
    assert (found.requests, found.errors, found.latencies.count) == (42, 2, 40)
    exporter.set("process_start_time_seconds", 300.0)
    served(exporter, 400, 2)  # more than the process before it: no counter fell
    assert metrics.evidence().requests == 42 + 402


def test_another_versions_requests_do_not_count(exporter: Exporter) -> None:
    served(exporter, 0, 0)
    metrics = ServerMetrics(f"http://{exporter.address}", "2")
    served(exporter, 500, 5, version="1")
    assert metrics.evidence().requests == 0


def test_several_servers_at_one_address_are_refused(exporter: Exporter) -> None:
    served(exporter, 10, 0)
    metrics = ServerMetrics(f"http://{exporter.address}", "2")
    exporter.set("process_start_time_seconds", 50.0)
    with pytest.raises(InputError, match='take source "prometheus"'):
        metrics.evidence()


def test_an_address_without_metrics_is_told() -> None:
    with pytest.raises(InputError, match="version 2 cannot be read from"):
        ServerMetrics("http://127.0.0.1:9", "2")
