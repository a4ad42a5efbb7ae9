# SPDX-License-Identifier: Apache-2.0
"""What a rollout does next, from its record alone."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from kfloop.components.contracts.deployment_record import (
    DeploymentRecord,
    Rollout,
    Step,
    Target,
)
from kfloop.components.deployment.plan import Plan, next_action, seconds_left
from kfloop.components.deployment.roll_out import verdict

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
OLD, NEW, OTHER = (Target(v, f"/m/{v}", {"name": f"v{v}"}) for v in "123")
PLAN = Plan(NEW, (10, 50), 60.0)


def at(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).isoformat()


def candidate(rollout: Rollout | None) -> DeploymentRecord:
    return DeploymentRecord("m", "ml", "canary", OLD, candidate=NEW, rollout=rollout)


TESTED = replace(PLAN.begun(at(500)), smoke_test="pass")


def steps(*given: Step) -> Rollout:
    return replace(TESTED, steps=list(given))


@pytest.mark.parametrize(
    ("record", "traffic", "kind", "step"),
    [
        (None, 0, "create", 0),
        (DeploymentRecord("m", "ml", "deployed", OLD), 0, "place", 0),
        (DeploymentRecord("m", "ml", "canary", OLD, candidate=OTHER), 20, "place", 0),
        (candidate(None), 20, "place", 0),
        (candidate(replace(PLAN.begun(at(9)), steps=[Step(99)])), 0, "place", 0),
        (candidate(PLAN.begun(at(9))), 0, "smoke_test", 0),
        (candidate(replace(TESTED, smoke_test="no_data")), 0, "take_away", 0),
        (candidate(TESTED), 0, "shift", 0),
        # Written, but somebody changed the share.
        (candidate(steps(Step(10, at(5)), Step(50))), 30, "shift", 0),
        (candidate(steps(Step(10, at(5)), Step(50))), 10, "bake", 0),
        (candidate(steps(Step(10, at(61)), Step(50))), 10, "analyse", 0),
        (candidate(steps(Step(10, at(99), "pass"), Step(50))), 10, "shift", 1),
        (candidate(steps(Step(10, at(99), "no_data"), Step(50))), 10, "take_away", 0),
        (candidate(steps(Step(10, at(99), "pass"), Step(50, at(61), "pass"))), 50, "promote", 0),
        (DeploymentRecord("m", "ml", "restoring", OTHER, candidate=OLD), 0, "restore", 0),
        (DeploymentRecord("m", "ml", "promoted", NEW, previous=OLD), 0, "done", 0),
        (DeploymentRecord("m", "ml", "deployed", NEW, rollout=TESTED), 0, "note", 0),
        (
            DeploymentRecord(
                "m", "ml", "deployed", NEW, rollout=replace(TESTED, smoke_test="fail")
            ),
            0,
            "remove",
            0,
        ),
    ],
)
def test_the_next_action_follows_from_the_record(
    record: DeploymentRecord | None, traffic: int, kind: str, step: int
) -> None:
    action = next_action(record, traffic, PLAN, NOW, begun=False)
    assert (action.kind, action.step) == (kind, step)


def test_a_candidate_with_other_settings_is_placed_anew() -> None:
    record = candidate(TESTED)
    bigger = Target("2", "/m/2", {"name": "v2", "timeout": 9, "annotations": {"run": "2"}})
    assert next_action(record, 0, replace(PLAN, target=bigger), NOW, False).kind == "place"
    # Another run of the same thing goes on with what is there.
    again = Target("2", "/m/2", {"name": "v2", "annotations": {"run": "2"}})
    assert next_action(record, 0, replace(PLAN, target=again), NOW, False).kind == "shift"


def test_without_steps_what_passed_the_smoke_test_is_promoted() -> None:
    plan = Plan(NEW, (), 0.0)
    tested = replace(plan.begun(at(9)), smoke_test="pass")
    assert next_action(candidate(tested), 0, plan, NOW, begun=True).kind == "promote"


def test_what_somebody_took_away_is_not_put_there_again() -> None:
    gone = DeploymentRecord("m", "ml", "rolled_back", OLD, reason="by hand", rollout=TESTED)
    assert next_action(gone, 0, PLAN, NOW, begun=True).kind == "done"
    assert next_action(None, 0, PLAN, NOW, begun=True).kind == "done"
    made = verdict(TESTED, gone, NEW.storage_uri)
    assert (made.decision, made.action) == ("fail", "rolled_back")
    assert "somebody else took it away: by hand" in made.summary


def test_a_run_that_is_tried_again_does_not_try_again_what_it_rolled_back() -> None:
    rollout = replace(TESTED, run_id="run-1", outcome="rolled_back")
    record = DeploymentRecord("m", "ml", "rolled_back", OLD, rollout=rollout)
    assert next_action(record, 0, replace(PLAN, run_id="run-1"), NOW, False).kind == "done"
    assert next_action(record, 0, replace(PLAN, run_id="run-2"), NOW, False).kind == "place"
    assert next_action(record, 0, PLAN, NOW, False).kind == "place"


def test_a_step_never_bakes_longer_than_its_time_also_where_clocks_differ() -> None:
    assert seconds_left(TESTED, Step(10, at(20)), NOW) == 40
    assert seconds_left(TESTED, Step(10, at(-3600)), NOW) == 60
    assert seconds_left(TESTED, Step(10, at(7200)), NOW) < 0


def test_too_little_to_judge_by_is_told_apart_from_a_failure() -> None:
    after = DeploymentRecord("m", "ml", "rolled_back", OLD)
    rollout = steps(Step(10, at(99), "pass", "fine"), Step(50, at(61), "no_data", "3 requests"))
    made = verdict(rollout, after, NEW.storage_uri)
    assert (made.decision, made.action, made.baseline) == ("no_data", "rolled_back", "/m/1")
    failed = steps(Step(10, at(99), "fail", "worse"), Step(50))
    assert verdict(failed, after, NEW.storage_uri).decision == "fail"
    assert verdict(None, None, NEW.storage_uri, "it cannot load").action == "removed"
