# SPDX-License-Identifier: Apache-2.0
"""The canary analysis: a candidate against the live version, on the same service.

The evidence begins when the traffic was last shifted (`changed_at` of the deployment record), so
each step of a rollout is judged by its own requests. Every bound is time-uniform (`sequential`):
within a step one may look as often as one likes, wait longer, stop early, or run the step again.
Over `steps` steps each spends its share of the allowed chance of error.
"""

import itertools
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from kfloop.components.contracts.dataset import parse_time
from kfloop.components.contracts.decision import (
    FAIL,
    NO_DATA,
    PASS,
    Decision,
    render,
    write_decision,
)
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import write_text
from kfloop.components.contracts.inference_log import REPLAYED_PREFIX
from kfloop.components.contracts.model_package import REFERENCE
from kfloop.components.contracts.package_storage import read_package
from kfloop.components.deployment.backend import Backend, connect, require_service
from kfloop.components.deployment.canary_checks import (
    QUANTILES,
    Finding,
    Limits,
    check_shadow,
    check_traffic,
    check_volume,
    found,
)
from kfloop.components.deployment.canary_evidence import newest_instances
from kfloop.components.deployment.canary_models import compare_models
from kfloop.components.deployment.canary_page import details
from kfloop.components.deployment.canary_sources import LOG, Look, Opened, Side, Source, open_source
from kfloop.components.deployment.manifest import (
    LOG_ANNOTATION,
    Manifest,
    record_of,
    traffic_of,
)
from kfloop.components.deployment.packages import Instance, package_rows
from kfloop.components.deployment.replay import Replayed, send
from kfloop.components.deployment.sequential import ALPHA
from kfloop.components.deployment.smoke_test import request_columns
from kfloop.components.deployment.wait import (
    TIMEOUT_SECONDS,
    RolloutError,
    ensure_live,
    wait_for_version,
)

POLL_SECONDS = 1.0
PROGRESS_SECONDS = 5.0
REPLAY_ROWS = 2000
REPLAY_REQUESTS_PER_SECOND = 300.0
REPLAY_SECONDS = 120.0
# The same rows again and again would tell nothing new.
REPLAY_ROUNDS = 3
# Of the analysis: a metrics source sees a request only once it was scraped.
SCRAPE_SECONDS = 30.0


@dataclass(frozen=True)
class _Canary:
    """A service with a candidate, and what is asked about it."""

    service: str
    live: Side
    candidate: Side
    opened: Opened
    limits: Limits
    since: datetime
    steps: int
    log: str
    url: str = ""
    labels: str | Path = ""
    # What was found out once: it does not change while one waits.
    fixed: list[Finding] = field(default_factory=list)

    @property
    def alpha(self) -> float:
        return ALPHA / self.steps

    @property
    def needed(self) -> int:
        return self.limits.requests_needed(self.steps)


