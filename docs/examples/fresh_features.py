from kfp import dsl

from kfloop.components import detect_serving_skew, push_features


@dsl.pipeline(name="fresh-features")
def fresh_features(
    repo_uri: str = "/mnt/shared/feature-repo",
    rows_uri: str = "/mnt/shared/new-feature-rows",
    log_uri: str = "/mnt/shared/requests-of-the-week",
):
    """Push new feature values, and check that requests carry what the store had at their time."""
    repo = dsl.importer(artifact_uri=repo_uri, artifact_class=dsl.Artifact)
    rows = dsl.importer(artifact_uri=rows_uri, artifact_class=dsl.Dataset)
    log = dsl.importer(artifact_uri=log_uri, artifact_class=dsl.Dataset)
    push_features(
        dataset=rows.output, feature_repo=repo.output, push_source="station_push", to="online"
    )
    detect_serving_skew(
        log=log.output,
        feature_repo=repo.output,
        timestamp="started_at",
        feature_service="trip_minutes",
    )
