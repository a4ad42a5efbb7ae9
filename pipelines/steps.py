# SPDX-License-Identifier: Apache-2.0
"""Sub-pipelines that the pipelines share: train a candidate, and roll it out."""

from typing import Dict, List, NamedTuple

from kfp import dsl

from kfloop.components import (
    apply_feature_repo,
    build_feature_tables,
    compare_models,
    compute_statistics,
    evaluate_model,
    find_champion,
    gate_model,
    infer_schema,
    ingest_data,
    materialize_features,
    publish_model,
    register_model,
    require_pass,
    retrieve_training_set,
    roll_out_model,
    split_data,
    train_model,
    transform_data,
    tune_model,
    update_champion,
    validate_data,
)


def always(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Switches caching off for a step whose effect or answer lies outside the run."""
    return task.set_caching_options(False)


@dsl.pipeline(name="train-candidate")
def train_candidate(
    name: str,
    task: str,
    sources: List[Dict],
    examples_query: str,
    label: str,
    timestamp: str,
    entities: List[str],
    feature_repo: str,
    feature_service: str,
    feature_queries: Dict[str, str],
    split_method: str,
    split_key: str,
    split_fraction: float,
    since: str,
    split_at: str,
    until: str,
    minimum_rows: int,
    schema: str,
    rules: List[str],
    drift: str,
    features: List[str],
    module: str,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    validation_fraction: float,
    seed: int,
    hyperparameters: Dict,
    training_input: str,
    checkpoint: str,
    require_gpu: bool,
    accelerator_type: str,
    accelerator_count: str,
    mixed_precision: str,
    tuning_space: Dict,
    tuning_trials: int,
    tuning_parallel_trials: int,
    tuning_timeout_minutes: float,
    tuning_metric: str,
    tuning_direction: str,
    tuning_pruning: str,
    tuning_study: str,
    onnx: bool,
    slices: List[str],
    minimum_slice_size: int,
    groups: List[str],
    threshold: float,
    threshold_by: str,
    false_positive_cost: float,
    false_negative_cost: float,
    resamples: int,
    evaluation_seed: int,
    importance_rows: int,
    thresholds: Dict,
    slice_thresholds: Dict,
    confident: bool,
    gate_metric: str,
    tolerance: float,
    minimum_improvement: Dict,
    maximum_slice_regression: Dict,
    fairness: Dict,
    latency_ms: Dict,
    no_baseline: str,
    force_gate: str,
    service: str,
    namespace: str,
    registry: str,
) -> NamedTuple(
    "Candidate",
    [
        ("decision", str),
        ("model", dsl.Model),
        ("evaluation", dsl.Artifact),
    ],
):
    """From sources to a judged model: ingest, validate, features, train, evaluate, gate.

    Args:
        accelerator_type: Kubernetes resource of the training task's accelerators.
        accelerator_count: How many accelerators the training task gets; 0 for none.
    """
    tables = always(ingest_data(sources=sources, until=until)).outputs["tables"]
    examples = transform_data(
        tables=tables, query=examples_query, timestamp=timestamp, since=since, until=until
    ).outputs["dataset"]

    training_statistics = compute_statistics(
        dataset=examples, timestamp=timestamp, until=split_at
    ).set_display_name("Statistics of the training part")
    evaluation_statistics = compute_statistics(
        dataset=examples, timestamp=timestamp, since=split_at
    ).set_display_name("Statistics of the evaluation part")
    inferred = infer_schema(
        statistics=training_statistics.outputs["statistics"], label=label, schema_uri=schema
    )
    validated = validate_data(
        statistics=evaluation_statistics.outputs["statistics"],
        schema=inferred.outputs["schema"],
        baseline=training_statistics.outputs["statistics"],
        label=label,
        minimum_rows=minimum_rows,
        rules=rules,
        drift=drift,
    )
    valid = require_pass(decision=validated.outputs["decision"])

    feature_tables = build_feature_tables(tables=tables, queries=feature_queries).after(valid)
    repo = apply_feature_repo(
        feature_tables=feature_tables.outputs["feature_tables"],
        repo_uri=feature_repo,
        feature_service=feature_service,
    )
    # Beside the training, so that the values are there before any model serves.
    always(materialize_features(feature_repo=repo.outputs["feature_repo"], until=until))
    training_set = retrieve_training_set(
        examples=examples,
        feature_repo=repo.outputs["feature_repo"],
        timestamp=timestamp,
        feature_service=feature_service,
    )
    split = split_data(
        dataset=training_set.outputs["training_set"],
        method=split_method,
        timestamp=timestamp,
        at=split_at,
        fraction=split_fraction,
        key=split_key,
    )
    # Without a search space it passes the given hyperparameters on.
    tuned = tune_model(
        train=split.outputs["train"],
        schema=inferred.outputs["schema"],
        name=name,
        task=task,
        label=label,
        space=tuning_space,
        trials=tuning_trials,
        parallel_trials=tuning_parallel_trials,
        timeout_minutes=tuning_timeout_minutes,
        metric=tuning_metric,
        direction=tuning_direction,
        pruning=tuning_pruning,
        study_uri=tuning_study,
        timestamp=timestamp,
        entities=entities,
        features=features,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        validation_fraction=validation_fraction,
        hyperparameters=hyperparameters,
        module_uri=module,
        input=training_input,
        require_gpu=require_gpu,
        mixed_precision=mixed_precision,
    )
    trained = train_model(
        train=split.outputs["train"],
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
        input=training_input,
        checkpoint_uri=checkpoint,
        require_gpu=require_gpu,
        mixed_precision=mixed_precision,
        onnx=onnx,
        best_parameters=tuned.outputs["best_parameters"],
    )
    # Text, since KFP reads only text here; 0 asks for none.
    trained.set_accelerator_type(accelerator_type).set_accelerator_limit(accelerator_count)
    evaluated = evaluate_model(
        model=trained.outputs["model"],
        dataset=split.outputs["evaluation"],
        slices=slices,
        minimum_slice_size=minimum_slice_size,
        groups=groups,
        threshold=threshold,
        threshold_by=threshold_by,
        false_positive_cost=false_positive_cost,
        false_negative_cost=false_negative_cost,
        resamples=resamples,
        seed=evaluation_seed,
        importance_rows=importance_rows,
    )
    champion = always(
        find_champion(name=name, service=service, registry_uri=registry, namespace=namespace)
    )
    compared = compare_models(
        model=trained.outputs["model"],
        dataset=split.outputs["evaluation"],
        champion_uri=champion.outputs["Output"],
        metric=gate_metric,
        tolerance=tolerance,
        slices=slices,
        minimum_slice_size=minimum_slice_size,
        threshold=threshold,
        resamples=resamples,
        seed=evaluation_seed,
    )
    gate = gate_model(
        evaluation=evaluated.outputs["evaluation"],
        comparison=compared.outputs["comparison"],
        thresholds=thresholds,
        slice_thresholds=slice_thresholds,
        confident=confident,
        minimum_improvement=minimum_improvement,
        maximum_slice_regression=maximum_slice_regression,
        fairness=fairness,
        latency_ms=latency_ms,
        no_baseline=no_baseline,
        force=force_gate,
    )
    # KFP wants an instance of a type made here; a class would be no shorter.
    outputs = NamedTuple(  # noqa: UP014
        "Candidate",
        [
            ("decision", str),
            ("model", dsl.Model),
            ("evaluation", dsl.Artifact),
        ],
    )
    return outputs(
        gate.outputs["Output"],
        trained.outputs["model"],
        evaluated.outputs["evaluation"],
    )


@dsl.pipeline(name="roll-out")
def roll_out(
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    name: str,
    service: str,
    namespace: str,
    model_repository: str,
    inference_log: str,
    registry: str,
    canary_steps: List[int],
    canary_bake_seconds: float,
    canary_minimum_requests: int,
    canary_wait_seconds: float,
    canary_replay: bool,
    canary_source: str,
    canary_prometheus_url: str,
    canary_prometheus_preset: str,
    canary_prometheus_queries: Dict,
    predictor: Dict,
    gate_decision: str,
):
    """Publish a model, deploy it, and keep it only if it serves well beside the live one."""
    published = always(
        publish_model(model=model, evaluation=evaluation, model_repository=model_repository)
    )
    # Whatever becomes of it: so the registry's versions are the published ones.
    registered = always(
        register_model(
            model_uri=published.outputs["Output"],
            evaluation=evaluation,
            registry_uri=registry,
            run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
        )
    )
    rolled_out = always(
        roll_out_model(
            model_uri=published.outputs["Output"],
            service=service,
            namespace=namespace,
            inference_log=inference_log,
            steps=canary_steps,
            bake_seconds=canary_bake_seconds,
            minimum_requests=canary_minimum_requests,
            wait_seconds=canary_wait_seconds,
            replay=canary_replay,
            source=canary_source,
            prometheus_url=canary_prometheus_url,
            prometheus_preset=canary_prometheus_preset,
            prometheus_queries=canary_prometheus_queries,
            predictor=predictor,
            run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            gate_decision=gate_decision,
        )
    ).after(registered)
    always(
        update_champion(service=service, registry_uri=registry, namespace=namespace, name=name)
    ).after(rolled_out)
