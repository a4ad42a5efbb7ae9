# SPDX-License-Identifier: Apache-2.0
"""Requests, errors and latencies of each version, asked of Prometheus.

Who counts requests differs from cluster to cluster, and so do the names. So the queries are data:
a preset is a table of PromQL templates, and any of them can be replaced by a parameter.

In a template `$service`, `$namespace`, `$predictor` (its name in the manifest), `$workload` (the
Kubernetes Service of the predictor, in Knative mode its revision), `$version` (of the model) and
`$window` (since the evidence begins, such as `90s`) are filled in.

`increase()` sees a series from its second sample on: what a version did before Prometheus first
scraped it is not counted, and a window of less than two scrapes has no answer.
"""

import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from string import Template
from typing import Any

import httpx

from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment.canary_evidence import Evidence
from kfloop.components.deployment.latencies import Buckets, Values

TIMEOUT_SECONDS = 10.0
MILLISECONDS = {"s": 1000.0, "ms": 1.0}


@dataclass(frozen=True)
class Queries:
    """PromQL templates; an empty one asks nothing, and what it would tell is not checked.

    Attributes:
        requests: Number of requests.
        errors: Number of those that were not answered with 2xx.
        latency: Cumulative histogram buckets, summed by `le`.
        latency_unit: Unit of the buckets' edges, `s` or `ms`.
    """

    requests: str
    errors: str
    latency: str
    latency_unit: str = "s"


def _queries(
    total: str,
    buckets: str,
    labels: str,
    bad: str,
    good: str = "",
    unit: str = "s",
    owner: str = "",
) -> Queries:
    def selected(metric: str, *conditions: str) -> str:
        return f"increase({metric}{{{','.join(filter(None, conditions))}}}[$window]){owner}"

    return Queries(
        f"sum({selected(total, labels)})",
        f"sum({selected(total, labels, bad)})",
        f"sum by (le) ({selected(buckets, labels, good)})",
        unit,
    )


PRESETS = {
    # The model server's own metrics. Whoever scrapes it in Kubernetes usually adds `namespace`;
    # the bar lets a series without that label through.
    "kfloop": _queries(
        "kfloop_requests_total",
        "kfloop_request_seconds_bucket",
        'model="$service",version="$version",namespace=~"$namespace|"',
        'status!~"2.."',
        'status=~"2.."',
    ),
    # Knative Serving up to 1.18, from the queue proxy.
    "knative": _queries(
        "revision_request_count",
        "revision_request_latencies_bucket",
        'namespace_name="$namespace",revision_name="$workload"',
        'response_code_class!="2xx"',
        'response_code_class="2xx"',
        "ms",
    ),
    # Newer Knative, with OpenTelemetry's names; its own pages say that they may still change.
    # Whose requests they are stands in `target_info` alone.
    "knative-otel": _queries(
        "kn_serving_invocation_duration_seconds_count",
        "kn_serving_invocation_duration_seconds_bucket",
        "",
        'http_response_status_code!~"2.."',
        'http_response_status_code=~"2.."',
        owner=" * on (job, instance) group_left() max by (job, instance) (last_over_time("
        'target_info{k8s_namespace_name="$namespace",kn_revision_name="$workload"}[$window]))',
    ),
    # As the caller's proxy counts, such as the ingress gateway's: it also knows of requests that
    # never reached a pod.
    "istio": _queries(
        "istio_requests_total",
        "istio_request_duration_milliseconds_bucket",
        'reporter="source",destination_service_namespace="$namespace",'
        'destination_service_name="$workload"',
        'response_code!~"2.."',
        'response_code=~"2.."',
        "ms",
    ),
    # Gateways built on Envoy whose clusters bear the Service's name, such as Contour, kgateway and
    # Istio. Envoy Gateway makes one cluster for all backends of a route, which tells no versions
    # apart: take `kfloop` there.
    "envoy": _queries(
        "envoy_cluster_upstream_rq_xx",
        "envoy_cluster_upstream_rq_time_bucket",
        r'envoy_cluster_name=~"(.*[^-a-z0-9])?$namespace[^-a-z0-9]$workload([^-a-z0-9].*)?'
        r'|(.*[^-a-z0-9])?$workload[.]$namespace([.].*)?"',
        'envoy_response_code_class!="2"',
        unit="ms",
    ),
}