def analyse_canary(
    service: str,
    decision: str | Path,
    page: str | Path,
    limits: Limits | None = None,
    wait_seconds: float = 60.0,
    replay: bool = False,
    namespace: str = "",
    timeout_seconds: float = TIMEOUT_SECONDS,
    *,
    steps: int = 1,
    source: Source | None = None,
    labels: str | Path = "",
) -> Decision:
    """Judges the candidate of a service by live requests and by the same rows sent to both.

    It ends as soon as the candidate is surely worse, or passes; else after `wait_seconds`.

    Args:
        service: Name of the service.
        decision: Where the decision goes, a JSON file.
        page: Where the HTML page goes.
        limits: What the candidate may differ by.
        wait_seconds: Longest wait for enough live requests.
        replay: Whether to send logged requests again (else the package's reference rows) while
            live requests are too few to tell. They get request ids that begin with `replay-`, and
            they are logged like all others.
        namespace: Kubernetes namespace; empty for the current one.
        timeout_seconds: Longest wait until both versions are ready.
        steps: How many steps of the rollout are judged, each by its own requests: together they
            are wrong no more often than one alone.
        source: Where the evidence is from; the inference log when absent.
        labels: Dataset that join_labels made of the inference log, to compare losses on labelled
            rows; empty for none.

    Returns:
        `pass`; `fail` when the candidate is surely worse than allowed; `no_data` when the
        evidence does not tell yet.

    Raises:
        InputError: If there is no service, it has no candidate, or the source cannot be asked.
    """
    backend = connect(namespace)
    manifest = _with_candidate(backend, service)
    record = record_of(manifest)
    assert record.candidate is not None
    url = ensure_live(backend, manifest, timeout_seconds)
    try:
        generation = manifest["metadata"]["generation"]
        wait_for_version(backend, service, generation, record.candidate, timeout_seconds)
    except RolloutError as error:
        broken = found(FAIL, "ready", "predictor", None, None, str(error))
        made = Decision("canary", FAIL, [broken.reason], baseline=record.stable.storage_uri)
        write_decision(made, decision, page)
        return made
    canary = _open(backend, manifest, limits or Limits(), steps, source or Source(), url, labels)
    live, candidate = canary.live, canary.candidate
    canary.fixed.extend(
        compare_models(service, live, candidate, canary.limits, canary.alpha, labels)
    )
    look, findings = _watch(canary, wait_seconds)
    deadline = time.monotonic() + REPLAY_SECONDS
    for _ in range(REPLAY_ROUNDS if replay and 0 < canary.candidate.traffic < 100 else 0):
        if _outcome(findings) != NO_DATA or not _replay(canary, look, deadline):
            break
        backend.flush_log(service)
        by_log = source is None or source.kind == LOG
        look, findings = _watch(canary, 0.0 if by_log else SCRAPE_SECONDS)
    made = _decide(canary, findings)
    write_decision(made, decision)
    write_text(page, render(made, _details(canary, look, findings)))
    return made


def harmful_now(
    service: str,
    limits: Limits | None = None,
    namespace: str = "",
    *,
    steps: int = 1,
    source: Source | None = None,
) -> Decision | None:
    """Looks once, sends nothing and waits for nothing: is the candidate surely worse by now?

    To be asked again and again while a candidate bakes, so that a bad one is gone early. The
    model servers' own metrics have no memory of when the step began: of them it tells nothing.

    Returns:
        A decision that fails, or None.

    Raises:
        InputError: If there is no service, it has no candidate, or the source cannot be asked.
    """
    source = source or Source()
    if source.kind == "metrics":
        return None
    backend = connect(namespace)
    manifest = _with_candidate(backend, service)
    canary = _open(backend, manifest, limits or Limits(), steps, source)
    _, findings = _look(canary)
    made = _decide(canary, findings)
    return made if made.decision == FAIL else None


def _with_candidate(backend: Backend, service: str) -> Manifest:
    manifest = require_service(backend, service)
    if record_of(manifest).candidate is None:
        raise InputError(
            f"The service {service!r} has no candidate to analyse; deploy one beside the live "
            "version first."
        )
    return manifest


def _open(
    backend: Backend,
    manifest: Manifest,
    limits: Limits,
    steps: int,
    source: Source,
    url: str = "",
    labels: str | Path = "",
) -> _Canary:
    if steps < 1:
        raise InputError(
            f"steps is {steps}; it is the number of steps that are judged, at least 1."
        )
    service, record = manifest["metadata"]["name"], record_of(manifest)
    assert record.candidate is not None
    log = (manifest["metadata"].get("annotations") or {}).get(LOG_ANNOTATION, "")
    since = parse_time(record.changed_at, "changed_at of the deployment record")
    traffic, running = traffic_of(manifest), backend.status(service).predictors
    sides = []
    for target in (record.stable, record.candidate):
        name = target.predictor["name"]
        predictor = running.get(name)
        sides.append(
            Side(
                target,
                read_package(target.storage_uri),
                traffic[name],
                predictor.url if predictor else "",
                (predictor.workload if predictor else "") or f"{service}-{name}-predictor",
            )
        )
    live, candidate = sides
    opened = open_source(source, service, backend.namespace, log, live, candidate, since)
    return _Canary(service, live, candidate, opened, limits, since, steps, log, url, labels)


