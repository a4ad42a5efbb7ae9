from kfp import dsl

from kfloop.components import (
    build_feature_tables,
    export_data,
    ingest_data,
    split_data,
    transform_data,
)


@dsl.pipeline(name="prepare-data")
def prepare_data(
    trips_uri: str = "gs://bucket/trips/*.parquet", export_to: str = "gs://bucket/out"
):
    """Read tables, query them, split the result by time and export a copy."""
    ingested = ingest_data(sources=[{"name": "trips", "uri": trips_uri, "timestamp": "started_at"}])
    ingested.set_caching_options(False)  # what lies at a URI changes while the URI stays
    tables = ingested.outputs["tables"]
    examples = transform_data(
        tables=tables,
        query="SELECT * FROM trips WHERE minutes IS NOT NULL",
        timestamp="started_at",
        until="2024-06-01",
    )
    build_feature_tables(
        tables=tables,
        queries={"stations": "SELECT station, ended_at AS known_at, minutes FROM trips"},
    )
    split_data(
        dataset=examples.outputs["dataset"], method="time", timestamp="started_at", fraction=0.2
    )
    export_data(
        dataset=examples.outputs["dataset"], uri=export_to, timestamp="started_at"
    ).set_caching_options(False)
