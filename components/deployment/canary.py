"""The canary analysis: a candidate against the live version, on the same service."""

import html
import itertools
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from kfloop.components.contracts.charts import Series, line_chart
from kfloop.components.contracts.dataset import parse_time
from kfloop.components.contracts.decision import (
    FAIL,
    NO_DATA,
    PASS,
    Decision,
    Reason,
    render,
    write_decision,
)
from kfloop.components.contracts.deployment_record import Target
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import write_text
from kfloop.components.contracts.inference_log import REPLAYED_PREFIX
from kfloop.components.contracts.model_package import REFERENCE, ModelPackage
from kfloop.components.deployment.backend import connect, require_service
from kfloop.components.deployment.canary_checks import (
    Limits,
    check_agreement,
    check_traffic,
    check_volume,
    class_shares,
    prediction_stability,
)
from kfloop.components.deployment.canary_evidence import (
    Evidence,
    newest_instances,
    read_evidence,
)
from kfloop.components.deployment.client import ServiceClient
from kfloop.components.deployment.manifest import LOG_ANNOTATION, record_of, traffic_of
from kfloop.components.deployment.packages import Instance, package_rows, read_package
from kfloop.components.deployment.replay import Replayed, send
from kfloop.components.deployment.smoke_test import request_columns
from kfloop.components.deployment.wait import (
    TIMEOUT_SECONDS,
    RolloutError,
    ensure_live,
    wait_for_version,
)

POLL_SECONDS = 1.0
PROGRESS_SECONDS = 5.0
AGREEMENT_ROWS = 200
AGREEMENT_BATCH = 50
REPLAY_ROWS = 2000
REPLAY_REQUESTS_PER_SECOND = 300.0
REPLAY_SECONDS = 120.0


@dataclass(frozen=True)
class _Side:
    """One version under comparison."""

    target: Target
    package: ModelPackage
    traffic: int
    url: str


