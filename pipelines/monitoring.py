"""The monitoring pipeline: is the live model still good, and if not, a new one beside it."""

from typing import Dict, List

from kfp import dsl

from kfloop.components import (
    collect_inference_log,
    compute_statistics,
    decide_retraining,
    describe_service,
    detect_drift,
    infer_schema,
    ingest_data,
    join_labels,
    load_reference,
    measure_performance,
    plan_windows,
    transform_data,
    validate_data,
)
from kfloop.components.contracts import inference_log as log_contract
from kfloop.pipelines.steps import always, roll_out, train_candidate

# What the log says about a request; the rest are the model's own columns.
LOG_COLUMNS = [*log_contract.COLUMNS, log_contract.MODEL_VERSION]


@dsl.pipeline(
    name="monitoring",
    description="Judge the live model on its newest requests: data quality, drift, performance "
    "once labels are there. Retrain and roll out a candidate when that is called for.",
)
def monitoring(
    name: str,
    task: str,
    sources: List[Dict],
    examples_query: str,
    label: str,
    service: str,
    model_repository: str,
    inference_log: str,
    label_keys: List[str],
    timestamp: str = "",
    entities: List[str] = [],
    feature_repo: str = "",
    feature_service: str = "",
    feature_queries: Dict[str, str] = {},
    split_method: str = "time",
    split_key: str = "",
    split_fraction: float = 0.2,
    until: str = "",
    window_days: int = 31,
    window_minimum_rows: int = 200,
    performance_thresholds: Dict = {},
    label_maturity_days: float = 0.0,
    train_days: int = 180,
    evaluation_days: int = 14,
    cooldown_days: float = 14.0,
    minimum_new_rows: int = 200,
    force_retraining: str = "",
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
    """Monitors a service and retrains it.

    The parameters are the keys of `loop.yaml`; `kfloop.pipelines.loop` says what each one means.
    """
    live = always(describe_service(service=service, namespace=namespace))
    windows = always(
        plan_windows(
            log_uri=inference_log,
            model_version=live.outputs["model_version"],
            until=until,
            window_days=window_days,
            train_days=train_days,
            evaluation_days=evaluation_days,
            timestamp=timestamp,
        )
    )
    log = always(
        collect_inference_log(
            log_uri=inference_log,
            model_version=live.outputs["model_version"],
            timestamp=timestamp,
            since=windows.outputs["window_since"],
            until=windows.outputs["until"],
        )
    ).outputs["dataset"]
    reference = load_reference(model_uri=live.outputs["model_uri"]).outputs["reference"]

    expected = compute_statistics(dataset=reference).set_display_name("Statistics at training")
    served = compute_statistics(dataset=log).set_display_name("Statistics while serving")
    inferred = infer_schema(statistics=expected.outputs["statistics"], label=label)
    quality = validate_data(
        statistics=served.outputs["statistics"],
        schema=inferred.outputs["schema"],
        baseline=expected.outputs["statistics"],
        label=label,
        environment="SERVING",
        minimum_rows=window_minimum_rows,
        ignore=LOG_COLUMNS,
    )
    drifted = detect_drift(
        current=log,
        model_uri=live.outputs["model_uri"],
        minimum_rows=window_minimum_rows,
    )

    tables = always(ingest_data(sources=sources, until=windows.outputs["data_until"])).outputs[
        "tables"
    ]
    labels = transform_data(
        tables=tables,
        query=examples_query,
        timestamp=timestamp,
        since=windows.outputs["data_since"],
        until=windows.outputs["data_until"],
        allow_empty=True,
    )
    joined = join_labels(
        predictions=log,
        labels=labels.outputs["dataset"],
        keys=label_keys,
        label=label,
        timestamp=timestamp,
        maturity_days=label_maturity_days,
        until=windows.outputs["until"],
    )
    performance = measure_performance(
        joined=joined.outputs["joined"],
        model_uri=live.outputs["model_uri"],
        thresholds=performance_thresholds,
        minimum_rows=window_minimum_rows,
    )
    decision = always(
        decide_retraining(
            data_quality=quality.outputs["decision"],
            drift=drifted.outputs["decision"],
            performance=performance.outputs["decision"],
            joined=joined.outputs["joined"],
            model_uri=live.outputs["model_uri"],
            now=windows.outputs["until"],
            cooldown_days=cooldown_days,
            minimum_new_rows=minimum_new_rows,
            force=force_retraining,
        )
    )
    with dsl.If(decision.outputs["Output"] == "retrain", name="retrain"):
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
            since=windows.outputs["train_since"],
            split_at=windows.outputs["split_at"],
            until=windows.outputs["data_until"],
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
            )
