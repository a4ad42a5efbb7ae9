# SPDX-License-Identifier: Apache-2.0
"""The bounds hold however often they are looked at: simulated, with a look after every request."""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kfloop.components.deployment.canary_checks import MINIMUM_VALUES
from kfloop.components.deployment.latencies import Buckets, Values, quantile_bounds
from kfloop.components.deployment.sequential import (
    ERRORS,
    EVEN,
    Arm,
    Prior,
    increase_bounds,
    log_evidence,
    mean_radius,
    quantile_ranks,
    rate_bounds,
    trials_to_exclude,
)

LOOKS, RUNS, ALPHA, LIMIT = 1500, 1000, 0.05, 0.05
# Three standard errors above alpha, of so many runs.
ALLOWED = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / RUNS)


def totals(rate: float, seed: int, looks: int = LOOKS) -> npt.NDArray[np.int64]:
    """Events after each trial, a row per run."""
    random = np.random.default_rng(seed)
    return np.cumsum(random.random((RUNS, looks)) < rate, axis=1)


def ever_outside(events: npt.NDArray[np.int64], rate: float, prior: Prior) -> float:
    """Share of runs in which the true rate is outside the bounds after any of the trials."""
    outside = np.zeros(RUNS, dtype=bool)
    for look in range(events.shape[1]):
        counts, index = np.unique(events[:, look], return_inverse=True)
        strange = [
            log_evidence(int(n), look + 1, rate, prior) > math.log(1 / ALPHA) for n in counts
        ]
        outside |= np.array(strange)[index]
    return float(outside.mean())


@pytest.mark.parametrize("rate", [0.01, 0.07, 0.5])
@pytest.mark.parametrize("prior", [ERRORS, EVEN])
def test_a_rate_is_never_outside_its_bounds_more_often_than_said(rate: float, prior: Prior) -> None:
    assert ever_outside(totals(rate, seed=1), rate, prior) <= ALLOWED


def test_a_fixed_sample_bound_that_is_peeked_at_is_outside_much_more_often() -> None:
    """So the simulation would notice a bound that does not allow for looking."""
    trials = np.arange(1, LOOKS + 1)
    rates = totals(0.5, seed=1) / trials
    outside = np.abs(rates - 0.5) > 1.96 * np.sqrt(0.25 / trials)
    assert outside[:, 30:].any(axis=1).mean() > 0.3


bounds = lru_cache(maxsize=None)(
    lambda live, live_trials, errors, trials: increase_bounds(
        Arm(live, live_trials), Arm(errors, trials), ALPHA
    )
)


def decisions(live_rate: float, rate: float, runs: int, looks: int) -> tuple[float, float, float]:
    """Looks after every request to a candidate at 20 %; stops at the first decision.

    Returns:
        The share of runs that passed and that failed, and the median request of the decision.
    """
    random = np.random.default_rng(2)
    live = np.cumsum(random.random((runs, 4 * looks)) < live_rate, axis=1)
    candidate = np.cumsum(random.random((runs, looks)) < rate, axis=1)
    passed, failed, ended = 0, 0, []
    for run in range(runs):
        for look in range(1, looks + 1):
            rise = bounds(
                int(live[run, 4 * look - 1]), 4 * look, int(candidate[run, look - 1]), look
            )
            if rise.high <= LIMIT or rise.low > LIMIT:
                passed += rise.high <= LIMIT
                failed += rise.low > LIMIT
                ended.append(look)
                break
    return passed / runs, failed / runs, float(np.median(ended)) if ended else math.inf


def test_a_candidate_at_the_limit_is_rarely_judged_either_way() -> None:
    """The hardest case for both errors: the rise is the limit exactly."""
    passed, failed, _ = decisions(0.02, 0.02 + LIMIT, runs=150, looks=600)
    assert passed <= ALLOWED and failed <= ALLOWED


def test_a_candidate_of_many_errors_is_stopped_early_and_a_good_one_passes() -> None:
    passed, failed, median = decisions(0.0, 0.2, runs=100, looks=300)
    assert (passed, failed) == (0, 1)
    assert median <= 80
    passed, failed, median = decisions(0.001, 0.001, runs=100, looks=400)
    assert failed == 0 and passed == 1
    assert median <= 100
    passed, failed, median = decisions(0.01, 0.01, runs=60, looks=1000)
    assert failed == 0 and passed >= 0.95


