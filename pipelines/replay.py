# SPDX-License-Identifier: Apache-2.0
"""The replay pipeline: rows of a later window become requests to a service."""

from typing import Dict, List

from kfp import dsl

from kfloop.components import (
    apply_feature_repo,
    build_feature_tables,
    ingest_data,
    replay_requests,
    retrieve_training_set,
    transform_data,
)
from kfloop.pipelines.steps import always


@dsl.pipeline(
    name="replay",
    description="Send rows of a window to a service as requests, with the features they had.",
)
def replay(
    sources: List[Dict],
    examples_query: str,
    service: str,
    timestamp: str = "",
    feature_repo: str = "",
    feature_service: str = "",
    feature_queries: Dict[str, str] = {},
    since: str = "",
    until: str = "",
    limit: int = 5000,
    batch_size: int = 10,
    namespace: str = "",
):
    """Replays a window of the sources against a service."""
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
    always(
        replay_requests(
            requests=rows.outputs["training_set"],
            service=service,
            namespace=namespace,
            limit=limit,
            batch_size=batch_size,
        )
    )
