# SPDX-License-Identifier: Apache-2.0
"""The backtest pipeline: what models trained at other times would have scored on given windows."""

from typing import Dict, List

from kfp import dsl

from kfloop.components import (
    apply_feature_repo,
    build_feature_tables,
    compute_statistics,
    evaluate_model,
    infer_schema,
    ingest_data,
    retrieve_training_set,
    split_data,
    train_model,
    transform_data,
)
from kfloop.pipelines.steps import always


@dsl.pipeline(
    name="backtest",
    description="Train a model for each given window and evaluate it on the rows after it; "
    "evaluate published models on given windows.",
)
def backtest(
    name: str,
    task: str,
    sources: List[Dict],
    examples_query: str,
    label: str,
    timestamp: str,
    entities: List[str] = [],
    feature_repo: str = "",
    feature_service: str = "",
    feature_queries: Dict[str, str] = {},
    since: str = "",
    until: str = "",
    schema: str = "",
    features: List[str] = [],
    module: str = "",
    epochs: int = 20,
    batch_size: int = 1024,
    learning_rate: float = 0.001,
    validation_fraction: float = 0.1,
    seed: int = 0,
    hyperparameters: Dict = {},
    trainings: List[Dict] = [],
    models: List[Dict] = [],
):
    """Scores models on windows of the past.

    Args:
        trainings: `{since, train_until, at, until}` each: train on since <= time < train_until,
            evaluate on at <= time < until.
        models: `{model_uri, at, until}` each: evaluate a published model on at <= time < until.
    """
    tables = always(ingest_data(sources=sources, until=until)).outputs["tables"]
    examples = transform_data(
        tables=tables, query=examples_query, timestamp=timestamp, since=since, until=until
    ).outputs["dataset"]
    statistics = compute_statistics(dataset=examples, timestamp=timestamp)
    inferred = infer_schema(
        statistics=statistics.outputs["statistics"], label=label, schema_uri=schema
    )
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
    ).outputs["training_set"]
    with dsl.ParallelFor(trainings, name="train-anew") as window:
        learned = split_data(
            dataset=rows,
            timestamp=timestamp,
            since=window.since,
            at=window.train_until,
            until=window.until,
        )
        judged = split_data(dataset=rows, timestamp=timestamp, at=window.at, until=window.until)
        trained = train_model(
            train=learned.outputs["train"],
            schema=inferred.outputs["schema"],
            name=name,
            task=task,
            label=label,
            timestamp=timestamp,
            entities=entities,
            features=features,
            feature_service=feature_service,
            module_uri=module,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            validation_fraction=validation_fraction,
            seed=seed,
            hyperparameters=hyperparameters,
            onnx=False,  # judged, never served
        )
        evaluate_model(
            model=trained.outputs["model"], dataset=judged.outputs["evaluation"], importance_rows=0
        )
    with dsl.ParallelFor(models, name="published-models") as one:
        published = dsl.importer(artifact_uri=one.model_uri, artifact_class=dsl.Model)
        judged_on = split_data(dataset=rows, timestamp=timestamp, at=one.at, until=one.until)
        evaluate_model(
            model=published.output, dataset=judged_on.outputs["evaluation"], importance_rows=0
        )