def test_the_requests_a_faultless_candidate_needs_are_as_documented() -> None:
    assert [trials_to_exclude(rise) for rise in (0.05, 0.01, 0.15)] == [97, 534, 29]
    assert [trials_to_exclude(0.05, 0.05 / steps) for steps in (2, 4)] == [111, 125]
    for errors, needed in ((1, 169), (2, 218)):
        assert increase_bounds(Arm(0, 4 * needed), Arm(errors, needed)).high <= LIMIT
        assert increase_bounds(Arm(0, 4 * needed), Arm(errors, needed - 2)).high > LIMIT


def test_steps_share_the_chance_of_error() -> None:
    one, four = (increase_bounds(Arm(3, 400), Arm(5, 100), 0.05 / steps) for steps in (1, 4))
    assert four.low < one.low and one.high < four.high


@pytest.mark.parametrize("quantile", [0.5, 0.95, 0.99])
def test_a_quantile_is_never_outside_its_bounds_more_often_than_said(quantile: float) -> None:
    """The ranks that the bounds are at, after each value, against how many values are above."""
    above = totals(1 - quantile, seed=3)
    outside = np.zeros(RUNS, dtype=bool)
    for look in range(LOOKS):
        count = look + 1
        ranks = quantile_ranks(count, quantile, ALPHA)
        below = count - above[:, look]  # so many values are at most the quantile
        if ranks.low is not None:
            outside |= below < ranks.low
        if ranks.high is not None:
            outside |= below >= ranks.high
    assert outside.mean() <= ALLOWED


def test_a_mean_is_rarely_outside_its_bounds() -> None:
    values = np.random.default_rng(4).exponential(size=(RUNS, LOOKS))
    counts = np.arange(1, LOOKS + 1)
    means = np.cumsum(values, axis=1) / counts
    deviations = np.sqrt(np.maximum(np.cumsum(values**2, axis=1) / counts - means**2, 0))
    radii = np.array([mean_radius(int(count), 1.0, ALPHA) for count in counts])
    # It is asymptotic: no promise for a few values, which the checks do not judge by.
    outside = np.abs(means - 1.0) > deviations * radii
    assert outside[:, MINIMUM_VALUES - 1 :].any(axis=1).mean() <= ALLOWED


def test_the_evidence_is_the_product_of_what_each_trial_told() -> None:
    """Against the same martingale, built up trial by trial from its predictions."""
    events = [0, 0, 1, 0, 1, 1, 0, 0, 0, 1]
    prior, rate, product, seen = Prior(0.25, 1.0), 0.3, 1.0, 0
    for trial, event in enumerate(events):
        predicted = (prior.a + seen) / (prior.a + prior.b + trial)
        product *= predicted / rate if event else (1 - predicted) / (1 - rate)
        seen += event
    assert log_evidence(seen, len(events), rate, prior) == pytest.approx(math.log(product))


@given(st.integers(0, 5000), st.data())
def test_a_rate_lies_within_its_bounds(trials: int, data: st.DataObject) -> None:
    events = data.draw(st.integers(0, trials))
    found = rate_bounds(events, trials, data.draw(st.sampled_from([0.05, 0.001])))
    assert 0 <= found.low <= (events / trials if trials else 0.5) <= found.high <= 1


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=400), st.sampled_from([0.5, 0.95, 0.99]))
def test_quantile_bounds_are_values_around_the_quantile(
    values: list[float], quantile: float
) -> None:
    found = quantile_bounds(Values(values), quantile, 0.01)
    assert found.low in (-math.inf, *values) and found.high in (math.inf, *values)
    assert found.low <= np.quantile(values, quantile, method="higher")
    assert np.quantile(values, quantile, method="lower") <= found.high


@given(st.lists(st.floats(0.01, 20), min_size=5, max_size=400), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_histogram_bounds_a_quantile_no_tighter_than_its_values(
    values: list[float], quantile: float
) -> None:
    edges = [1.0, 2.0, 5.0, 10.0, math.inf]
    counts = np.bincount(np.searchsorted(edges, values), minlength=len(edges)).tolist()
    exact = quantile_bounds(Values(values), quantile, 0.01)
    coarse = quantile_bounds(Buckets(edges, counts), quantile, 0.01)
    assert coarse.low <= exact.low and exact.high <= coarse.high
    assert 0 <= Buckets(edges, counts).quantile(quantile) <= 10.0
