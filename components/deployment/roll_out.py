# SPDX-License-Identifier: Apache-2.0
"""The whole rollout of a model as one step: dark, smoke test, canary by steps, promotion.

It ends with the model live, or with everything as it was; and it says why. Killed at any point it
goes on where it was when it is run again.
"""

import html
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kfloop.components.contracts.decision import (
    FAIL,
    NO_DATA,
    PASS,
    Decision,
    Reason,
    render,
    write_decision,
)
from kfloop.components.contracts.deployment_record import DeploymentRecord, Rollout, write_record
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import write_text
from kfloop.components.deployment import acts, canary, plan
from kfloop.components.deployment.backend import Backend, connect
from kfloop.components.deployment.canary_checks import Limits
from kfloop.components.deployment.canary_sources import Source
from kfloop.components.deployment.dry_run import preview
from kfloop.components.deployment.manifest import RESTORING, record_of
from kfloop.components.deployment.resources import predictor_options
from kfloop.components.deployment.rollout import live_manifest
from kfloop.components.deployment.settings import percents_of
from kfloop.components.deployment.smoke_test import TOLERANCE, smoke_test_model
from kfloop.components.deployment.wait import TIMEOUT_SECONDS
from kfloop.components.deployment.walk import Judged, Walk, forecast

PROMOTED, DEPLOYED, ROLLED_BACK, REMOVED = "promoted", "deployed", "rolled_back", "removed"
DRY_RUN = "dry_run"
STEPS = (5, 25, 50, 100)


@dataclass(frozen=True)
class Analysis:
    """How each step is judged.

    Attributes:
        limits: What the candidate may differ by.
        wait_seconds: Longest wait for enough requests.
        replay: Whether logged requests are sent again when live ones are too few.
        source: Where the numbers of live traffic come from; None for the inference log.
        tolerance: Largest difference to the golden predictions in the smoke test.
    """

    limits: Limits = field(default_factory=Limits)
    wait_seconds: float = 60.0
    replay: bool = False
    source: Source | None = None
    tolerance: float = TOLERANCE


def roll_out_model(
    model_uri: str,
    service: str,
    decision: str | Path,
    page: str | Path,
    record: str | Path,
    steps: Sequence[float] = STEPS,
    bake_seconds: float = 0.0,
    analysis: Analysis | None = None,
    inference_log: str = "",
    namespace: str = "",
    timeout_seconds: float = TIMEOUT_SECONDS,
    *,
    predictor: Mapping[str, Any] | None = None,
    run_id: str = "",
    gate_decision: str = "",
    dry_run: bool = False,
) -> Decision:
    """Rolls a published model out and keeps it only if it serves well beside the live one.

    A first version is deployed alone and tested; there is nothing to compare it with. Any other
    begins with no requests, is tested by its own address, gets its shares one after the other and
    is judged at each; then it is promoted. What does not pass is rolled back.

    Args:
        model_uri: What publish_model returned.
        service: Name of the service; it is created when there is none.
        decision: Where the decision goes, a JSON file.
        page: Where the HTML page goes, with every step and its analysis.
        record: Where the deployment record goes, a JSON file.
        steps: Shares of the requests, in percent, rising. 100 is the promotion, which comes last
            whether it is named or not; so `[]` promotes what passed the smoke test.
        bake_seconds: How long each share lasts at least, before it is judged.
        analysis: How each step is judged.
        inference_log: Where the service logs; empty keeps its own place.
        namespace: Kubernetes namespace; empty for the current one.
        timeout_seconds: Longest wait until a version is ready or a share in effect.
        predictor: Resources, autoscaling and the like; see `resources.predictor_options`.
        run_id: Id of the pipeline run: a run that is tried again does not try again what it
            rolled back.
        gate_decision: What the gate said of the model, for the lineage.
        dry_run: Print what would change, and change nothing; the decision is `no_data`.

    Returns:
        `pass` with the action `promoted` or `deployed` (a first version); `fail`, or `no_data`
        when there were too few requests to judge by, with the action `rolled_back` or `removed`.

    Raises:
        InputError: If the settings cannot be, the live version does not answer, or the cluster
            does not follow; the next run goes on from there.
    """
    if bake_seconds < 0:
        raise InputError(f"bake_seconds is {bake_seconds:g}; give 0 or more.")
    backend = connect(namespace)
    percents = percents_of(steps)
    if percents and not backend.splits_traffic(service):
        raise InputError(
            f"The service {service!r} cannot give a candidate a share of the requests here, so "
            f"steps {list(percents)} are not possible; give steps [] to promote after the smoke "
            "test, or turn the cluster's traffic split on."
        )
    manifest = backend.get(service)
    log = acts.log_of(backend, service, manifest, inference_log)
    options = predictor_options(predictor or {})
    target = acts.describe_target(backend, model_uri, options, log, run_id, gate_decision)
    todo = plan.Plan(target, percents, bake_seconds, run_id)
    if dry_run:
        return _previewed(backend, service, todo, log, decision, page, record)
    before = record_of(manifest) if manifest else None
    if before and not _finishes_itself(before, target.storage_uri):
        live_manifest(backend, service, timeout_seconds)
    with tempfile.TemporaryDirectory() as scratch:
        judges = _Judges(
            service,
            model_uri,
            namespace,
            timeout_seconds,
            analysis or Analysis(),
            max(1, len(percents)),
            Path(scratch),
        )
        walk = Walk(backend, service, todo, judges, log, timeout_seconds)
        after = walk.run()
    made = verdict(walk.rollout, after, target.storage_uri, walk.trouble)
    write_decision(made, decision)
    write_text(page, render(made, pages_html(walk.rollout, walk.pages)))
    if after is None:
        after = DeploymentRecord(
            service, backend.namespace, ROLLED_BACK, target, reason=walk.trouble
        )
        after.undone, after.changed_at, after.rollout = (
            target.storage_uri,
            acts.now(),
            walk.rollout,
        )
    write_record(after, record)
    return made


