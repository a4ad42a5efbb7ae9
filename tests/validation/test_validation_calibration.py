# SPDX-License-Identifier: Apache-2.0
"""The thresholds of drift against chance as it is: random halves of one baseline, and real data."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kfloop.components.contracts.dataset import write_dataset
from kfloop.components.validation.columns import clean
from kfloop.components.validation.distances import (
    SKETCH_FACTOR,
    l_infinity,
    l_infinity_noise,
    population_stability_index,
    psi_noise,
)
from kfloop.components.validation.findings import Limits
from kfloop.components.validation.schema import infer_schema
from kfloop.components.validation.statistics import compute_statistics
from kfloop.components.validation.summary import Column, summarize
from kfloop.components.validation.tfdv import StatisticsStream
from kfloop.components.validation.validate import validate_data

ROWS, SPLITS = 1500, 24
WEATHER = Path(__file__).parents[2] / "data" / "weather.parquet"


def season(rows: int, day: int, random: np.random.Generator) -> dict[str, Any]:
    """Columns like those of a month of weather: skewed, rounded, gusty, mostly zero, by hour."""
    hour = np.arange(rows) % 24
    cold = -np.cos(2 * np.pi * day / 365)
    temperature = 55 + 25 * cold + 6 * np.sin((hour - 9) * np.pi / 12) + random.normal(0, 7, rows)
    speed = (random.gamma(3, 3.5, rows) / 1.15).round() * 1.15
    return {
        "temp": (temperature / 0.9).round() * 0.9,
        "hour": hour,
        "wind_speed": speed,
        "wind_gust": pa.array(speed * 1.4, mask=random.random(rows) < 0.75),
        "precip": np.where(random.random(rows) < 0.93, 0.0, random.exponential(0.05, rows)),
        "visib": np.minimum(10, random.gamma(8, 2, rows).round(1)),
        "origin": random.choice(["EWR", "JFK", "LGA"], rows),
    }


def measure(columns: dict[str, Any]) -> dict[str, Column]:
    stream = StatisticsStream()
    stream.add(clean(pa.record_batch(columns)))
    return summarize(stream.statistics()).columns


def test_the_noise_floor_is_that_of_random_halves_of_the_baseline() -> None:
    random = np.random.default_rng(5)
    baseline = season(ROWS, 180, random)
    del baseline["wind_gust"]
    half, beyond = ROWS // 2, 0
    ratios: dict[str, list[float]] = {name: [] for name in baseline}
    for _ in range(SPLITS):
        rows = random.permutation(ROWS)
        one, other = (
            measure({name: np.asarray(values)[part] for name, values in baseline.items()})
            for part in (rows[:half], rows[half:])
        )
        for name in baseline:
            if one[name].is_number:
                value, bins = population_stability_index(one[name], other[name])
                limit = psi_noise(half, half, bins, false_alarms=0.05)
                ratios[name].append(value / ((bins - 1) * (2 / half)))
            else:
                value, _ = l_infinity(one[name], other[name])
                limit = l_infinity_noise(half, half, 3, false_alarms=0.05)
            beyond += value > limit
    # At one false alarm in twenty, 7 of 144 are expected; 14 are three standard deviations more.
    assert beyond <= 14
    # The floor is neither too low for any shape of column, nor so high that it would hide drift.
    for name, found in ratios.items():
        assert not found or 0.5 < np.mean(found) < 1.1 * SKETCH_FACTOR, name


def judge(directory: Path, before: pa.Table, now: pa.Table) -> tuple[str, set[str]]:
    """Returns the decision and the columns that drifted, where drift fails."""
    for name, table in (("before", before), ("now", now)):
        write_dataset(table, directory / f"{name}-data")
        compute_statistics(directory / f"{name}-data", directory / name)
    infer_schema(directory / "before", directory / "schema")
    decision = validate_data(
        directory / "now",
        directory / "schema",
        directory / "anomalies",
        directory / "decision",
        directory / "page",
        baseline=directory / "before",
        limits=Limits(drift="fail"),
    )
    drifted = {r.metric for r in decision.reasons if not r.passed and r.check.startswith("drift")}
    return decision.decision, drifted


def halves(table: pa.Table, seed: int) -> tuple[pa.Table, pa.Table]:
    first = np.random.default_rng(seed).random(table.num_rows) < 0.5
    return table.filter(pa.array(first)), table.filter(pa.array(~first))


# Trap: by TFDV's default numeric distance, halves of one month differ more than two seasons.
def test_halves_of_a_month_pass_and_another_season_fails(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    summer, winter = (pa.table(season(2200, day, random)) for day in (165, 15))
    for seed in range(3):
        assert judge(tmp_path, *halves(summer, seed)) == ("pass", set())
    assert judge(tmp_path, winter, summer) == ("fail", {"temp"})


def test_random_halves_of_a_real_june_pass_and_january_against_july_fails(tmp_path: Path) -> None:
    if not WEATHER.is_file():
        pytest.skip("data/weather.parquet is not there; `make run` fetches the sample data")
    weather = pq.read_table(WEATHER)
    months = weather["month"].to_numpy()
    june, january, july = (weather.filter(pa.array(months == month)) for month in (6, 1, 7))
    for seed in range(2):
        assert judge(tmp_path, *halves(june, seed)) == ("pass", set())
    decision, drifted = judge(tmp_path, january, july)
    assert decision == "fail"
    assert {"temp", "dewp"} <= drifted
    assert not {"hour", "day", "precip", "origin"} & drifted
