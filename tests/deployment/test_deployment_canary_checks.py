# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kfloop.components.deployment.canary_checks import (
    Finding,
    Limits,
    check_labels,
    check_shadow,
    check_traffic,
    check_volume,
    disagreement,
)
from kfloop.components.deployment.canary_evidence import Evidence, Pairs
from kfloop.components.deployment.latencies import Buckets, Values

LIMITS = Limits()


def evidence(
    requests: int = 200, errors: int = 0, latency: float = 5.0, mean: float = 0.3
) -> Evidence:
    random = np.random.default_rng(requests)
    answered = requests - errors
    latencies = Values((latency * random.uniform(0.8, 1.2, answered)).tolist())
    predictions = random.normal(mean, 0.1, answered).tolist()
    return Evidence("1", requests, errors, latencies, predictions)


def outcomes(live: Evidence, candidate: Evidence, task: str = "binary") -> dict[str, str]:
    """Each check's outcome, worst first where there are several of one name."""
    found: dict[str, str] = {}
    for finding in check_traffic(live, candidate, task, LIMITS):
        assert finding.reason.passed == (finding.outcome == "pass")
        worst = min(found.get(finding.reason.check, "pass"), finding.outcome)
        found[finding.reason.check] = worst
    return found


def failed(live: Evidence, candidate: Evidence, task: str = "binary") -> list[str]:
    return [
        check for check, outcome in outcomes(live, candidate, task).items() if outcome == "fail"
    ]


def of(findings: list[Finding], check: str) -> Finding:
    return next(finding for finding in findings if finding.reason.check == check)


def test_a_candidate_like_the_live_version_passes() -> None:
    found = outcomes(evidence(900), evidence(100))
    assert found == {"error_rate": "pass", "latency": "pass", "shift": "pass"}


def test_errors_of_the_candidate_fail_it_and_errors_of_both_do_not() -> None:
    assert failed(evidence(900), evidence(100, errors=20)) == ["error_rate"]
    both = outcomes(evidence(900, errors=90), evidence(1000, errors=100))
    assert both["error_rate"] == "no_data"
    both = outcomes(evidence(9000, errors=900), evidence(9000, errors=900))
    assert both["error_rate"] == "pass"


def test_a_few_errors_do_not_tell_yet_and_more_requests_do() -> None:
    assert outcomes(evidence(900), evidence(100, errors=3))["error_rate"] == "no_data"
    assert outcomes(evidence(4000), evidence(1000, errors=8))["error_rate"] == "pass"
    assert outcomes(evidence(4000), evidence(1000, errors=100))["error_rate"] == "fail"


def test_a_candidate_without_an_answer_fails() -> None:
    assert failed(evidence(900), evidence(100, errors=100)) == ["error_rate"]


def test_without_requests_nothing_is_told() -> None:
    assert outcomes(Evidence("1"), Evidence("2")) == {"error_rate": "no_data"}


def test_a_slow_candidate_fails_and_one_within_the_floor_does_not() -> None:
    assert failed(evidence(900), evidence(100, latency=80)) == ["latency"]
    assert failed(evidence(900), evidence(100, latency=40)) == []


def test_a_slow_tail_fails_once_there_are_enough_requests() -> None:
    candidate = evidence(400)
    assert isinstance(candidate.latencies, Values)
    for index in range(16):  # 4 %: the p95 is as it was
        candidate.latencies.ms[index] = 5000.0
    findings = check_traffic(evidence(1600), candidate, "binary", LIMITS)
    assert [f.reason.metric for f in findings if f.outcome == "fail"] == ["p99 ms"]


def test_one_hiccup_of_a_hundred_does_not_decide() -> None:
    candidate = evidence(100)
    assert isinstance(candidate.latencies, Values)
    candidate.latencies.ms[50] = 5000.0
    assert failed(evidence(1600), candidate) == []


def test_a_histogram_finds_a_slow_candidate_too() -> None:
    edges = [5.0, 10.0, 100.0, 1000.0, math.inf]
    live = Evidence("1", 900, 0, Buckets(edges, [880, 20, 0, 0, 0]), None)
    slow = Evidence("2", 200, 0, Buckets(edges, [0, 0, 0, 200, 0]), None)
    assert outcomes(live, slow) == {"error_rate": "pass", "latency": "fail"}
    like = Evidence("2", 200, 0, Buckets(edges, [195, 5, 0, 0, 0]), None)
    assert outcomes(live, like) == {"error_rate": "pass", "latency": "pass"}


def test_moved_predictions_fail() -> None:
    assert failed(evidence(900, mean=0.3), evidence(100, mean=0.5)) == ["shift"]


