# SPDX-License-Identifier: Apache-2.0
"""Walking a rollout: one action after another, until it is over.

Everything it must remember is in the deployment record: killed at any point, it goes on from there.
The judges are given, so that it can be tested without a model.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Protocol

from kfloop.components.contracts.decision import FAIL, NO_DATA, Decision, Reason, render
from kfloop.components.contracts.deployment_record import DeploymentRecord, Rollout
from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment import acts, plan
from kfloop.components.deployment.backend import Backend, ConflictError, require_service
from kfloop.components.deployment.manifest import (
    PROMOTED,
    RESTORING,
    Manifest,
    promoted,
    record_of,
    restored,
    traffic_of,
    with_canary,
    with_rollout,
)
from kfloop.components.deployment.plan import Action, Plan, next_action
from kfloop.components.deployment.wait import RolloutError, wait_for_version

LOOK_SECONDS = 5.0
CONFLICTS = 10
MOST_ACTIONS = 200
Judged = tuple[Decision, str]


class Judges(Protocol):
    """What decides whether a rollout goes on."""

    def smoke_test(self) -> Judged:
        """Tests the version by its own address; returns the decision and its page."""

    def analyse(self) -> Judged:
        """Judges the candidate against the live version since the step began."""

    def harmful_now(self) -> Decision | None:
        """Returns a failing decision when the candidate is surely worse already, else None."""


@dataclass
class Walk:
    """A rollout in this process.

    Attributes:
        backend: Where the service lives.
        service: Its name.
        plan: What is rolled out, and how.
        judges: What decides.
        log: The inference log of a new service.
        timeout_seconds: Longest wait for each proof.
        rollout: How far it is, as last seen.
        pages: Title and page of each judgement that was made here.
        trouble: Why a version did not come up; empty when all did.
    """

    backend: Backend
    service: str
    plan: Plan
    judges: Judges
    log: str
    timeout_seconds: float
    rollout: Rollout | None = None
    pages: list[tuple[str, str]] = field(default_factory=list)
    trouble: str = ""
    _begun: bool = False
    _proved: set[int] = field(default_factory=set)

    def run(self) -> DeploymentRecord | None:
        """Walks to the end and returns the record, or None when the service was removed.

        Raises:
            InputError: If it cannot go on: the live version does not answer, the service is
                changed by others again and again, or the cluster does not follow. The next run
                goes on from there.
        """
        conflicts = actions = 0
        while conflicts <= CONFLICTS and actions <= MOST_ACTIONS:
            manifest = self.backend.get(self.service)
            action = self._next(manifest)
            # Each look of a bake is one, but their number is bounded by its time.
            actions += action.kind != plan.BAKE
            try:
                if action.kind == plan.DONE:
                    return self._finish(manifest)
                self._do(action, manifest)
            except ConflictError as error:
                conflicts += 1
                acts.say(self.service, f"{str(error).rstrip('.')}; looking again")
            except acts.VersionFailed as error:
                self.trouble = str(error)
                self._begun = True
        raise InputError(
            f"The service {self.service!r} was changed by others again and again while "
            f"{self.plan.target.storage_uri} was rolled out; run this step again."
        )

    def _next(self, manifest: Manifest | None) -> Action:
        record = record_of(manifest) if manifest else None
        if record and record.rollout and record.rollout.model_uri == self._uri:
            self.rollout = record.rollout
        traffic = 0
        if manifest and record and record.candidate:
            traffic = traffic_of(manifest)[record.candidate.predictor["name"]]
        return next_action(record, traffic, self.plan, datetime.now(UTC), self._begun)

    def _do(self, action: Action, manifest: Manifest | None) -> None:
        if action.kind == plan.CREATE or manifest is None:
            self._create()
            return
        step = action.step
        actions: dict[str, Callable[[], object]] = {
            plan.PLACE: lambda: self._place(manifest),
            plan.SMOKE_TEST: lambda: self._smoke_test(manifest),
            plan.SHIFT: lambda: self._shift(manifest, step),
            plan.BAKE: lambda: self._bake(manifest, step),
            plan.ANALYSE: lambda: self._analyse(manifest, step),
            plan.PROMOTE: lambda: acts.promote(self.backend, manifest, self.timeout_seconds),
            plan.NOTE: lambda: self._note_first(manifest),
            plan.TAKE_AWAY: lambda: self._take_away(manifest, action.reason),
            plan.RESTORE: lambda: self._restore(manifest, action.reason),
            plan.REMOVE: lambda: self._remove(action.reason),
        }
        actions[action.kind]()

    @property
    def _uri(self) -> str:
        return self.plan.target.storage_uri

    def _create(self) -> None:
        rollout = self.plan.begun(acts.now())
        edited = acts.first_manifest(
            self.backend, self.service, self.plan.target, self.log, rollout
        )
        acts.create(self.backend, edited, self.timeout_seconds)
        self._begun = True

    def _place(self, manifest: Manifest) -> None:
        before = record_of(manifest).candidate
        if before and before.storage_uri != self._uri:
            acts.say(self.service, f"{before.storage_uri} was left as a canary; it is removed")
        rollout = self.plan.begun(acts.now())
        edited = with_canary(manifest, self.plan.target, 0, acts.now(), rollout)
        acts.place(self.backend, edited, self.timeout_seconds)
        self._begun = True

    def _smoke_test(self, manifest: Manifest) -> None:
        self._begun = True
        made, page = _judged("smoke_test", self.judges.smoke_test)
        self.pages.append((f"Smoke test: {made.decision}", page))
        acts.say(self.service, _summary(made))
        self._note(
            manifest, lambda r: replace(r, smoke_test=made.decision, smoke_summary=_summary(made))
        )

    def _shift(self, manifest: Manifest, index: int) -> None:
        self._begun = True
        rollout = _rollout(manifest)
        percent = rollout.steps[index].percent
        now = acts.now()
        edited = acts.shifted(manifest, percent, plan.with_step(rollout, index, began_at=now))
        # What is written here is proved before it bakes; a killed one is proved by the next run.
        self._proved.discard(index)
        self.backend.apply(edited)
        self._prove(require_service(self.backend, self.service), index)

    def _prove(self, manifest: Manifest, index: int) -> None:
        """Waits until the candidate has its share; a candidate that fails is judged by that."""
        rollout, generation = record_of(manifest).rollout, manifest["metadata"]["generation"]
        if index in self._proved or rollout is None or rollout.model_uri != self._uri:
            return
        percent = rollout.steps[index].percent
        try:
            wait_for_version(
                self.backend,
                self.service,
                generation,
                self.plan.target,
                self.timeout_seconds,
                traffic=percent,
            )
        except RolloutError as error:
            self._note_step(require_service(self.backend, self.service), index, FAIL, str(error))
            return
        self._proved.add(index)
        acts.say(self.service, f"{self._uri} gets {percent} % of the requests")

    def _bake(self, manifest: Manifest, index: int) -> None:
        self._begun = True
        self._prove(manifest, index)
        rollout = _rollout(manifest)
        left = plan.seconds_left(rollout, rollout.steps[index], datetime.now(UTC))
        if index not in self._proved or left <= 0:
            return
        time.sleep(min(LOOK_SECONDS, left))
        harmful = self._harmful_now()
        if harmful is not None:
            percent = rollout.steps[index].percent
            self.pages.append((f"{percent} %: {harmful.decision}, stopped early", render(harmful)))
            self._note_step(manifest, index, harmful.decision, _summary(harmful))

    def _harmful_now(self) -> Decision | None:
        try:
            return self.judges.harmful_now()
        except ConflictError:
            raise
        except InputError as error:
            # The analysis at the end of the step will say it too, if it lasts.
            acts.say(self.service, str(error).rstrip("."))
            return None

    def _analyse(self, manifest: Manifest, index: int) -> None:
        self._begun = True
        self._prove(manifest, index)
        if index not in self._proved:
            return
        made, page = _judged("canary", self.judges.analyse)
        rollout = _rollout(manifest)
        self.pages.append((f"{rollout.steps[index].percent} %: {made.decision}", page))
        self._note_step(manifest, index, made.decision, _summary(made))

    def _note_step(self, manifest: Manifest, index: int, decision: str, summary: str) -> None:
        def noted(rollout: Rollout) -> Rollout:
            return plan.with_step(rollout, index, decision=decision, summary=summary)

        acts.say(self.service, summary.rstrip("."))
        self._note(manifest, noted)

    def _note(self, manifest: Manifest, change: Callable[[Rollout], Rollout]) -> None:
        """Writes how far the rollout is; a manifest that changed meanwhile is a conflict."""
        self.backend.apply(with_rollout(manifest, change(_rollout(manifest))))

    def _note_first(self, manifest: Manifest) -> None:
        self._note(manifest, lambda rollout: replace(rollout, outcome=PROMOTED))

    def _take_away(self, manifest: Manifest, reason: str) -> None:
        self._begun = True
        acts.take_away(self.backend, manifest, reason, self.timeout_seconds)

    def _restore(self, manifest: Manifest, reason: str) -> None:
        acts.restore(self.backend, manifest, reason, self.timeout_seconds)

    def _remove(self, reason: str) -> None:
        self._begun = True
        self.trouble = self.trouble or reason
        self.backend.delete(self.service)
        acts.say(self.service, f"removed: {reason}")

    def _finish(self, manifest: Manifest | None) -> DeploymentRecord | None:
        """Proves what is live; a promotion that was killed and does not come up is undone."""
        if manifest is None:
            return None
        record = record_of(manifest)
        # A write that was killed half way is completed by this.
        generation = self.backend.apply(manifest)
        try:
            wait_for_version(
                self.backend,
                self.service,
                generation,
                record.stable,
                self.timeout_seconds,
                alone=record.candidate is None,
            )
        except RolloutError as error:
            if record.state != PROMOTED or record.stable.storage_uri != self._uri:
                raise
            self.trouble = f"promotion failed: {acts.told(error)}"
            acts.restore(self.backend, manifest, self.trouble, self.timeout_seconds)
        return record_of(require_service(self.backend, self.service))


def forecast(
    backend: Backend, service: str, plan_: Plan, log: str
) -> tuple[Manifest | None, Manifest]:
    """Returns a service as it is and as a rollout that passes every step would leave it."""
    manifest = backend.get(service)
    rollout = plan_.begun(acts.now())
    if manifest is None:
        return None, acts.first_manifest(backend, service, plan_.target, log, rollout)
    record = record_of(manifest)
    if record.state == RESTORING:
        return manifest, restored(manifest, record.reason, acts.now())
    if record.stable.storage_uri == plan_.target.storage_uri:
        return manifest, manifest
    beside = with_canary(manifest, plan_.target, 0, acts.now(), rollout)
    return manifest, promoted(beside, acts.now())


def _judged(gate: str, judge: Callable[[], Judged]) -> Judged:
    """Judges; what cannot be judged is `no_data`, so that no candidate is left half way."""
    try:
        return judge()
    except ConflictError:
        raise
    except InputError as error:
        why = f"it could not be judged: {str(error).rstrip('.')}"
        made = Decision(gate, NO_DATA, [Reason("judged", gate, None, None, False, why)])
        return made, render(made)


def _rollout(manifest: Manifest) -> Rollout:
    found = record_of(manifest).rollout
    assert found is not None
    return found


def _summary(made: Decision) -> str:
    return plan.shortened(made.summary)
