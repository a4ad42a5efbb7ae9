# SPDX-License-Identifier: Apache-2.0
"""The monitoring pipeline: is the live model still good, and if not, a new one beside it."""

from typing import Dict, List

from kfp import dsl

from kfloop.components import (
    apply_feature_repo,
    build_feature_tables,
    collect_inference_log,
    compute_statistics,
    decide_retraining,
    describe_service,
    detect_drift,
    detect_serving_skew,
    export_metrics,
    infer_schema,
    ingest_data,
    join_labels,
    load_reference,
    measure_performance,
    notify,
    plan_windows,
    score_outliers,
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
    consecutive_windows: int = 1,
    retraining_budget: int = 0,
    retraining_budget_days: float = 365.0,
    retrain_on_drift: bool = True,
    retrain_on_performance: bool = True,
    history: str = "",
    drift_history: str = "",
    outlier_scores: bool = False,
    metrics: str = "",
    webhook: str = "",
    ui_url: str = "",
    notify_always: bool = False,
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
    accelerator_type: str = "nvidia.com/gpu",
    accelerator_count: str = "0",
    mixed_precision: str = "",
    tuning_space: Dict = {},
    tuning_trials: int = 20,
    tuning_parallel_trials: int = 1,
    tuning_timeout_minutes: float = 0.0,
    tuning_metric: str = "",
    tuning_direction: str = "",
    tuning_pruning: str = "median",
    tuning_study: str = "",
    onnx: bool = True,
    slices: List[str] = [],
    minimum_slice_size: int = 100,
    groups: List[str] = [],
    threshold: float = 0.5,
    threshold_by: str = "",
    false_positive_cost: float = 1.0,
    false_negative_cost: float = 1.0,
    resamples: int = 200,
    evaluation_seed: int = 7,
    importance_rows: int = 2000,
    thresholds: Dict = {},
    slice_thresholds: Dict = {},
    confident: bool = False,
    gate_metric: str = "",
    tolerance: float = 0.0,
    minimum_improvement: Dict = {},
    maximum_slice_regression: Dict = {},
    fairness: Dict = {},
    latency_ms: Dict = {},
    no_baseline: str = "pass",
    force_gate: str = "",
    namespace: str = "",
    registry: str = "",
    canary_steps: List[int] = [20],
    canary_bake_seconds: float = 0.0,
    canary_minimum_requests: int = 200,
    canary_wait_seconds: float = 20.0,
    canary_replay: bool = True,
    canary_source: str = "log",
    canary_prometheus_url: str = "",
    canary_prometheus_preset: str = "kfloop",
    canary_prometheus_queries: Dict = {},
    predictor: Dict = {},
):
    """Monitors a service and retrains it.

    Args:
        outlier_scores: Whether each request gets a score of how unlike the training data it is.
    """
    told = always(
        notify(
            service=service,
            run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            history_uri=history,
            webhook=webhook,
            ui_url=ui_url,
            always=notify_always,
        )
    )
    with dsl.ExitHandler(told, name="monitor"):
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
        drifted = always(
            detect_drift(
                current=log,
                model_uri=live.outputs["model_uri"],
                minimum_rows=window_minimum_rows,
                history_uri=drift_history,
                run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            )
        )

        with dsl.If(outlier_scores == True, name="outlier-scores"):  # noqa: E712  # KFP's condition
            score_outliers(current=log, model_uri=live.outputs["model_uri"])

        tables = always(ingest_data(sources=sources, until=windows.outputs["data_until"])).outputs[
            "tables"
        ]
        feature_tables = build_feature_tables(tables=tables, queries=feature_queries)
        repo = apply_feature_repo(
            feature_tables=feature_tables.outputs["feature_tables"],
            repo_uri=feature_repo,
            feature_service=feature_service,
        )
        skewed = detect_serving_skew(
            log=log,
            feature_repo=repo.outputs["feature_repo"],
            timestamp=timestamp,
            feature_service=feature_service,
        )
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
                consecutive_windows=consecutive_windows,
                budget=retraining_budget,
                budget_days=retraining_budget_days,
                on_drift=retrain_on_drift,
                on_performance=retrain_on_performance,
                history_uri=history,
                run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
                force=force_retraining,
            )
        )
        always(
            export_metrics(
                data_quality=quality.outputs["decision"],
                drift=drifted.outputs["decision"],
                performance=performance.outputs["decision"],
                serving_skew=skewed.outputs["decision"],
                retraining=decision.outputs["decision"],
                service=service,
                model_version=live.outputs["model_version"],
                until=windows.outputs["until"],
                destination=metrics,
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
                accelerator_type=accelerator_type,
                accelerator_count=accelerator_count,
                mixed_precision=mixed_precision,
                tuning_space=tuning_space,
                tuning_trials=tuning_trials,
                tuning_parallel_trials=tuning_parallel_trials,
                tuning_timeout_minutes=tuning_timeout_minutes,
                tuning_metric=tuning_metric,
                tuning_direction=tuning_direction,
                tuning_pruning=tuning_pruning,
                tuning_study=tuning_study,
                onnx=onnx,
                slices=slices,
                minimum_slice_size=minimum_slice_size,
                groups=groups,
                threshold=threshold,
                threshold_by=threshold_by,
                false_positive_cost=false_positive_cost,
                false_negative_cost=false_negative_cost,
                resamples=resamples,
                evaluation_seed=evaluation_seed,
                importance_rows=importance_rows,
                thresholds=thresholds,
                slice_thresholds=slice_thresholds,
                confident=confident,
                gate_metric=gate_metric,
                tolerance=tolerance,
                minimum_improvement=minimum_improvement,
                maximum_slice_regression=maximum_slice_regression,
                fairness=fairness,
                latency_ms=latency_ms,
                no_baseline=no_baseline,
                force_gate=force_gate,
                service=service,
                namespace=namespace,
                registry=registry,
            )
            with dsl.If(candidate.outputs["decision"] == "pass", name="model-passed-the-gate"):
                roll_out(
                    model=candidate.outputs["model"],
                    evaluation=candidate.outputs["evaluation"],
                    name=name,
                    service=service,
                    namespace=namespace,
                    model_repository=model_repository,
                    # New versions log where the live one does; what is read here may be the volume
                    # behind a payload logger's address.
                    inference_log="",
                    registry=registry,
                    canary_steps=canary_steps,
                    canary_bake_seconds=canary_bake_seconds,
                    canary_minimum_requests=canary_minimum_requests,
                    canary_wait_seconds=canary_wait_seconds,
                    canary_replay=canary_replay,
                    canary_source=canary_source,
                    canary_prometheus_url=canary_prometheus_url,
                    canary_prometheus_preset=canary_prometheus_preset,
                    canary_prometheus_queries=canary_prometheus_queries,
                    predictor=predictor,
                    gate_decision=candidate.outputs["decision"],
                )
