# SPDX-License-Identifier: Apache-2.0
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tensorflow_metadata.proto.v0 import statistics_pb2

from kfloop.components.validation.columns import clean
from kfloop.components.validation.distances import (
    SKETCH_FACTOR,
    l_infinity,
    l_infinity_noise,
    missing_noise,
    population_stability_index,
    psi_noise,
)
from kfloop.components.validation.summary import Summary, summarize
from kfloop.components.validation.tfdv import StatisticsStream


def measure(columns: dict[str, Any]) -> Summary:
    stream = StatisticsStream()
    stream.add(clean(pa.record_batch(columns)))
    return summarize(stream.statistics())


def shapes(rows: int, random: np.random.Generator) -> dict[str, Any]:
    """Distributions as data has them: smooth, skewed, whole numbers, mostly zero, rounded."""
    return {
        "normal": random.normal(size=rows),
        "lognormal": random.lognormal(sigma=2, size=rows),
        "hour": random.integers(0, 24, rows),
        "count": random.poisson(1.5, rows),
        "mostly_zero": np.where(random.random(rows) < 0.93, 0.0, random.exponential(size=rows)),
        "rounded": random.normal(50, 15, rows).round(),
        "flag": random.integers(0, 2, rows),
        "word": random.choice([f"w{i}" for i in range(30)], rows),
    }


# Trap: TFDV's numeric distance finds two halves of one month further apart than winter and summer.
# Here chance alone passes the limit at most about as often as it should, whatever the shape.
@pytest.mark.parametrize(("rows", "baseline_rows"), [(200, 2000), (5000, 5000)])
def test_two_samples_of_one_distribution_stay_within_the_noise(
    rows: int, baseline_rows: int
) -> None:
    random = np.random.default_rng(rows + baseline_rows)
    alarms, trials = 0, 0
    for _ in range(8):
        now = measure(shapes(rows, random)).columns
        before = measure(shapes(baseline_rows, random)).columns
        for name, column in now.items():
            if column.is_number:
                value, bins = population_stability_index(column, before[name])
                limit = psi_noise(rows, baseline_rows, bins, false_alarms=0.01)
            else:
                value, _ = l_infinity(column, before[name])
                limit = l_infinity_noise(rows, baseline_rows, 30, false_alarms=0.01)
            alarms += value > limit
            trials += 1
    assert trials == 64
    assert alarms <= 3  # more than three have a probability of 0.4 % at one in a hundred


def test_the_mean_psi_of_unchanged_data_is_the_theoretical_one() -> None:
    random = np.random.default_rng(7)
    values = []
    for _ in range(40):
        now = measure({"x": random.normal(size=1000)}).columns["x"]
        before = measure({"x": random.normal(size=2000)}).columns["x"]
        values.append(population_stability_index(now, before)[0])
    assert np.mean(values) == pytest.approx(9 * (1 / 1000 + 1 / 2000), rel=0.25)


@pytest.mark.parametrize(
    ("freedom", "share", "expected"),
    # Quantiles of χ² from standard tables.
    [(9, 0.01, 21.666), (9, 0.001, 27.877), (1, 0.01, 6.635), (4, 0.05, 9.488)],
)
def test_the_noise_is_a_quantile_of_chi_square(freedom: int, share: float, expected: float) -> None:
    noise = psi_noise(1000, 1000, freedom + 1, share)
    assert noise == pytest.approx(SKETCH_FACTOR * expected / 500, rel=0.03)


SEED = np.random.default_rng(0)
HALF = np.arange(5000) % 2


@pytest.mark.parametrize(
    ("before", "now", "least"),
    [
        (SEED.normal(size=5000), SEED.normal(1, 1, 5000), 0.5),
        (SEED.lognormal(size=5000), SEED.lognormal(0.7, size=5000), 0.3),
        (np.zeros(5000), np.where(HALF, 0.0, 1.0), 1.0),
        (np.zeros(5000), np.where(HALF, 0.0, -1.0), 1.0),
        (np.full(5000, 7), np.full(5000, 8), 1.0),
    ],
)
def test_a_shift_is_far_above_the_limit(before: Any, now: Any, least: float) -> None:
    first, second = measure({"x": now}).columns["x"], measure({"x": before}).columns["x"]
    assert population_stability_index(first, second)[0] > least


def test_the_same_constant_is_no_distance() -> None:
    column = measure({"x": np.full(100, 7.0)}).columns["x"]
    assert population_stability_index(column, column) == (0.0, 1)


def test_a_missing_share_may_vary_by_chance() -> None:
    assert missing_noise(0.0, 200, 2000) == 0
    assert missing_noise(0.5, 200, 200) == pytest.approx(3.09 * 0.05, rel=0.01)


def test_statistics_of_other_tools_are_read_without_a_kind() -> None:
    proto = statistics_pb2.DatasetFeatureStatisticsList()
    dataset = proto.datasets.add(num_examples=3)
    dataset.features.add(type=statistics_pb2.FeatureNameStatistics.STRING).path.step.append("s")
    assert summarize(proto).columns["s"].kind == "string"
