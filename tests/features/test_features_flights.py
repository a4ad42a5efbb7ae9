# SPDX-License-Identifier: Apache-2.0
"""The sample project's SQL and definitions: no flight may see its own outcome, or later ones'."""

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest

from kfloop.components.contracts.dataset import read_dataset, write_dataset
from kfloop.components.data.transform import build_feature_tables, transform
from kfloop.components.features.repository import apply
from kfloop.components.features.training_set import retrieve

ROOT = Path(__file__).parents[2] / "feature_repo"
OUTCOME = ("dep_time", "dep_delay", "arr_time", "arr_delay", "air_time")
NEW_YORK, CHICAGO = ZoneInfo("America/New_York"), ZoneInfo("America/Chicago")
DAY = datetime(2013, 3, 4, 11, tzinfo=UTC)
Flight = dict[str, Any]


def flight(number: int, scheduled: datetime, delay: int | None, lost: int = 0) -> Flight:
    """A flight of two hours to Chicago; without a delay it was cancelled."""
    local = scheduled.astimezone(NEW_YORK)
    row: Flight = {
        **{"year": local.year, "month": local.month, "day": local.day},
        **{"hour": local.hour, "minute": local.minute},
        **{"time_hour": scheduled.replace(minute=0), "flight": number, "distance": 733},
        **{"carrier": "AB"[number % 2], "tailnum": f"N{number % 4}" if number % 5 else None},
        **{"origin": ("JFK", "LGA")[number % 2], "dest": "ORD"},
        "sched_dep_time": clock(local),
        "sched_arr_time": clock((scheduled + timedelta(hours=2)).astimezone(CHICAGO)),
        **dict.fromkeys(OUTCOME),
    }
    return row if delay is None else row | outcome(scheduled, delay, lost)


def outcome(scheduled: datetime, delay: int, lost: int) -> Flight:
    left = scheduled + timedelta(minutes=delay)
    there = left + timedelta(minutes=120 + lost)
    return {
        **{"dep_time": clock(left.astimezone(NEW_YORK)), "dep_delay": delay, "air_time": 100},
        **{"arr_time": clock(there.astimezone(CHICAGO)), "arr_delay": delay + lost},
    }


def clock(local: datetime) -> int:
    return local.hour * 100 + local.minute


def scheduled_of(row: Flight) -> datetime:
    moment: datetime = row["time_hour"] + timedelta(minutes=row["minute"])
    return moment


@pytest.fixture(scope="module")
def flights() -> list[Flight]:
    chance = random.Random(0)
    delays = [-20, -5, -1, 0, 0, 3, 16, 40, 150, None]
    return [
        flight(
            number,
            DAY + timedelta(minutes=5 * chance.randrange(300)),
            chance.choice(delays),
            chance.randint(-15, 30),
        )
        for number in range(150)
    ]


def training_set(path: Path, flights: list[Flight]) -> dict[str, Flight]:
    """Runs the sample project on flights and returns its rows by flight."""
    weather = [
        {
            **{"origin": origin, "time_hour": DAY + timedelta(hours=hour), "temp": 30.0 + hour},
            **{"humid": 50.0, "wind_speed": 5.0, "visib": 10.0, "precip": 0.1, "pressure": 1000.0},
        }
        for origin in ("JFK", "LGA")
        for hour in range(-2, 30)
    ]
    write_dataset(pa.Table.from_pylist(flights), path / "tables" / "flights")
    write_dataset(pa.Table.from_pylist(weather), path / "tables" / "weather")
    planes = pa.table({"tailnum": ["N1"], "year": [1999], "seats": [100]})
    write_dataset(planes, path / "tables" / "planes")
    airports = pa.table({"faa": ["ORD"], "tzone": ["America/Chicago"]})
    write_dataset(airports, path / "tables" / "airports")
    queries = {file.stem: file.read_text() for file in (ROOT / "sql").glob("*.sql")}
    examples = queries.pop("examples")
    transform(path / "tables", examples, path / "examples", "scheduled_departure")
    build_feature_tables(path / "tables", queries, path / "feature_tables")
    apply(path / "feature_tables", path / "repo", str(ROOT), "flight_delay")
    retrieve(path / "examples", path / "repo", path / "out", "scheduled_departure", "flight_delay")
    return {row["flight_id"]: row for row in read_dataset(path / "out").to_pylist()}


@pytest.fixture(scope="module")
def rows(flights: list[Flight], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Flight]:
    return training_set(tmp_path_factory.mktemp("flights"), flights)


def test_every_labelled_flight_is_one_example(
    flights: list[Flight], rows: dict[str, Flight]
) -> None:
    assert len(rows) == sum(row["arr_delay"] is not None for row in flights)
    assert not set(OUTCOME) & set(next(iter(rows.values())))
    for name in ("last_arrival_delay", "turnaround_slack", "origin_overdue", "temperature"):
        assert any(row[name] is not None for row in rows.values()), name


def test_a_flight_does_not_see_what_happens_from_its_scheduled_departure_on(
    flights: list[Flight], rows: dict[str, Flight], tmp_path: Path
) -> None:
    moments = sorted(row["scheduled_departure"] for row in rows.values())
    moment = moments[len(moments) // 2]
    changed = [
        row | outcome(scheduled_of(row), 77, 33)
        if scheduled_of(row) >= moment and row["arr_delay"] is not None
        else row
        for row in flights
    ]
    after = training_set(tmp_path, changed)
    for name, row in rows.items():
        if row["scheduled_departure"] <= moment:
            assert {**after[name], "late": None} == {**row, "late": None}
    assert after != rows


def test_an_early_departure_is_not_seen_by_itself(rows: dict[str, Flight], tmp_path: Path) -> None:
    alone = training_set(tmp_path, [flight(1, DAY, -20), flight(3, DAY + timedelta(hours=30), 0)])
    first = alone["2013-03-04-B1-LGA"]
    assert first["origin_departures_1h"] is None
    assert first["carrier_departure_delay_3h"] is None


def test_an_aircraft_that_cannot_be_back_has_no_slack(tmp_path: Path) -> None:
    # Away for two hours, arriving 45 minutes late; the next flight leaves three hours later.
    first = flight(1, DAY, 30, 15)
    second = flight(1, DAY + timedelta(hours=6), 0) | {"flight": 2}
    seen = training_set(tmp_path, [first, second])["2013-03-04-B2-LGA"]
    away = 120 + 15
    assert seen["last_arrival_delay"] == 45
    assert seen["turnaround_slack"] == (6 * 60 - 30 - away) - away - 2 * 45
