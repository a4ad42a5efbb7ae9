# SPDX-License-Identifier: Apache-2.0
"""Where a canary analysis has its evidence from."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from kfloop.components.contracts.deployment_record import Target
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import local_path
from kfloop.components.contracts.inference_log import shadow_log
from kfloop.components.contracts.model_package import ModelPackage
from kfloop.components.deployment.canary_evidence import Evidence, Pairs, read_evidence, read_shadow
from kfloop.components.deployment.latencies import Values
from kfloop.components.deployment.prometheus import Prometheus, filled_in, queries_of
from kfloop.components.deployment.server_metrics import ServerMetrics

LOG, METRICS, PROMETHEUS = "log", "metrics", "prometheus"


@dataclass(frozen=True)
class Source:
    """What is asked for the evidence.

    Attributes:
        kind: `log`: the inference log. `metrics`: each model server's own `/metrics`, from the
            beginning of the analysis. `prometheus`: a Prometheus server.
        prometheus_url: Its address.
        prometheus_preset: Whose metrics it holds; see `prometheus.PRESETS`.
        prometheus_queries: PromQL templates in place of the preset's, by name.
    """

    kind: str = LOG
    prometheus_url: str = ""
    prometheus_preset: str = "kfloop"
    prometheus_queries: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in (LOG, METRICS, PROMETHEUS):
            raise InputError(f"source is {self.kind!r}; take log, metrics or prometheus.")
        if self.kind == PROMETHEUS and not self.prometheus_url:
            raise InputError("source is prometheus, so give prometheus_url, its address.")


@dataclass(frozen=True)
class Side:
    """One version under comparison.

    Attributes:
        target: What was deployed.
        package: Its model package.
        traffic: Its share of the requests, in percent.
        url: Its own address, past the traffic split.
        workload: What metrics of the cluster call it.
    """

    target: Target
    package: ModelPackage
    traffic: int
    url: str
    workload: str


@dataclass(frozen=True)
class Look:
    """What is known at one moment.

    Attributes:
        live: Requests to the live version.
        candidate: Requests to the candidate, copies included.
        shadow: Both versions' predictions for copied requests.
        copies: How many of the candidate's requests were copies.
    """

    live: Evidence
    candidate: Evidence
    shadow: Pairs = field(default_factory=Pairs)
    copies: int = 0


@dataclass(frozen=True)
class Opened:
    """A source, ready to be looked at.

    Attributes:
        look: Reads what is known now.
        told: What it is, for the page.
        unknown: What it cannot tell, as a sentence; empty for nothing.
    """

    look: Callable[[], Look]
    told: str
    unknown: str = ""


NO_PREDICTIONS = "Predictions on live requests were not compared: metrics do not tell them."


def open_source(
    source: Source,
    service: str,
    namespace: str,
    log: str,
    live: Side,
    candidate: Side,
    since: datetime,
) -> Opened:
    """Returns the evidence of both versions from `since` on, as a source tells it.

    Raises:
        InputError: If the source cannot be asked.
    """
    versions = live.target.version, candidate.target.version
    if source.kind == LOG:
        if not log:
            nothing = Look(Evidence(versions[0]), Evidence(versions[1]))
            return Opened(
                lambda: nothing,
                "nothing",
                f"The service {service!r} has no inference log; deploy it with inference_log, or "
                "take source metrics or prometheus.",
            )
        if log.startswith(("http://", "https://")):
            raise InputError(
                f"The requests of {service!r} are logged by {log}, which tells nothing back; take "
                "source prometheus, or metrics where each version is one server."
            )
        place = str(local_path(log, "inference_log"))
        return Opened(lambda: _look_at_log(place, *versions, since), f"the inference log {log}")
    if source.kind == METRICS:
        one, two = (ServerMetrics(side.url, side.target.version) for side in (live, candidate))
        return Opened(
            lambda: Look(one.evidence(), two.evidence()),
            "the model servers' own metrics, since this analysis began",
            NO_PREDICTIONS,
        )
    queries = queries_of(source.prometheus_preset, source.prometheus_queries)
    server = Prometheus(source.prometheus_url)
    before, after = (_values(service, namespace, side) for side in (live, candidate))
    asked = filled_in(queries.requests, {**after, "window": "since then"})
    return Opened(
        lambda: Look(
            server.evidence(queries, before, since), server.evidence(queries, after, since)
        ),
        f"Prometheus at {source.prometheus_url} ({source.prometheus_preset}), for the candidate "
        f"{asked}",
        NO_PREDICTIONS,
    )


def _values(service: str, namespace: str, side: Side) -> dict[str, str]:
    return {
        "service": service,
        "namespace": namespace,
        "predictor": side.target.predictor["name"],
        "workload": side.workload,
        "version": side.target.version,
    }


def _look_at_log(log: str, live_version: str, version: str, since: datetime) -> Look:
    live, candidate = (read_evidence(log, one, since) for one in (live_version, version))
    copied = read_evidence(str(shadow_log(log)), version, since)
    if not copied.requests:
        return Look(live, candidate)
    assert isinstance(candidate.latencies, Values) and isinstance(copied.latencies, Values)
    both = Evidence(
        version,
        candidate.requests + copied.requests,
        candidate.errors + copied.errors,
        Values(candidate.latencies.ms + copied.latencies.ms),
        (candidate.predictions or []) + (copied.predictions or []),
    )
    pairs = read_shadow(log, live_version, version, since)
    return Look(live, both, pairs, copied.requests)
