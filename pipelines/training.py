"""The training pipeline: from sources to a model that serves, if it earned it."""

from typing import Dict, List

from kfp import dsl

from kfloop.components import materialize_features
from kfloop.pipelines.steps import always, roll_out, train_candidate


@dsl.pipeline(
    name="training",
    description="Ingest, validate, join features, train, evaluate and gate a model; deploy it "
    "as a canary beside the live one and promote it or roll it back.",
)
def training(
    name: str,
    task: str,
    sources: List[Dict],
    examples_query: str,
    label: str,
    service: str,
    model_repository: str,
    inference_log: str,
    timestamp: str = "",
    entities: List[str] = [],
    feature_repo: str = "",
    feature_service: str = "",
    feature_queries: Dict[str, str] = {},
    split_method: str = "time",
    split_key: str = "",
    split_fraction: float = 0.2,
    since: str = "",
    split_at: str = "",
    until: str = "",
    minimum_rows: int = 100,
    schema: str = "",
    rules: List[str] = [],
    drift: str = "report",
    features: List[str] = [],
    module: str = "",
    epochs: int = 20,
    batch_size: int = 1024,
    learning_rate: float = 0.001,
    validation_fraction: float = 0.1,
    seed: int = 0,
    hyperparameters: Dict = {},
    training_input: str = "auto",
    checkpoint: str = "",
    require_gpu: bool = False,
    mixed_precision: str = "",
    slices: List[str] = [],
    minimum_slice_size: int = 100,
    groups: List[str] = [],
    thresholds: Dict = {},
    slice_thresholds: Dict = {},
    minimum_improvement: Dict = {},
    maximum_slice_regression: Dict = {},
    fairness: Dict = {},
    latency_ms: Dict = {},
    no_baseline: str = "pass",
    namespace: str = "",
    registry: str = "",
    canary_percent: int = 20,
    canary_minimum_requests: int = 200,
    canary_wait_seconds: float = 60.0,
    canary_replay: bool = True,
):
    """Trains a model and rolls it out when the gate passes it.

    The parameters are the keys of `loop.yaml`; `kfloop.pipelines.loop` says what each one means.
    """
    candidate = train_candidate(
        name=name,
        task=task,
        sources=sources,
        examples_query=examples_query,
        label=label,
        timestamp=timestamp,
        entities=entities,
        feature_repo=feature_repo,
        feature_service=feature_service,
        feature_queries=feature_queries,
        split_method=split_method,
        split_key=split_key,
        split_fraction=split_fraction,
        since=since,
        split_at=split_at,
        until=until,
        minimum_rows=minimum_rows,
        schema=schema,
        rules=rules,
        drift=drift,
        features=features,
        module=module,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        validation_fraction=validation_fraction,
        seed=seed,
        hyperparameters=hyperparameters,
        training_input=training_input,
        checkpoint=checkpoint,
        require_gpu=require_gpu,
        mixed_precision=mixed_precision,
        slices=slices,
        minimum_slice_size=minimum_slice_size,
        groups=groups,
        thresholds=thresholds,
        slice_thresholds=slice_thresholds,
        minimum_improvement=minimum_improvement,
        maximum_slice_regression=maximum_slice_regression,
        fairness=fairness,
        latency_ms=latency_ms,
        no_baseline=no_baseline,
        service=service,
        namespace=namespace,
        registry=registry,
    )
    with dsl.If(candidate.outputs["decision"] == "pass", name="model-passed-the-gate"):
        # What the model will ask of the online store is there before the model serves.
        materialized = always(
            materialize_features(feature_repo=candidate.outputs["feature_repo"], until=until)
        )
        roll_out(
            model=candidate.outputs["model"],
            evaluation=candidate.outputs["evaluation"],
            service=service,
            namespace=namespace,
            model_repository=model_repository,
            inference_log=inference_log,
            registry=registry,
            canary_percent=canary_percent,
            canary_minimum_requests=canary_minimum_requests,
            canary_wait_seconds=canary_wait_seconds,
            canary_replay=canary_replay,
        ).after(materialized)