def analyse_canary(
    service: str,
    decision: str | Path,
    page: str | Path,
    limits: Limits | None = None,
    wait_seconds: float = 60.0,
    replay: bool = False,
    namespace: str = "",
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Decision:
    """Judges the candidate of a service by live requests and by the same rows sent to both.

    Args:
        service: Name of the service.
        decision: Where the decision goes, a JSON file.
        page: Where the HTML page goes.
        limits: What the candidate may differ by.
        wait_seconds: Longest wait for enough live requests.
        replay: Whether to send logged requests again (else the package's reference rows) when
            live requests are too few. They get request ids that begin with `replay-`, and they
            are logged like all others.
        namespace: Kubernetes namespace; empty for the current one.
        timeout_seconds: Longest wait until both versions are ready.

    Returns:
        `pass`, `fail`, or `no_data` when there were too few requests to judge by and nothing
        failed.

    Raises:
        InputError: If there is no service, or it has no candidate.
    """
    limits = limits or Limits()
    backend = connect(namespace)
    manifest = require_service(backend, service)
    record = record_of(manifest)
    if record.candidate is None:
        raise InputError(
            f"The service {service!r} has no candidate to analyse; deploy one beside the live "
            "version first."
        )
    url = ensure_live(backend, manifest, timeout_seconds)
    log = (manifest["metadata"].get("annotations") or {}).get(LOG_ANNOTATION, "")
    since = parse_time(record.changed_at, "changed_at of the deployment record")
    try:
        generation = manifest["metadata"]["generation"]
        wait_for_version(backend, service, generation, record.candidate, timeout_seconds)
    except RolloutError as error:
        reason = Reason("ready", "predictor", None, None, False, str(error))
        made = Decision("canary", FAIL, [reason], baseline=record.stable.storage_uri)
        write_decision(made, decision, page)
        return made

    traffic, running = traffic_of(manifest), backend.status(service).predictors
    live, candidate = (
        _Side(
            target,
            read_package(target.storage_uri),
            traffic[target.predictor["name"]],
            running[target.predictor["name"]].url,
        )
        for target in (record.stable, record.candidate)
    )

    def evidence() -> tuple[Evidence, Evidence]:
        versions = [live.target.version, candidate.target.version]
        first, second = read_evidence(log, versions, since) if log else map(Evidence, versions)
        return first, second

    minimum = limits.requests_needed
    found = _wait(service, evidence, minimum, wait_seconds)
    if replay and log and _too_few(found, minimum) and 0 < candidate.traffic < 100:
        _replay(service, url, log, live, found, minimum)
        backend.flush_log(service)
        found = evidence()
    made = _judge(service, live, candidate, found, limits)
    write_decision(made, decision)
    write_text(page, render(made, _details(live, candidate, *found, since)))
    return made


def _too_few(found: tuple[Evidence, Evidence], minimum: int) -> bool:
    return min(evidence.requests for evidence in found) < minimum


def _wait(
    service: str,
    evidence: Callable[[], tuple[Evidence, Evidence]],
    minimum: int,
    wait_seconds: float,
) -> tuple[Evidence, Evidence]:
    started = told = time.monotonic()
    while True:
        found = evidence()
        now = time.monotonic()
        if not _too_few(found, minimum) or now - started >= wait_seconds:
            return found
        if now - told > PROGRESS_SECONDS:
            told = now
            counts = " and ".join(f"{one.requests} to version {one.version}" for one in found)
            print(f"{service}: {now - started:.0f} s, {counts}, of {minimum} each", flush=True)
        time.sleep(min(POLL_SECONDS, wait_seconds))


def _replay(
    service: str,
    url: str,
    log: str,
    live: _Side,
    found: tuple[Evidence, Evidence],
    minimum: int,
) -> None:
    columns = request_columns(live.package)
    rows = newest_instances(log, columns, live.package.timestamp, REPLAY_ROWS)
    source = "logged requests"
    if not rows:
        rows, _ = package_rows(live.target.storage_uri, REFERENCE, columns, REPLAY_ROWS)
        source = "the live version's reference rows"
    if not rows:
        return
    lacking = {one.version: minimum - one.requests for one in found}
    print(f"{service}: too few live requests; sending {source} again.", flush=True)
    deadline = time.monotonic() + REPLAY_SECONDS

    def enough(replayed: Replayed) -> bool:
        # A failed request tells no version here; the log has it.
        reached = all(replayed.versions[version] >= count for version, count in lacking.items())
        return reached or time.monotonic() > deadline or replayed.failed.total() > minimum

    replayed = send(
        ([row] for row in itertools.cycle(rows)),
        url,
        service,
        REPLAYED_PREFIX,
        REPLAY_REQUESTS_PER_SECOND,
        enough,
    )
    print(f"{service}: replayed: {replayed}", flush=True)


def _judge(
    service: str,
    live: _Side,
    candidate: _Side,
    found: tuple[Evidence, Evidence],
    limits: Limits,
) -> Decision:
    volume = check_volume(*found, limits)
    reasons = [_check_task(live, candidate)]
    if reasons[0].passed:
        reasons.append(_agreement(service, live, candidate, limits.max_disagreement))
        # Of fewer requests the bounds say nothing: that is no_data, not the candidate's failure.
        if not _too_few(found, limits.requests_needed):
            reasons += check_traffic(*found, live.package.task, limits)
    if not all(reason.passed for reason in reasons):
        outcome = FAIL
    else:
        outcome = PASS if all(reason.passed for reason in volume) else NO_DATA
    # What was found first: a summary tells the first reasons.
    reasons = [*reasons[1:], reasons[0], *volume]
    return Decision("canary", outcome, reasons, baseline=live.target.storage_uri)


def _check_task(live: _Side, candidate: _Side) -> Reason:
    before, after = live.package, candidate.package
    same = (before.task, before.classes) == (after.task, after.classes)
    why = f"the candidate is {_task(after)}, live {_task(before)}"
    return Reason("task", "task", after.task, before.task, same, why)


def _task(package: ModelPackage) -> str:
    return " of ".join(filter(None, [package.task, ", ".join(package.classes)]))


def _agreement(service: str, live: _Side, candidate: _Side, limit: float) -> Reason:
    columns = list(dict.fromkeys([*candidate.package.feature_names, *live.package.feature_names]))
    rows, _ = package_rows(candidate.target.storage_uri, REFERENCE, columns, AGREEMENT_ROWS)
    answers = []
    for side in (live, candidate):
        predictions, error = _ask(service, side, rows)
        if error:
            why = f"version {side.target.version} does not answer the reference rows: {error}"
            return Reason("agreement", "prediction", None, limit, False, why)
        answers.append(predictions)
    if not rows:
        why = "the candidate's package has no reference rows"
        return Reason("agreement", "prediction", None, limit, False, why)
    return check_agreement(answers[0], answers[1], live.package.task, limit)


def _ask(service: str, side: _Side, rows: list[Instance]) -> tuple[list[Any], str]:
    """Returns a version's predictions, or why there are none."""
    predictions: list[Any] = []
    request_id = f"agreement-{uuid.uuid4().hex}"
    with ServiceClient(side.url, service) as client:
        for start in range(0, len(rows), AGREEMENT_BATCH):
            batch = [
                {name: row.get(name) for name in side.package.feature_names}
                for row in rows[start : start + AGREEMENT_BATCH]
            ]
            answer = client.predict(batch, request_id)
            if not answer.ok:
                return [], f"{answer.status} {answer.error}"
            predictions += answer.predictions
    return predictions, ""


def _details(
    live: _Side, candidate: _Side, before: Evidence, after: Evidence, since: datetime
) -> str:
    """Returns the page's table of both versions, and their predictions as a chart."""
    tasks = {live.package.task, candidate.package.task}
    names = [f"live: version {before.version}", f"candidate: version {after.version}"]
    table: list[tuple[str, list[str]]] = [
        ("share of the traffic", [f"{side.traffic} %" for side in (live, candidate)]),
        ("requests", [str(one.requests) for one in (before, after)]),
        ("failed", [f"{one.errors} ({one.error_rate:.2%})" for one in (before, after)]),
    ]
    for quantile in (0.5, 0.95, 0.99):
        label = f"p{100 * quantile:.0f} latency"
        values = [f"{one.latency_ms(quantile):.1f} ms" for one in (before, after)]
        table.append((label, values))
    chart = ""
    if "multiclass" not in tasks and len(before.numbers) and len(after.numbers):
        spread = [f"{x.numbers.mean():.4g} ± {x.numbers.std():.3g}" for x in (before, after)]
        table.append(("mean prediction", spread))
        psi = prediction_stability(before, after)
        table.append(("prediction PSI to live", ["–", f"{psi:.3f}"]))
        chart = _distribution_chart(names, before, after)
    elif tasks == {"multiclass"}:
        shares = class_shares(before), class_shares(after)
        for name in sorted({*shares[0], *shares[1]}):
            table.append((f"class {name}", [f"{share.get(name, 0):.1%}" for share in shares]))
    head = "".join(f"<th>{html.escape(name)}" for name in names)
    body = "".join(
        f"<tr><td>{html.escape(label)}" + "".join(f"<td>{html.escape(v)}" for v in values) + "</tr>"
        for label, values in table
    )
    return (
        f"<h2>Since {since.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC</h2>"
        f"<table><tr><th>{head}</tr>{body}</table>{chart}"
    )


def _distribution_chart(names: list[str], before: Evidence, after: Evidence) -> str:
    levels = np.linspace(0, 1, 101)
    series = []
    for name, one in zip(names, (before, after), strict=True):
        values = np.quantile(one.numbers, levels)
        series.append(Series(name, list(zip(values.tolist(), levels.tolist(), strict=True))))
    return line_chart("Predictions on live requests", "prediction", "share below", series)