def _look(canary: _Canary) -> tuple[Look, list[Finding]]:
    """Reads the evidence and judges it; what was found out once comes along."""
    look = canary.opened.look()
    findings = [*canary.fixed, *check_volume(look.live, look.candidate, canary.needed)]
    task, limits, alpha = canary.live.package.task, canary.limits, canary.alpha
    if canary.candidate.package.task == task:
        findings = check_traffic(look.live, look.candidate, task, limits, alpha) + findings
        if look.shadow.live:
            findings.insert(0, check_shadow(look.shadow, task, limits.max_disagreement, alpha))
    return look, findings


def _watch(canary: _Canary, wait_seconds: float) -> tuple[Look, list[Finding]]:
    """Looks again and again until the evidence tells, or time is up."""
    started = told = time.monotonic()
    while True:
        look, findings = _look(canary)
        now = time.monotonic()
        if _outcome(findings) != NO_DATA or now - started >= wait_seconds:
            return look, findings
        if now - told > PROGRESS_SECONDS:
            told = now
            counts = " and ".join(
                f"{one.requests} to version {one.version}" for one in (look.live, look.candidate)
            )
            print(
                f"{canary.service}: {now - started:.0f} s, {counts}, of {canary.needed} each",
                flush=True,
            )
        time.sleep(min(POLL_SECONDS, wait_seconds))


def _outcome(findings: list[Finding]) -> str:
    outcomes = {finding.outcome for finding in findings}
    return next((outcome for outcome in (FAIL, NO_DATA) if outcome in outcomes), PASS)


def _decide(canary: _Canary, findings: list[Finding]) -> Decision:
    reasons = [finding.reason for finding in findings]
    baseline = canary.live.target.storage_uri
    return Decision("canary", _outcome(findings), reasons, baseline=baseline)


def _details(canary: _Canary, look: Look, findings: list[Finding]) -> str:
    unchecked = [canary.opened.unknown] if canary.opened.unknown else []
    judged = {finding.reason.metric for finding in findings if finding.reason.check == "latency"}
    silent = [f"p{100 * q:g}" for q in QUANTILES if f"p{100 * q:g} ms" not in judged]
    if silent:
        unchecked.append(
            f"The latency's {' and '.join(silent)}: the requests so far do not bound "
            f"{'it' if len(silent) == 1 else 'them'} for both versions."
        )
    if not canary.labels:
        unchecked.append("The loss on labelled rows: no labels were given.")
    return details(
        canary.live,
        canary.candidate,
        look,
        canary.since,
        canary.alpha,
        canary.opened.told,
        unchecked,
    )


def _replay(canary: _Canary, look: Look, deadline: float) -> bool:
    """Sends rows until both versions have what they lack; False when nothing was sent."""
    live, needed = canary.live, canary.needed
    columns = request_columns(live.package)
    rows: list[Instance] = []
    source = "logged requests"
    if canary.log:
        rows = newest_instances(canary.log, columns, live.package.timestamp, REPLAY_ROWS)
    if not rows:
        rows, _ = package_rows(live.target.storage_uri, REFERENCE, columns, REPLAY_ROWS)
        source = "the live version's reference rows"
    if not rows:
        return False
    lacking = {one.version: needed - one.requests for one in (look.live, look.candidate)}
    if max(lacking.values()) <= 0:
        # Enough to judge by, but they do not tell yet: as many again.
        lacking = {look.candidate.version: needed}
    print(f"{canary.service}: too few live requests; sending {source} again.", flush=True)

    def enough(replayed: Replayed) -> bool:
        # A failed request tells no version here; the log has it.
        reached = all(replayed.versions[version] >= count for version, count in lacking.items())
        return reached or time.monotonic() > deadline or replayed.failed.total() > needed

    replayed = send(
        ([row] for row in itertools.cycle(rows)),
        canary.url,
        canary.service,
        REPLAYED_PREFIX,
        REPLAY_REQUESTS_PER_SECOND,
        enough,
    )
    print(f"{canary.service}: replayed: {replayed}", flush=True)
    return replayed.requests > 0
