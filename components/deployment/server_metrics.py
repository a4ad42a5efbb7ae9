# SPDX-License-Identifier: Apache-2.0
"""Requests, errors and latencies of one version, read from its model server's `/metrics`."""

import math
from collections import defaultdict

import httpx
from prometheus_client.parser import text_string_to_metric_families

from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment.canary_evidence import Evidence
from kfloop.components.deployment.connection import connection_to
from kfloop.components.deployment.latencies import Values
from kfloop.components.deployment.prometheus import buckets_of

TIMEOUT_SECONDS = 10.0
REQUESTS = "kfloop_requests_total"
SECONDS = "kfloop_request_seconds_bucket"
STARTED = "process_start_time_seconds"
OK = "200"

Series = tuple[str, tuple[tuple[str, str], ...]]


class ServerMetrics:
    """Counts what a model server did since this was made.

    For one model server: where several replicas answer at the address, each look may see another
    one's counts. That is noticed and refused; Prometheus, which scrapes each, is for that.
    """

    def __init__(self, url: str, version: str) -> None:
        """Args: url: the server's address; version: the model version that it serves."""
        self._url, self._version = url, version
        self._totals: dict[Series, float] = defaultdict(float)
        self._started = 0.0
        self._seen: dict[Series, float] = {}
        self._seen = self._scrape()

    def evidence(self) -> Evidence:
        """Returns what it did so far."""
        scraped = self._scrape()
        for series, value in scraped.items():
            before = self._seen.get(series, 0.0)
            self._totals[series] += value - before
        self._seen = scraped
        requests = errors = 0.0
        edges: dict[float, float] = defaultdict(float)
        for (name, labels), value in self._totals.items():
            told = dict(labels)
            if name == REQUESTS:
                requests += value
                errors += value if told["status"] != OK else 0
            elif told["status"] == OK:
                edges[1000 * float(told["le"])] += value
        buckets = buckets_of(sorted(edges.items()))
        return Evidence(self._version, round(requests), round(errors), buckets or Values(), None)

    def _scrape(self) -> dict[Series, float]:
        way = connection_to(self._url)
        headers = {**way.options.pop("headers", {}), **way.headers}
        try:
            answer = httpx.get(
                f"{way.base_url}/metrics",
                headers=headers,
                timeout=TIMEOUT_SECONDS,
                trust_env=False,
                **way.options,
            )
            answer.raise_for_status()
            families = list(text_string_to_metric_families(answer.text))
        except (httpx.HTTPError, ValueError) as error:
            raise InputError(
                f"The metrics of version {self._version} cannot be read from {self._url}/metrics: "
                f"{type(error).__name__}: {error}."
            ) from error
        found = {}
        started = math.nan
        for sample in (sample for family in families for sample in family.samples):
            if sample.name == STARTED:
                started = sample.value
            if sample.name in (REQUESTS, SECONDS) and sample.labels["version"] == self._version:
                found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
        if started < self._started:
            raise InputError(
                f"Several model servers answer at {self._url}: their own metrics cannot be "
                'counted one by one; take source "prometheus", which scrapes each of them.'
            )
        if started > self._started:
            # A new process, which counts from nothing.
            self._started, self._seen = started, {}
        return found
