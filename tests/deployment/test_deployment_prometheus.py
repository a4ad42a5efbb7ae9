# SPDX-License-Identifier: Apache-2.0
"""Every preset's queries, against a real Prometheus that scrapes exporters named like it."""

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from doubles.prometheus import Exporter, prometheus, wait_until

from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment.canary_checks import Limits, check_traffic, check_volume
from kfloop.components.deployment.canary_evidence import Evidence
from kfloop.components.deployment.prometheus import PRESETS, Prometheus, filled_in, queries_of

# (answered quickly, answered slowly, failed) by version.
COUNTS = {"1": (397, 3, 0), "2": (20, 120, 60)}
NAMES = {"1": "late-v1-predictor", "2": "late-v2-predictor"}
# What each preset's own exporter says: metrics, labels for an answer and for a failure.
LIKE = {
    "kfloop": (
        ("kfloop_requests_total", "kfloop_request_seconds_bucket", 0.001),
        {"status": "200", "protocol": "v1"},
        {"status": "500", "protocol": "v1"},
    ),
    "knative": (
        ("revision_request_count", "revision_request_latencies_bucket", 1.0),
        {"response_code": "200", "response_code_class": "2xx"},
        {"response_code": "500", "response_code_class": "5xx"},
    ),
    "knative-otel": (
        (
            "kn_serving_invocation_duration_seconds_count",
            "kn_serving_invocation_duration_seconds_bucket",
            0.001,
        ),
        {"http_response_status_code": "200"},
        {"http_response_status_code": "500"},
    ),
    "istio": (
        ("istio_requests_total", "istio_request_duration_milliseconds_bucket", 1.0),
        {"response_code": "200"},
        {"response_code": "503"},
    ),
    "envoy": (
        ("envoy_cluster_upstream_rq_xx", "envoy_cluster_upstream_rq_time_bucket", 1.0),
        {"envoy_response_code_class": "2"},
        {"envoy_response_code_class": "5"},
    ),
}


def owner(preset: str, version: str, namespace: str) -> dict[str, str]:
    """The labels by which an exporter of this kind tells whose requests it counted."""
    name = NAMES[version]
    return {
        "kfloop": {"model": "late", "version": version, "namespace": namespace},
        "knative": {"namespace_name": namespace, "revision_name": name},
        "knative-otel": {},
        "istio": {
            "destination_service_namespace": namespace,
            "destination_service_name": name,
            "reporter": "source",
        },
        "envoy": {"envoy_cluster_name": f"{namespace}_{name}_80"},
    }[preset]


def count(exporter: Exporter, version: str, counts: tuple[int, int, int], namespace: str) -> None:
    """Sets every preset's metrics of a version: quick is 2 ms, slow 800 ms."""
    quick, slow, failed = counts
    if namespace == "ml":
        # A queue proxy is of one revision.
        names = {"k8s_namespace_name": namespace, "kn_revision_name": NAMES[version]}
        exporter.set("target_info", 1, **names)
    for preset, ((total, buckets, unit), good, bad) in LIKE.items():
        if preset == "knative-otel" and namespace != "ml":
            continue
        labels = owner(preset, version, namespace)
        exporter.set(total, quick + slow, **labels, **good)
        exporter.set(total, failed, **labels, **bad)
        # Envoy's histogram does not tell the status.
        kind = {} if preset == "envoy" else good
        for edge, upto in ((5, quick), (100, quick), (1000, quick + slow)):
            exporter.set(buckets, upto, **labels, **kind, le=f"{edge * unit:g}")
        exporter.set(buckets, quick + slow, **labels, **kind, le="+Inf")
        if preset != "envoy":
            exporter.set(buckets, failed, **labels, **bad, le="+Inf")


