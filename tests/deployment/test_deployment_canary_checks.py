import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kfloop.components.deployment.canary_checks import (
    Limits,
    check_traffic,
    check_volume,
    disagreement,
    error_rate_increase_bound,
    quantile_lower_bound,
    wilson,
)
from kfloop.components.deployment.canary_evidence import Evidence

LIMITS = Limits()


def evidence(
    requests: int = 200, errors: int = 0, latency: float = 5.0, mean: float = 0.3
) -> Evidence:
    random = np.random.default_rng(requests)
    answered = requests - errors
    latencies = (latency * random.uniform(0.8, 1.2, answered)).tolist()
    return Evidence("1", requests, errors, latencies, random.normal(mean, 0.1, answered).tolist())


def failed(live: Evidence, candidate: Evidence, task: str = "binary") -> list[str]:
    return [
        reason.check for reason in check_traffic(live, candidate, task, LIMITS) if not reason.passed
    ]


def test_a_candidate_like_the_live_version_passes() -> None:
    assert failed(evidence(900), evidence(100)) == []


def test_errors_of_the_candidate_fail_it_and_errors_of_both_do_not() -> None:
    assert failed(evidence(900), evidence(100, errors=8)) == ["error_rate"]
    assert failed(evidence(900, errors=90), evidence(1000, errors=100)) == []


def test_a_candidate_without_an_answer_fails() -> None:
    assert failed(evidence(900), evidence(100, errors=100)) == ["error_rate"]


def test_a_slow_candidate_fails_and_one_within_the_floor_does_not() -> None:
    assert failed(evidence(900), evidence(100, latency=80)) == ["latency"]
    assert failed(evidence(900), evidence(100, latency=40)) == []


def test_one_hiccup_of_a_hundred_does_not_decide() -> None:
    candidate = evidence(100)
    candidate.latencies_ms[50] = 5000.0
    assert failed(evidence(900), candidate) == []


def test_moved_predictions_fail() -> None:
    assert failed(evidence(900, mean=0.3), evidence(100, mean=0.5)) == ["shift"]


def test_a_live_version_of_one_answer_is_compared_all_the_same() -> None:
    live, candidate = evidence(900), evidence(100)
    live.predictions = [0.5] * 900
    assert failed(live, candidate) == ["shift"]
    candidate.predictions = [0.5] * 100
    assert failed(live, candidate) == []


def test_missing_predictions_fail() -> None:
    candidate = evidence(100)
    candidate.predictions[3] = None
    assert failed(evidence(900), candidate) == ["missing"]


def test_classes_are_compared_by_their_shares() -> None:
    live, candidate = evidence(900), evidence(100)
    live.predictions, candidate.predictions = ["a", "b"] * 450, ["c"] * 100
    reasons = {r.check: r for r in check_traffic(live, candidate, "multiclass", LIMITS)}
    assert reasons["shift"].value == pytest.approx(1.0)
    assert "'c'" in reasons["shift"].why


def test_too_few_requests_are_told_for_each_version() -> None:
    assert [r.passed for r in check_volume(evidence(100), evidence(99), LIMITS)] == [True, False]


def test_disagreement_has_the_units_of_the_task() -> None:
    assert disagreement([0.1, 0.2], [0.3, 0.2], "binary") == pytest.approx(0.1)
    assert disagreement(["a", "b"], ["a", "c"], "multiclass") == 0.5
    live = list(range(101))
    assert disagreement(live, [x + 9 for x in live], "regression") == pytest.approx(0.1)
    assert disagreement([1.0, 1.0], [1.0, 2.0], "regression") == math.inf
    assert disagreement([1.0, 1.0], [1.0, 1.0], "regression") == 0.0


def test_wilson_agrees_with_the_published_example() -> None:
    # Newcombe 1998 (Statistics in Medicine 17, 857-872), table I: 81 of 263, 95 % two-sided.
    low, high = wilson(81, 263, z=1.959964)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_the_error_bound_holds_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    live_rate, candidate_rate, held = 0.02, 0.05, 0
    for _ in range(1000):
        live = Evidence("1", 900, int(random.binomial(900, live_rate)))
        candidate = Evidence("2", 100, int(random.binomial(100, candidate_rate)))
        held += error_rate_increase_bound(live, candidate) >= candidate_rate - live_rate
    assert held / 1000 >= 0.93


def test_the_quantile_bound_holds_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    truth = -math.log(0.01)
    held = [
        quantile_lower_bound(random.exponential(size=300).tolist(), 0.99) <= truth
        for _ in range(1000)
    ]
    assert np.mean(held) >= 0.94


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300))
def test_the_quantile_bound_is_one_of_the_values(values: list[float]) -> None:
    assert quantile_lower_bound(values, 0.99) in values


@given(st.integers(1, 10_000), st.data())
def test_wilson_holds_the_rate_within_0_and_1(trials: int, data: st.DataObject) -> None:
    events = data.draw(st.integers(0, trials))
    low, high = wilson(events, trials)
    assert 0 <= low <= events / trials + 1e-12
    assert events / trials - 1e-12 <= high <= 1


@given(st.floats(0.004, 0.9), st.integers(1, 400))
def test_a_faultless_candidate_passes_with_the_requests_it_takes_to_judge(
    increase: float, minimum: int
) -> None:
    limits = Limits(minimum, max_error_rate_increase=increase)
    needed = limits.requests_needed
    assert needed >= minimum
    assert error_rate_increase_bound(evidence(needed), evidence(needed)) <= increase + 1e-12
