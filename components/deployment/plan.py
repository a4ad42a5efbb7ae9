# SPDX-License-Identifier: Apache-2.0
"""What a rollout does next, from what the deployment record says. Pure: no clock, no cluster.

The order is: dark (0 %), smoke test, each percentage with its bake and its analysis, promotion. As
it is worked out anew from the record before each action, a rollout that was killed goes on where it
was, and one that somebody else ended is over.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from kfloop.components.contracts.dataset import parse_time
from kfloop.components.contracts.decision import PASS
from kfloop.components.contracts.deployment_record import DeploymentRecord, Rollout, Step, Target
from kfloop.components.deployment.manifest import RESTORING, ROLLED_BACK

CREATE, PLACE, SMOKE_TEST, SHIFT = "create", "place", "smoke_test", "shift"
BAKE, ANALYSE, PROMOTE, NOTE = "bake", "analyse", "promote", "note"
TAKE_AWAY, RESTORE, REMOVE, DONE = "take_away", "restore", "remove", "done"
SUMMARY_LENGTH = 400


@dataclass(frozen=True)
class Plan:
    """What is to be rolled out, and how.

    Attributes:
        target: The version.
        percents: Its shares of the requests below 100, rising; may be empty.
        bake_seconds: How long each share lasts at least.
        run_id: Id of the pipeline run; the same run does not try again what it rolled back.
    """

    target: Target
    percents: tuple[int, ...]
    bake_seconds: float
    run_id: str = ""

    def begun(self, now: str) -> Rollout:
        """Returns its rollout at the beginning."""
        steps = [Step(percent) for percent in self.percents]
        return Rollout(self.target.storage_uri, self.run_id, now, self.bake_seconds, steps)


@dataclass(frozen=True)
class Action:
    """The next thing to do.

    Attributes:
        kind: One of the constants of this module.
        step: Index of the step that it is about.
        reason: Why, where a candidate is taken away.
    """

    kind: str
    step: int = 0
    reason: str = ""


def next_action(
    record: DeploymentRecord | None, traffic: int, plan: Plan, now: datetime, begun: bool
) -> Action:
    """Says what a rollout does next.

    Args:
        record: What the service is; None when there is none.
        traffic: The candidate's share of the requests.
        plan: What is to be rolled out.
        now: The time.
        begun: Whether this process has put the version there already. If it is gone then, somebody
            else took it away, and it is not put there again.
    """
    uri = plan.target.storage_uri
    if record is None:
        return Action(DONE) if begun else Action(CREATE)
    if record.state == RESTORING:
        return Action(RESTORE)
    rollout = record.rollout if record.rollout and record.rollout.model_uri == uri else None
    if record.stable.storage_uri == uri:
        return _when_live(record, rollout)
    if record.candidate is None or record.candidate.storage_uri != uri:
        same_run = bool(rollout and plan.run_id and rollout.run_id == plan.run_id)
        over = same_run and rollout is not None and rollout.outcome == ROLLED_BACK
        return Action(DONE) if begun or over else Action(PLACE)
    same = _settings(record.candidate) == _settings(plan.target)
    if rollout is None or rollout.outcome or not _fits(rollout, plan) or not same:
        return Action(PLACE)
    return _when_candidate(rollout, traffic, now)


def _when_live(record: DeploymentRecord, rollout: Rollout | None) -> Action:
    if rollout is None or rollout.outcome:
        return Action(DONE)
    # A first version: it is live before it could be tested.
    if not rollout.smoke_test:
        return Action(SMOKE_TEST)
    if rollout.smoke_test == PASS:
        return Action(NOTE)
    return Action(RESTORE if record.previous else REMOVE, reason=failure(rollout))


def _when_candidate(rollout: Rollout, traffic: int, now: datetime) -> Action:
    if not rollout.smoke_test:
        return Action(SMOKE_TEST)
    if failure(rollout):
        return Action(TAKE_AWAY, reason=failure(rollout))
    for index, step in enumerate(rollout.steps):
        if step.decision:
            continue
        if not step.began_at or traffic != step.percent:
            return Action(SHIFT, index)
        if seconds_left(rollout, step, now) > 0:
            return Action(BAKE, index)
        return Action(ANALYSE, index)
    return Action(PROMOTE)


def failure(rollout: Rollout) -> str:
    """Returns why a rollout did not pass so far; empty when nothing speaks against it."""
    if rollout.smoke_test not in ("", PASS):
        return rollout.smoke_summary or f"smoke test: {rollout.smoke_test}"
    for step in rollout.steps:
        if step.decision not in ("", PASS):
            return f"at {step.percent} %: {step.summary or step.decision}"
    return ""


def seconds_left(rollout: Rollout, step: Step, now: datetime) -> float:
    """Returns how long a step bakes yet, at most its whole time, also where clocks differ."""
    baked = (now - parse_time(step.began_at, "began_at of the deployment record")).total_seconds()
    return min(rollout.bake_seconds, rollout.bake_seconds - baked)


def with_step(
    rollout: Rollout, index: int, began_at: str = "", decision: str = "", summary: str = ""
) -> Rollout:
    """Returns the rollout with one step begun anew, or judged."""
    steps = list(rollout.steps)
    steps[index] = replace(
        steps[index],
        began_at=began_at or steps[index].began_at,
        decision=decision,
        summary=shortened(summary),
    )
    return replace(rollout, steps=steps)


def shortened(summary: str) -> str:
    """Returns a sentence as the record keeps it."""
    return summary if len(summary) <= SUMMARY_LENGTH else summary[: SUMMARY_LENGTH - 1] + "…"


def _fits(rollout: Rollout, plan: Plan) -> bool:
    same = tuple(step.percent for step in rollout.steps) == plan.percents
    return same and rollout.bake_seconds == plan.bake_seconds


def _settings(target: Target) -> dict[str, Any]:
    """Returns a predictor without its annotations, which say which run deployed it."""
    return {key: value for key, value in target.predictor.items() if key != "annotations"}
