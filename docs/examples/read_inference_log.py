from kfp import dsl

from kfloop.components import (
    collect_inference_log,
    ingest_data,
    join_labels,
    load_reference,
    plan_windows,
    transform_data,
)


@dsl.pipeline(name="read-inference-log")
def read_inference_log(
    log_uri: str = "/mnt/shared/inference-log/bikes",
    model_uri: str = "/mnt/shared/models/bikes/3",
    trips_uri: str = "gs://bucket/trips/*.parquet",
):
    """Plan a monitoring window, read it from the inference log and join the labels that arrived."""
    windows = plan_windows(log_uri=log_uri, window_days=7, timestamp="started_at")
    windows.set_caching_options(False)  # the log grows
    requests = collect_inference_log(
        log_uri=log_uri,
        since=windows.outputs["window_since"],
        until=windows.outputs["until"],
        timestamp="started_at",
    ).set_caching_options(False)
    trips = ingest_data(sources=[{"name": "trips", "uri": trips_uri}]).set_caching_options(False)
    labels = transform_data(
        tables=trips.outputs["tables"],
        query="SELECT trip_id, minutes FROM trips WHERE minutes IS NOT NULL",
    )
    join_labels(
        predictions=requests.outputs["dataset"],
        labels=labels.outputs["dataset"],
        keys=["trip_id"],
        label="minutes",
        maturity_days=1.0,
    )
    load_reference(model_uri=model_uri)
