# SPDX-License-Identifier: Apache-2.0
import json
import threading
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monitoring_world import publish

from kfloop.components.contracts.dataset import write_dataset
from kfloop.components.contracts.decision import (
    Decision,
    Reason,
    read_decision,
    write_decision,
)
from kfloop.components.contracts.errors import InputError
from kfloop.components.monitoring.history import Entry
from kfloop.components.monitoring.retraining import (
    Evidence,
    Policy,
    decide,
    decide_retraining,
)

TRAINED = datetime(2024, 1, 1, tzinfo=UTC)


def gate(name: str, outcome: str) -> Decision:
    passed = outcome == "pass"
    return Decision(name, outcome, [Reason("check", name, 1.0, 0.5, passed, f"{name} because")])


def run(
    tmp_path: Path,
    quality: str = "pass",
    drift: str = "pass",
    performance: str = "pass",
    **changes: Any,
) -> tuple[str, Decision]:
    outcomes = {"quality": quality, "drift": drift, "performance": performance}
    for name, outcome in outcomes.items():
        write_decision(gate(name, outcome), tmp_path / f"{name}.json")
    rows = changes.pop("rows_labelled", 5000)
    write_dataset(pa.table({"late": [True] * rows}), tmp_path / "joined")
    given = {"last_trained": "2024-01-01", "now": "2024-02-01"} | changes
    action, metadata = decide_retraining(
        *(tmp_path / f"{name}.json" for name in outcomes),
        tmp_path / "joined",
        tmp_path / "decision.json",
        tmp_path / "page.html",
        **given,
    )
    assert metadata["action"] == action
    return action, read_decision(tmp_path / "decision.json")


@pytest.mark.parametrize(
    ("quality", "drift", "performance", "decision", "action"),
    [
        ("pass", "pass", "pass", "pass", "keep"),
        ("pass", "fail", "pass", "fail", "retrain"),
        ("pass", "pass", "fail", "fail", "retrain"),
        ("pass", "no_data", "fail", "fail", "retrain"),
        ("no_baseline", "fail", "pass", "fail", "retrain"),
        ("fail", "fail", "fail", "no_data", "keep"),
        ("no_data", "fail", "fail", "no_data", "keep"),
        ("pass", "no_data", "no_data", "no_data", "keep"),
        ("pass", "no_data", "no_baseline", "no_data", "keep"),
        ("pass", "pass", "no_data", "pass", "keep"),
    ],
)
def test_the_evidence_decides(
    tmp_path: Path, quality: str, drift: str, performance: str, decision: str, action: str
) -> None:
    assert run(tmp_path, quality, drift, performance)[0] == action
    assert read_decision(tmp_path / "decision.json").decision == decision


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"rows_labelled": 10}, "10 new labelled rows, 1000 are needed"),
        ({"now": "2024-01-03"}, "2.0 days since the last training, the cooldown is 7"),
        ({"now": ""}, "the cooldown cannot be checked"),
        ({"on_drift": False}, "drift is fail, which does not count here"),
    ],
)
def test_drift_is_kept_for_a_reason_that_is_told(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    action, decision = run(tmp_path, drift="fail", **changes)
    assert action == "keep"
    assert any(why in reason.why for reason in decision.reasons)


def test_broken_data_is_not_trained_on_and_says_why(tmp_path: Path) -> None:
    _, decision = run(tmp_path, quality="fail", drift="fail")
    assert "no training on data that is broken or missing (quality because)" in decision.summary


def test_a_person_overrules_and_is_recorded(tmp_path: Path) -> None:
    action, decision = run(tmp_path, quality="fail", force="new regulation")
    assert action == "retrain"
    assert decision.forced == "new regulation"


def test_the_end_of_training_comes_from_the_live_model(tmp_path: Path) -> None:
    model = publish(tmp_path / "model")
    changes = {"last_trained": "", "model_uri": model}
    assert run(tmp_path, drift="fail", now="2024-06-05", **changes)[0] == "keep"
    assert run(tmp_path, drift="fail", now="2024-07-05", **changes)[0] == "retrain"


def test_consecutive_windows_are_counted_in_the_history(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"history_uri": str(tmp_path / "h.jsonl"), "consecutive_windows": 3}
    days = ["01", "02", "03", "04", "05", "06"]
    outcomes = ["fail", "fail", "pass", "fail", "fail", "fail"]
    actions = [
        run(tmp_path, drift=outcome, now=f"2024-02-{day}", **changes)[0]
        for day, outcome in zip(days, outcomes, strict=True)
    ]
    assert actions == ["keep"] * 5 + ["retrain"]


def test_a_spent_budget_holds_a_retraining_back_until_its_days_are_over(tmp_path: Path) -> None:
    settings = {
        "history_uri": str(tmp_path / "h.jsonl"),
        "cooldown_days": 1.0,
        "budget": 2,
        "budget_days": 30.0,
    }
    actions = [
        run(tmp_path, drift="fail", now=f"2024-{day}", run=day, **settings)[0]
        for day in ("02-01", "02-10", "02-20", "03-01", "03-05")
    ]
    assert actions == ["retrain", "retrain", "keep", "keep", "retrain"]


def test_a_retried_run_decides_the_same_and_counts_once(tmp_path: Path) -> None:
    history = tmp_path / "h.jsonl"
    for _ in range(3):
        assert run(tmp_path, drift="fail", history_uri=str(history), run="run-1")[0] == "retrain"
    assert len(history.read_text().splitlines()) == 1


def test_a_second_run_on_the_same_window_does_not_train_again(tmp_path: Path) -> None:
    history = {"history_uri": str(tmp_path / "h.jsonl")}
    assert run(tmp_path, drift="fail", run="run-1", **history)[0] == "retrain"
    assert run(tmp_path, drift="fail", run="run-2", **history)[0] == "keep"


def test_the_cooldown_holds_when_the_retrained_model_was_not_promoted(tmp_path: Path) -> None:
    history = {"history_uri": str(tmp_path / "h.jsonl")}
    assert run(tmp_path, drift="fail", now="2024-02-01", **history)[0] == "retrain"
    # last_trained is still that of the old model
    assert run(tmp_path, drift="fail", now="2024-02-05", **history)[0] == "keep"
    assert run(tmp_path, drift="fail", now="2024-02-09", **history)[0] == "retrain"


def test_runs_at_the_same_time_train_once(tmp_path: Path) -> None:
    actions: list[str] = []

    def one(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        action, _ = run(
            folder, drift="fail", history_uri=str(tmp_path / "h.jsonl"), run=f"{number}"
        )
        actions.append(action)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(actions) == ["keep"] * 7 + ["retrain"]
    lines = (tmp_path / "h.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["action"] == "retrain" for line in lines) == 1
    assert len(lines) == 8


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"consecutive_windows": 2}, "needs history_uri"),
        ({"budget": 3}, "budget is 3, which needs history_uri"),
        ({"budget_days": 0}, "budget_days is more than 0"),
        ({"last_trained": ""}, "Neither last_trained nor model_uri"),
        ({"now": "soon"}, "now is 'soon'"),
        ({"cooldown_days": -1.0}, "at least 0"),
        ({"history_uri": "gs://bucket/h"}, "history_uri is 'gs://bucket/h'"),
    ],
)
def test_a_wrong_setting_gets_one_sentence(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        run(tmp_path, **changes)


def test_a_damaged_history_is_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "h.jsonl").write_text('{"now": "2024-01-01", "triggered": true')
    with pytest.raises(InputError, match="Line 1 of the retraining history"):
        run(tmp_path, history_uri=str(tmp_path / "h.jsonl"))


