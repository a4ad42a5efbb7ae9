from kfp import dsl

from kfloop.components import (
    compute_statistics,
    decide_retraining,
    detect_drift,
    detect_serving_skew,
    export_metrics,
    measure_performance,
    notify,
    score_outliers,
    validate_data,
)


@dsl.pipeline(name="monitor")
def monitor(
    window_uri: str = "/mnt/shared/requests-of-the-week",
    labelled_uri: str = "/mnt/shared/labelled-requests",
    schema_uri: str = "gs://bucket/schema.pbtxt",
    repo_uri: str = "/mnt/shared/feature-repo",
    model_uri: str = "pvc://shared/models/bikes/3",
    history_uri: str = "/mnt/shared/monitoring/bikes.jsonl",
    until: str = "2024-07-01",
):
    """Judge a live model by a window of requests, decide whether to retrain, export and tell."""
    run_id = dsl.PIPELINE_JOB_ID_PLACEHOLDER
    told = notify(
        service="bikes",
        run_id=run_id,
        history_uri=history_uri,
        webhook="${SLACK_WEBHOOK}",  # an environment variable of the step, from a Secret
    ).set_caching_options(False)
    with dsl.ExitHandler(told):
        window = dsl.importer(artifact_uri=window_uri, artifact_class=dsl.Dataset)
        labelled = dsl.importer(artifact_uri=labelled_uri, artifact_class=dsl.Dataset)
        schema = dsl.importer(artifact_uri=schema_uri, artifact_class=dsl.Artifact)
        repo = dsl.importer(artifact_uri=repo_uri, artifact_class=dsl.Artifact)
        quality = validate_data(
            statistics=compute_statistics(dataset=window.output).outputs["statistics"],
            schema=schema.output,
            environment="SERVING",
        )
        drift = detect_drift(current=window.output, model_uri=model_uri)
        performance = measure_performance(joined=labelled.output, model_uri=model_uri)
        skew = detect_serving_skew(
            log=window.output, feature_repo=repo.output, timestamp="started_at"
        )
        score_outliers(current=window.output, model_uri=model_uri)
        retraining = decide_retraining(
            data_quality=quality.outputs["decision"],
            drift=drift.outputs["decision"],
            performance=performance.outputs["decision"],
            joined=labelled.output,
            model_uri=model_uri,
            cooldown_days=30.0,
            history_uri=history_uri,
            run_id=run_id,
        ).set_caching_options(False)
        export_metrics(
            data_quality=quality.outputs["decision"],
            drift=drift.outputs["decision"],
            performance=performance.outputs["decision"],
            serving_skew=skew.outputs["decision"],
            retraining=retraining.outputs["decision"],
            service="bikes",
            model_version="3",
            until=until,
            destination="http://pushgateway.monitoring:9091",
        ).set_caching_options(False)