def queries_of(preset: str, overrides: dict[str, str]) -> Queries:
    """Returns a preset's queries with some of them replaced.

    Raises:
        InputError: If there is no such preset or query.
    """
    if preset not in PRESETS:
        raise InputError(
            f"prometheus_preset is {preset!r}; take one of {', '.join(PRESETS)}, and replace what "
            "differs by prometheus_queries."
        )
    known = Queries.__dataclass_fields__
    if unknown := sorted(set(overrides) - set(known)):
        raise InputError(
            f"prometheus_queries names {', '.join(unknown)}; there are {', '.join(known)}."
        )
    queries = replace(PRESETS[preset], **overrides)
    if queries.latency_unit not in MILLISECONDS:
        raise InputError(
            f"latency_unit in prometheus_queries is {queries.latency_unit!r}; take s or ms."
        )
    return queries


def filled_in(template: str, values: dict[str, str]) -> str:
    """Returns a query with its names filled in.

    Raises:
        InputError: If the template asks for a name that there is not.
    """
    try:
        return Template(template).substitute(values)
    except (KeyError, ValueError) as error:
        raise InputError(
            f"The query {template!r} cannot be filled in ({error}); it may name "
            f"{', '.join('$' + name for name in values)}, and $$ stands for a dollar sign."
        ) from error


class Prometheus:
    """Asks one Prometheus server."""

    def __init__(self, url: str) -> None:
        """Args: url: its address, for example http://prometheus.monitoring:9090."""
        if not url.startswith(("http://", "https://")):
            raise InputError(
                f"prometheus_url is {url!r}; give the address of a Prometheus server, for example "
                "http://prometheus.monitoring:9090."
            )
        self._url = url.rstrip("/")

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        """Returns the labels and the value of each series of an instant query.

        Raises:
            InputError: If the server does not answer, or refuses the query.
        """
        document = self._ask(promql)
        if document["status"] != "success":
            raise InputError(
                f"Prometheus at {self._url} refuses the query {promql}: {document.get('error')}."
            )
        data = document["data"]
        if data["resultType"] != "vector":
            raise InputError(
                f"The query {promql} gives a {data['resultType']}, not a vector; sum its counts."
            )
        return [(series["metric"], float(series["value"][1])) for series in data["result"]]

    def _ask(self, promql: str) -> dict[str, Any]:
        """Returns the answer of Prometheus' HTTP API, which is JSON for errors, too."""
        try:
            answer = httpx.post(
                f"{self._url}/api/v1/query",
                data={"query": promql},
                timeout=TIMEOUT_SECONDS,
                trust_env=False,
            )
        except httpx.HTTPError as error:
            raise InputError(
                f"Prometheus at {self._url} does not answer ({type(error).__name__}: {error}); "
                "see that prometheus_url is right and can be reached from here."
            ) from error
        try:
            document = answer.json()
        except ValueError:
            document = None
        if not isinstance(document, dict) or "status" not in document:
            raise InputError(
                f"What answers at {self._url} (HTTP {answer.status_code}) is not Prometheus; "
                "see that prometheus_url is right."
            )
        return document

    def evidence(self, queries: Queries, values: dict[str, str], since: datetime) -> Evidence:
        """Returns what is known of one version since a moment; nothing is no request.

        Args:
            queries: What is asked.
            values: What the templates name, except `window`.
            since: When the evidence begins.
        """
        seconds = max(1, math.ceil((datetime.now(UTC) - since).total_seconds()))
        values = {**values, "window": f"{seconds}s"}

        def count(template: str) -> int:
            found = self.query(filled_in(template, values)) if template else []
            # A series of NaN was there and counted nothing.
            return round(sum(value for _, value in found if math.isfinite(value)))

        requests = count(queries.requests)
        errors = min(count(queries.errors), requests)
        found = self.query(filled_in(queries.latency, values)) if queries.latency else []
        buckets = _buckets(found, MILLISECONDS[queries.latency_unit], queries.latency)
        return Evidence(values["version"], requests, errors, buckets or Values(), None)


def _buckets(found: list[tuple[dict[str, str], float]], unit: float, query: str) -> Buckets | None:
    if any("le" not in labels for labels, _ in found):
        raise InputError(f"The latency query {query} gives no label `le`; sum the buckets by (le).")
    cumulative = sorted((float(labels["le"]) * unit, value) for labels, value in found)
    return buckets_of([(edge, value) for edge, value in cumulative if math.isfinite(value)])


def buckets_of(cumulative: list[tuple[float, float]]) -> Buckets | None:
    """Returns a histogram from `(edge in ms, count up to it)`, sorted; None when it is empty.

    Counts that Prometheus extrapolated are rounded, and never fall from one edge to the next.
    """
    counts, before = [], 0
    for _, value in cumulative:
        upto = max(before, round(value))
        counts.append(upto - before)
        before = upto
    if not before:
        return None
    return Buckets([edge for edge, _ in cumulative], counts)