def _finishes_itself(before: DeploymentRecord, uri: str) -> bool:
    """Whether the walk itself repairs what is live: a roll back or a promotion that was killed."""
    promoted = before.stable.storage_uri == uri and before.previous is not None
    return before.state == RESTORING or promoted


@dataclass(frozen=True)
class _Judges:
    """The smoke test and the canary analysis, as the walk asks for them."""

    service: str
    model_uri: str
    namespace: str
    timeout_seconds: float
    analysis: Analysis
    steps: int
    scratch: Path

    def smoke_test(self) -> Judged:
        made = smoke_test_model(
            self.service,
            self.model_uri,
            self.scratch / "smoke.json",
            self.namespace,
            self.analysis.tolerance,
            self.timeout_seconds,
        )
        return made, render(made)

    def analyse(self) -> Judged:
        page = self.scratch / "page.html"
        made = canary.analyse_canary(
            self.service,
            self.scratch / "canary.json",
            page,
            self.analysis.limits,
            self.analysis.wait_seconds,
            self.analysis.replay,
            self.namespace,
            self.timeout_seconds,
            steps=self.steps,
            source=self.analysis.source,
        )
        return made, page.read_text(encoding="utf-8")

    def harmful_now(self) -> Decision | None:
        return canary.harmful_now(
            self.service,
            self.analysis.limits,
            self.namespace,
            steps=self.steps,
            source=self.analysis.source,
        )


def verdict(
    rollout: Rollout | None, after: DeploymentRecord | None, uri: str, trouble: str = ""
) -> Decision:
    """Returns the decision of a rollout that is over.

    Args:
        rollout: How far it came; None when it had not begun.
        after: The record at its end; None when the service was removed.
        uri: The model that was rolled out.
        trouble: Why a version did not come up, if one did not.
    """
    reasons = _reasons(rollout)
    if trouble:
        reasons.insert(0, Reason("ready", "predictor", None, None, False, trouble.rstrip(".")))
    if after is not None and after.stable.storage_uri == uri:
        action = PROMOTED if after.previous else DEPLOYED
        beside = f", before it was {after.previous.storage_uri}" if after.previous else ""
        why = f"{uri} is live{beside}"
        reasons.append(Reason("live", "storage_uri", uri, uri, True, why))
        baseline = after.previous.storage_uri if after.previous else None
        return Decision("rollout", PASS, reasons, action=action, baseline=baseline)
    action = ROLLED_BACK if after is not None else REMOVED
    if after is not None and all(reason.passed for reason in reasons):
        why = f"somebody else took it away: {after.reason or 'no reason given'}"
        reasons.append(Reason("taken_away", "candidate", None, None, False, why))
    failed = [reason for reason in reasons if not reason.passed]
    undecided = bool(failed) and all(reason.value == NO_DATA for reason in failed)
    live = after.stable.storage_uri if after is not None else None
    return Decision(
        "rollout", NO_DATA if undecided else FAIL, reasons, action=action, baseline=live
    )


def _reasons(rollout: Rollout | None) -> list[Reason]:
    if rollout is None:
        return []
    smoke = rollout.smoke_summary.removeprefix("smoke_test: ")
    told = [("smoke_test", "smoke test", rollout.smoke_test, smoke)]
    told += [("canary", f"{s.percent} %", s.decision, s.summary) for s in rollout.steps]
    return [
        Reason(check, "decision", decision, PASS, decision == PASS, f"{place}: {why}", place)
        for check, place, decision, why in told
        if decision
    ]


def pages_html(rollout: Rollout | None, pages: Sequence[tuple[str, str]]) -> str:
    """Returns the steps as a table, and below it the page of each judgement of this process."""
    rows = ""
    for step in rollout.steps if rollout else []:
        cells = (f"{step.percent} %", step.began_at or "–", step.decision or "–", step.summary)
        rows += "<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in cells) + "</tr>"
    table = f"<h2>Steps</h2><table><tr><th>share<th>since<th>decision<th>why</tr>{rows}</table>"
    frames = "".join(
        f"<details{' open' if number == len(pages) else ''}><summary>{html.escape(title)}</summary>"
        f'<iframe srcdoc="{html.escape(page)}" style="width:100%;height:36rem;border:0"></iframe>'
        "</details>"
        for number, (title, page) in enumerate(pages, 1)
    )
    return (table if rows else "") + frames


def _previewed(
    backend: Backend,
    service: str,
    todo: plan.Plan,
    log: str,
    decision: str | Path,
    page: str | Path,
    record: str | Path,
) -> Decision:
    """Prints what a rollout that passes every step would change; writes only its outputs."""
    before, after = forecast(backend, service, todo, log)
    shares = ", ".join(f"{percent} %" for percent in todo.percents) or "no share"
    order = (
        f"dark, smoke test, then {shares}, each for {todo.bake_seconds:g} s and judged, then the "
        "promotion"
        if before is not None
        else "alone, as the first version, and a smoke test"
    )
    told = f"{todo.target.storage_uri} would go to {service}: {order}"
    text = preview(backend, before, after)
    print(f"{told}.\n{text}", flush=True)
    reason = Reason("dry_run", "rollout", None, None, False, f"nothing was changed: {told}")
    made = Decision("rollout", NO_DATA, [reason], action=DRY_RUN)
    write_decision(made, decision)
    write_text(page, render(made, f"<pre>{html.escape(text)}</pre>"))
    write_record(record_of(after), record)
    return made
