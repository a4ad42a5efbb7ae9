from kfp import dsl

from kfloop.components import (
    apply_feature_repo,
    materialize_features,
    retrieve_online,
    retrieve_training_set,
)


@dsl.pipeline(name="feature-store")
def feature_store(
    tables_uri: str = "/mnt/shared/feature-tables",
    examples_uri: str = "/mnt/shared/examples",
    repo_uri: str = "gs://bucket/feature_repo",
):
    """Apply a Feast repository, join a training set, fill the online store and compare the two."""
    tables = dsl.importer(artifact_uri=tables_uri, artifact_class=dsl.Dataset)
    examples = dsl.importer(artifact_uri=examples_uri, artifact_class=dsl.Dataset)
    applied = apply_feature_repo(
        feature_tables=tables.output, repo_uri=repo_uri, feature_service="trip_minutes"
    ).outputs["feature_repo"]
    retrieve_training_set(
        examples=examples.output,
        feature_repo=applied,
        timestamp="started_at",
        feature_service="trip_minutes",
    )
    online = materialize_features(feature_repo=applied)
    retrieve_online(
        examples=examples.output,
        feature_repo=online.outputs["materialized"],
        feature_service="trip_minutes",
    )
