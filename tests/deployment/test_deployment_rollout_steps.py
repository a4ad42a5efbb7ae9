# SPDX-License-Identifier: Apache-2.0
"""`roll_out_model` on the real local service: killed at each of its steps, and rolled back."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rollout_bench import LIMITS, SERVICE, Bench, run_and_kill

from kfloop.components.contracts.decision import Decision, read_decision
from kfloop.components.contracts.deployment_record import DeploymentRecord, Step, read_record
from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment.backend import connect
from kfloop.components.deployment.roll_out import Analysis, roll_out_model
from kfloop.components.deployment.rollout import promote_model, shift_traffic

STEPS = [20, 50, 100]


@pytest.fixture(scope="module")
def bench(
    state: Path, packages: Path, evaluation: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bench:
    """A service whose first version was rolled out."""
    made = Bench(state, packages, evaluation, tmp_path_factory.mktemp("work"))
    first = roll_out(made, made.good)
    assert (first.decision, first.action) == ("pass", "deployed")
    return made


def roll_out(bench: Bench, model_uri: str, steps: list[int] = STEPS, **options) -> Decision:
    return roll_out_model(
        model_uri,
        SERVICE,
        bench.work / "rollout.json",
        bench.work / "rollout.html",
        bench.record_file,
        steps,
        analysis=Analysis(LIMITS, wait_seconds=0.2, replay=True),
        **options,
    )


def roll_out_and_kill(
    bench: Bench, model_uri: str, reached: Callable[[DeploymentRecord], object]
) -> None:
    code = (
        "from kfloop.components.deployment.canary_checks import Limits\n"
        "from kfloop.components.deployment.roll_out import Analysis, roll_out_model\n"
        f"limits = Limits(minimum_requests={LIMITS.minimum_requests}, "
        f"max_error_rate_increase={LIMITS.max_error_rate_increase})\n"
        f"roll_out_model({model_uri!r}, {SERVICE!r}, {str(bench.work / 'd.json')!r}, "
        f"{str(bench.work / 'p.html')!r}, {str(bench.record_file)!r}, {STEPS!r}, "
        "analysis=Analysis(limits, wait_seconds=0.2, replay=True))"
    )
    run_and_kill(code, lambda: reached(bench.record))


def step(record: DeploymentRecord, index: int) -> Step:
    return record.rollout.steps[index] if record.rollout else Step(0)


def test_a_rollout_killed_at_any_step_goes_on_where_it_was(bench: Bench) -> None:
    better = bench.better
    points: list[Callable[[DeploymentRecord], object]] = [
        lambda record: record.candidate,
        lambda record: record.candidate and step(record, 0).began_at,
        lambda record: record.candidate and step(record, 0).decision,
        lambda record: record.state == "promoted",
    ]
    began: list[str] = []
    for reached in points:
        roll_out_and_kill(bench, better, reached)
        began.append(step(bench.record, 0).began_at)
    # The first step was begun once: nothing was done again that had been done.
    assert len({moment for moment in began if moment}) == 1
    made = roll_out(bench, better)
    assert (made.decision, made.action) == ("pass", "promoted"), made.summary
    assert bench.answering() == {"2"}
    record = read_record(bench.record_file)
    assert (record.stable.storage_uri, record.previous.storage_uri) == (better, bench.good)
    assert [s.decision for s in record.rollout.steps] == ["pass", "pass"]
    assert [reason.check for reason in made.reasons] == ["smoke_test", "canary", "canary", "live"]
    assert "20 %" in (bench.work / "rollout.html").read_text()
    assert read_decision(bench.work / "rollout.json") == made
    # Once more changes nothing.
    assert roll_out(bench, better).action == "promoted"
    assert bench.record.changed_at == record.changed_at
    assert bench.roll_back() == bench.good


def test_a_candidate_that_answers_differently_is_rolled_back_at_its_first_step(
    bench: Bench,
) -> None:
    inverted = bench.publish("inverted")
    made = roll_out(bench, inverted, run_id="run-1")
    assert (made.decision, made.action) == ("fail", "rolled_back")
    record = read_record(bench.record_file)
    assert (record.state, record.undone) == ("rolled_back", inverted)
    assert [bool(s.began_at) for s in record.rollout.steps] == [True, False]
    assert bench.answering() == {"1"}
    # The same run does not try again what it rolled back, and says the same.
    again = roll_out(bench, inverted, run_id="run-1")
    assert (again.decision, again.action) == ("fail", "rolled_back")
    assert bench.record.changed_at == record.changed_at


def test_a_candidate_that_cannot_load_is_a_failed_rollout(bench: Bench) -> None:
    made = roll_out(bench, bench.publish_unservable())
    assert (made.decision, made.action) == ("fail", "rolled_back")
    assert "could not be deployed as a canary and is taken away again" in made.summary
    assert bench.record.candidate is None


def test_a_dry_run_says_what_it_would_do_and_does_nothing(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    before = connect().get(SERVICE)
    newer = bench.publish("better")
    settings = {"resources": {"requests": {"cpu": "500m"}}}
    made = roll_out(bench, newer, predictor=settings, dry_run=True)
    assert (made.decision, made.action) == ("no_data", "dry_run")
    assert connect().get(SERVICE) == before
    told = capsys.readouterr().out
    assert "dark, smoke test, then 20 %, 50 %" in told
    assert f"-    storageUri: {bench.good}" in told.replace("      ", "    ")
    assert "cpu: 500m" in told


def test_shares_are_shifted_by_hand_and_all_requests_only_with_a_reason(bench: Bench) -> None:
    newer = bench.publish("better")
    bench.deploy(newer, percent=0)
    assert bench.answering() == {"1"}
    assert shift_traffic(SERVICE, 30, bench.record_file) == newer
    changed = bench.record.changed_at
    assert shift_traffic(SERVICE, 30, bench.record_file, newer) == newer
    assert bench.record.changed_at == changed
    with pytest.raises(InputError, match="is left as it is"):
        shift_traffic(SERVICE, 40, bench.record_file, bench.good)
    with pytest.raises(InputError, match="did not pass the steps"):
        shift_traffic(SERVICE, 100, bench.record_file)
    shift_traffic(SERVICE, 100, bench.record_file, force="load test")
    assert bench.answering() == {newer.rsplit("/", 1)[-1]}
    assert bench.record.reason == "forced: load test"
    assert bench.roll_back() == bench.good
    with pytest.raises(InputError, match="has no candidate to shift"):
        shift_traffic(SERVICE, 10, bench.record_file)
    with pytest.raises(InputError, match="rolled back"):
        promote_model(SERVICE, bench.record_file)


@pytest.mark.parametrize("steps", [[0], [50, 20], [5, 5], [101], [2.5], list(range(1, 30))])
def test_steps_that_are_no_rising_percentages_are_refused(bench: Bench, steps: list[int]) -> None:
    with pytest.raises(InputError, match=r"\.$"):
        roll_out(bench, bench.good, steps=steps)