def test_a_move_about_the_limit_does_not_tell_yet() -> None:
    assert outcomes(evidence(900, mean=0.3), evidence(100, mean=0.415))["shift"] == "no_data"


def test_of_a_few_predictions_none_fails() -> None:
    assert outcomes(evidence(900), evidence(30, mean=0.6))["shift"] == "no_data"
    assert outcomes(evidence(900), evidence(30))["shift"] == "pass"


def test_a_live_version_of_one_answer_is_compared_all_the_same() -> None:
    live, candidate = evidence(900), evidence(100)
    live.predictions = [0.5] * 900
    assert failed(live, candidate) == ["shift"]
    candidate.predictions = [0.5] * 100
    assert failed(live, candidate) == []


def test_missing_predictions_fail_and_a_source_without_predictions_does_not() -> None:
    candidate = evidence(100)
    assert candidate.predictions
    candidate.predictions[3] = None
    assert failed(evidence(900), candidate) == ["missing"]
    candidate.predictions = None
    assert outcomes(evidence(900), candidate) == {"error_rate": "pass", "latency": "pass"}


def test_classes_are_compared_by_their_shares() -> None:
    live, candidate = evidence(900), evidence(100)
    live.predictions, candidate.predictions = ["a", "b"] * 450, ["c"] * 100
    reason = of(check_traffic(live, candidate, "multiclass", LIMITS), "shift").reason
    assert reason.value == pytest.approx(1.0)
    assert "'c'" in reason.why


def test_too_few_requests_are_told_for_each_version() -> None:
    found = check_volume(evidence(100), evidence(99), LIMITS.requests_needed())
    assert [finding.outcome for finding in found] == ["pass", "no_data"]


def test_answers_to_copies_are_compared_row_by_row() -> None:
    live = np.random.default_rng(0).random(300)
    near, far = Pairs(live, live + 0.01), Pairs(live, 1 - live)
    assert check_shadow(near, "binary", 0.2).outcome == "pass"
    assert check_shadow(far, "binary", 0.2).outcome == "fail"
    assert check_shadow(Pairs(live[:8], 1 - live[:8]), "binary", 0.2).outcome == "no_data"
    assert check_shadow(near, "regression", 0.2).outcome == "pass"
    assert check_shadow(far, "regression", 0.2).outcome == "fail"
    names = ["a", "b"] * 100
    assert check_shadow(Pairs(names, names[::-1]), "multiclass", 0.2).outcome == "fail"


def test_losses_on_labelled_rows_are_compared() -> None:
    random = np.random.default_rng(0)
    label = random.random(800) < 0.3
    good = Pairs(label, 0.3 + 0.5 * (label - 0.3))
    bad = Pairs(label, random.random(800))
    assert check_labels(good, good, "binary", 0.05).outcome == "pass"
    assert check_labels(good, bad, "binary", 0.05).outcome == "fail"
    assert check_labels(bad, good, "binary", 0.05).outcome == "pass"
    few = Pairs(label[:10], label[:10])
    assert check_labels(good, few, "binary", 0.05).outcome == "no_data"
    assert check_labels(good, bad, "regression", 0.05).outcome == "fail"
    classes = Pairs([1, 0] * 200, ["1", "0"] * 200)
    assert check_labels(classes, classes, "multiclass", 0.05).outcome == "pass"


def test_disagreement_has_the_units_of_the_task() -> None:
    assert disagreement([0.1, 0.2], [0.3, 0.2], "binary") == pytest.approx(0.1)
    assert disagreement(["a", "b"], ["a", "c"], "multiclass") == 0.5
    live = list(range(101))
    assert disagreement(live, [x + 9 for x in live], "regression") == pytest.approx(0.1)
    assert disagreement([1.0, 1.0], [1.0, 2.0], "regression") == math.inf
    assert disagreement([1.0, 1.0], [1.0, 1.0], "regression") == 0.0


@given(st.floats(0.004, 0.9), st.integers(1, 400), st.integers(1, 6))
def test_a_faultless_candidate_passes_with_the_requests_it_takes_to_judge(
    increase: float, minimum: int, steps: int
) -> None:
    limits = Limits(minimum, max_error_rate_increase=increase)
    needed = limits.requests_needed(steps)
    assert needed >= minimum
    faultless = Evidence("1", needed)
    findings = check_traffic(faultless, faultless, "binary", limits, 0.05 / steps)
    assert of(findings, "error_rate").outcome == "pass"
    assert of(check_volume(faultless, faultless, needed), "minimum_requests").outcome == "pass"
