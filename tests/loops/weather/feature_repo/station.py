# SPDX-License-Identifier: Apache-2.0
"""One feature view, no on-demand views and no feature_store.yaml: the least that a repo can be."""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.data_format import ParquetFormat
from feast.types import Float64

station = Entity(name="station", join_keys=["origin"], value_type=ValueType.STRING)

last_day = FeatureView(
    name="last_day",
    entities=[station],
    ttl=timedelta(hours=6),
    schema=[
        Field(name="coldest_24h", dtype=Float64),
        Field(name="warmest_24h", dtype=Float64),
        Field(name="mean_24h", dtype=Float64),
    ],
    source=FileSource(
        path="data/last_day", file_format=ParquetFormat(), timestamp_field="known_at"
    ),
)

station_weather = FeatureService(name="station_weather", features=[last_day])
