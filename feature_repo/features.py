# SPDX-License-Identifier: Apache-2.0
"""Features of a flight, as known at its scheduled departure.

Each view reads a table that a query in `sql/` makes. A value older than the view's ttl counts as
missing.
"""

from datetime import timedelta
from typing import Any

from entities import aircraft, carrier, destination, origin
from feast import FeatureService, FeatureView, Field, FileSource, RequestSource
from feast.data_format import ParquetFormat
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64


def table(name: str, timestamp: str = "known_at") -> FileSource:
    """A feature table; the path is relative to the repository."""
    return FileSource(
        name=name,
        path=f"data/{name}",
        file_format=ParquetFormat(),
        timestamp_field=timestamp,
    )


aircraft_history = FeatureView(
    name="aircraft_history",
    entities=[aircraft],
    # Below a day, so that the difference of two clock times is the time between them.
    ttl=timedelta(hours=20),
    schema=[
        Field(name="last_arrival_delay", dtype=Int64),
        Field(name="last_arrival_minute", dtype=Int64),
        Field(name="last_flight_minutes", dtype=Int64),
        Field(name="mean_arrival_delay_10_flights", dtype=Float64),
    ],
    source=table("aircraft", "arrived"),
)
plane_facts = FeatureView(
    name="plane_facts",
    entities=[aircraft],
    ttl=timedelta(0),  # for ever
    schema=[Field(name="built", dtype=Int64), Field(name="seats", dtype=Int64)],
    source=table("planes"),
)
origin_traffic = FeatureView(
    name="origin_traffic",
    entities=[origin],
    ttl=timedelta(hours=2),
    schema=[
        Field(name="origin_departure_delay_1h", dtype=Float64),
        Field(name="origin_late_share_1h", dtype=Float64),
        Field(name="origin_departures_1h", dtype=Int64),
        Field(name="origin_overdue", dtype=Int64),
    ],
    source=table("origin_traffic"),
)
carrier_traffic = FeatureView(
    name="carrier_traffic",
    entities=[carrier, origin],
    ttl=timedelta(hours=3),
    schema=[
        Field(name="carrier_departure_delay_3h", dtype=Float64),
        Field(name="carrier_late_share_3h", dtype=Float64),
    ],
    source=table("carrier_traffic"),
)
destination_arrivals = FeatureView(
    name="destination_arrivals",
    entities=[destination],
    ttl=timedelta(hours=6),
    schema=[
        Field(name="destination_arrival_delay_6h", dtype=Float64),
        Field(name="destination_minutes_lost_6h", dtype=Float64),
    ],
    source=table("destination", "arrived"),
)
weather = FeatureView(
    name="weather",
    entities=[origin],
    ttl=timedelta(hours=4),
    schema=[
        Field(name="temperature", dtype=Float64),
        Field(name="humidity", dtype=Float64),
        Field(name="wind_speed", dtype=Float64),
        Field(name="visibility", dtype=Float64),
        Field(name="pressure", dtype=Float64),
        Field(name="pressure_change_3h", dtype=Float64),
        Field(name="precipitation_6h", dtype=Float64),
    ],
    source=table("weather"),
)


@on_demand_feature_view(
    sources=[
        aircraft_history,
        RequestSource(name="schedule", schema=[Field(name="departure_minute", dtype=Int64)]),
    ],
    schema=[Field(name="turnaround_slack", dtype=Float64)],
    mode="python",
)
def turnaround(inputs: dict[str, Any]) -> dict[str, Any]:
    """Minutes to spare if the aircraft flies straight back; below zero it cannot be here in time.

    The previous flight took it away from New York; the way back is taken to be as long, with a
    turnaround at both ends. Missing when the previous flight is unknown.
    """
    # Feast stores the text of this function, so what it uses is defined in it.
    minutes_of_a_day, turnaround_minutes = 24 * 60, 45
    slack: list[float | None] = []
    for departure, arrival, flight in zip(
        inputs["departure_minute"],
        inputs["last_arrival_minute"],
        inputs["last_flight_minutes"],
        strict=True,
    ):
        if departure is None or arrival is None or flight is None:
            slack.append(None)
        else:
            since_arrival = (departure - arrival) % minutes_of_a_day
            slack.append(float(since_arrival - flight - 2 * turnaround_minutes))
    return {"turnaround_slack": slack}


flight_delay = FeatureService(
    name="flight_delay",
    features=[
        aircraft_history[["last_arrival_delay", "mean_arrival_delay_10_flights"]],
        turnaround,
        plane_facts,
        origin_traffic,
        carrier_traffic,
        destination_arrivals,
        weather,
    ],
)
