# SPDX-License-Identifier: Apache-2.0
"""The batch scoring pipeline: the live model's predictions for rows that are already there."""

from typing import Dict, List

from kfp import dsl

from kfloop.components import (
    apply_feature_repo,
    build_feature_tables,
    describe_service,
    export_data,
    ingest_data,
    retrieve_training_set,
    score_data,
    transform_data,
)
from kfloop.pipelines.steps import always


@dsl.pipeline(
    name="batch-scoring",
    description="Score a window of the sources with the model that a service has live.",
)
def batch_scoring(
    sources: List[Dict],
    examples_query: str,
    service: str,
    timestamp: str = "",
    feature_repo: str = "",
    feature_service: str = "",
    feature_queries: Dict[str, str] = {},
    since: str = "",
    until: str = "",
    namespace: str = "",
    export_to: str = "",
    partition_by: List[str] = [],
):
    """Scores rows with the live model; the predictions are the output of `score-data`.

    With `export_to` they are written there too, in partitions that a second run replaces.
    """
    live = always(describe_service(service=service, namespace=namespace))
    tables = always(ingest_data(sources=sources, until=until)).outputs["tables"]
    examples = transform_data(
        tables=tables, query=examples_query, timestamp=timestamp, since=since, until=until
    ).outputs["dataset"]
    feature_tables = build_feature_tables(tables=tables, queries=feature_queries)
    repo = apply_feature_repo(
        feature_tables=feature_tables.outputs["feature_tables"],
        repo_uri=feature_repo,
        feature_service=feature_service,
    )
    rows = retrieve_training_set(
        examples=examples,
        feature_repo=repo.outputs["feature_repo"],
        timestamp=timestamp,
        feature_service=feature_service,
    )
    scored = score_data(model_uri=live.outputs["model_uri"], dataset=rows.outputs["training_set"])
    with dsl.If(export_to != "", name="export"):
        always(
            export_data(
                dataset=scored.outputs["predictions"],
                uri=export_to,
                partition_by=partition_by,
                timestamp=timestamp,
            )
        )