@dataclass
class Cluster:
    """A Prometheus that knows two versions, and since when."""

    url: str
    since: datetime

    def evidence(
        self, preset: str, version: str, namespace: str = "ml", **overrides: str
    ) -> Evidence:
        values = {
            "service": "late",
            "namespace": namespace,
            "predictor": f"v{version}",
            "workload": NAMES[version],
            "version": version,
        }
        return Prometheus(self.url).evidence(queries_of(preset, overrides), values, self.since)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    exporters = {version: Exporter() for version in COUNTS}
    since = datetime.now(UTC)
    for version, exporter in exporters.items():
        count(exporter, version, (0, 0, 0), "ml")
        # Another namespace's service of the same name must not be counted.
        count(exporter, version, (0, 0, 0), "other")
    addresses = [exporter.address for exporter in exporters.values()]
    try:
        with prometheus(tmp_path_factory.mktemp("prometheus"), addresses) as url:
            time.sleep(1)  # several samples of nothing, so that the increase is all there
            for version, exporter in exporters.items():
                count(exporter, version, COUNTS[version], "ml")
                count(exporter, version, (5000, 0, 5000), "other")
            wait_until(url, 'sum(istio_requests_total{destination_service_namespace="ml"})', 600)
            time.sleep(2)  # and of what was counted: Prometheus extrapolates by half a scrape
            yield Cluster(url, since)
    finally:
        for exporter in exporters.values():
            exporter.close()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_finds_requests_errors_and_latencies_of_each_version(
    cluster: Cluster, preset: str
) -> None:
    for version, (quick, slow, failed) in COUNTS.items():
        found = cluster.evidence(preset, version)
        assert found.requests == pytest.approx(quick + slow + failed, rel=0.15)
        assert found.errors == pytest.approx(failed, rel=0.15)
        assert found.latencies.count == pytest.approx(quick + slow, rel=0.15)
        assert found.predictions is None
    assert cluster.evidence(preset, "1").latencies.quantile(0.5) <= 5
    assert 100 < cluster.evidence(preset, "2").latencies.quantile(0.5) <= 1000


@pytest.mark.parametrize("preset", PRESETS)
def test_what_a_preset_finds_is_judged(cluster: Cluster, preset: str) -> None:
    live, candidate = (cluster.evidence(preset, version) for version in COUNTS)
    outcomes = {
        finding.reason.metric: finding.outcome
        for finding in check_traffic(live, candidate, "binary", Limits())
    }
    assert outcomes["increase"] == "fail"
    assert outcomes["p50 ms"] == "fail"
    like = check_traffic(live, live, "binary", Limits())
    assert {finding.outcome for finding in like} == {"pass"}


def test_nothing_found_is_no_data(cluster: Cluster) -> None:
    nothing = cluster.evidence("istio", "1", namespace="empty")
    assert (nothing.requests, nothing.errors, nothing.latencies.count) == (0, 0, 0)
    assert {finding.outcome for finding in check_volume(nothing, nothing, 100)} == {"no_data"}


def test_a_query_of_ones_own_replaces_a_presets(cluster: Cluster) -> None:
    own = 'sum(increase(istio_requests_total{destination_service_name="$workload"}[$window]))'
    found = cluster.evidence("kfloop", "1", requests=own, errors="", latency="")
    assert found.requests > 5000
    assert (found.errors, found.latencies.count) == (0, 0)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"requests": "sum(rate("}, "refuses the query sum"),
        ({"requests": "'text'"}, "gives a string, not a vector"),
        ({"requests": "up{job='$job'}"}, "may name .service"),
        ({"latency": "sum(up)"}, "gives no label `le`"),
        ({"latencies": "up"}, "names latencies; there are requests, errors, latency"),
        ({"latency_unit": "minutes"}, "take s or ms"),
    ],
)
def test_a_query_that_cannot_be_asked_is_told(
    cluster: Cluster, overrides: dict[str, str], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        cluster.evidence("kfloop", "1", **overrides)


def test_an_unknown_preset_is_told() -> None:
    with pytest.raises(InputError, match="take one of kfloop, knative, knative-otel, istio"):
        queries_of("linkerd", {})


def test_no_prometheus_at_the_address_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(InputError, match=r"does not answer \(ConnectError"):
        Prometheus(address).query("up")
    with pytest.raises(InputError, match="prometheus_url is 'prometheus:9090'"):
        Prometheus("prometheus:9090")


def test_another_server_at_the_address_is_told() -> None:
    class Other(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(InputError, match=r"\(HTTP 200\) is not Prometheus"):
                Prometheus(f"http://127.0.0.1:{server.server_port}").query("up")
        finally:
            server.shutdown()


def test_dollar_signs_of_a_regular_expression_can_be_written() -> None:
    assert filled_in('up{job=~"a$$"}[$window]', {"window": "9s"}) == 'up{job=~"a$"}[9s]'