outcomes = st.sampled_from(["pass", "fail", "no_data", "no_baseline"])
window = st.tuples(st.integers(-2, 9), outcomes, outcomes, outcomes, st.integers(0, 2000))


def simulate(
    windows: list[tuple[int, str, str, str, int]], policy: Policy, promoted: list[bool]
) -> list[datetime]:
    """Runs the policy over windows that lie some days apart; returns when it retrained."""
    past: list[Entry] = []
    trained, now = TRAINED, TRAINED
    trainings = []
    for index, (days, quality, drift, performance, rows) in enumerate(windows):
        now = now + timedelta(days=days)
        gates = gate("q", quality), gate("d", drift), gate("p", performance)
        decision, triggered = decide(Evidence(*gates, rows, trained, now), policy, past)
        past = sorted(
            [*past, Entry(now.isoformat(), triggered, decision.action or "")],
            key=lambda entry: entry.moment,
        )
        if decision.action == "retrain":
            trainings.append(now)
            trained = now if promoted[index % len(promoted)] else trained
    return trainings


@settings(deadline=None, max_examples=200)
@given(
    st.lists(window, max_size=30),
    st.integers(0, 30),
    st.integers(1, 4),
    st.lists(st.booleans(), min_size=1, max_size=5),
)
def test_no_sequence_of_windows_causes_two_retrainings_in_one_cooldown(
    windows: list[tuple[int, str, str, str, int]],
    cooldown: int,
    consecutive: int,
    promoted: list[bool],
) -> None:
    policy = Policy(cooldown_days=cooldown, consecutive_windows=consecutive, budget=2)
    spent = simulate(windows, policy, promoted)
    for training in spent:
        year = timedelta(days=policy.budget_days)
        assert sum(training - year < other <= training for other in spent) <= 2
    trainings = [TRAINED, *spent]
    for earlier, later in pairwise(trainings):
        assert later - earlier >= timedelta(days=cooldown)
        assert later > earlier


@settings(deadline=None)
@given(
    st.lists(window, max_size=10),
    st.integers(0, 30),
    st.integers(1, 4),
    st.integers(1, 9),
    st.sampled_from(["drift", "performance"]),
)
def test_sustained_drift_always_causes_a_retraining(
    noise: list[tuple[int, str, str, str, int]],
    cooldown: int,
    consecutive: int,
    days: int,
    signal: str,
) -> None:
    policy = Policy(cooldown_days=cooldown, consecutive_windows=consecutive)
    bad = (days, "pass", "fail", "pass", 1000)
    if signal == "performance":
        bad = (days, "pass", "no_data", "fail", 1000)
    before = simulate(noise, policy, [True])
    # long enough to outlast the cooldown, the windows in a row and times that jumped back
    enough = cooldown // days + consecutive + 20 // days + 2
    assert len(simulate(noise + [bad] * enough, policy, [True])) > len(before)
