# SPDX-License-Identifier: Apache-2.0
"""From a loop file to the parameters of a pipeline."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kfloop.components.contracts.errors import InputError
from kfloop.pipelines.loop import Loop
from kfloop.pipelines.loop_sections import Source
from kfloop.pipelines.loop_training import Tuning

Arguments = dict[str, Any]


def pipeline_arguments(pipeline: str, loop: Loop, base: Path, state: Path) -> Arguments:
    """Returns a pipeline's parameters for a loop.

    Args:
        pipeline: Name of the pipeline.
        loop: The loop.
        base: Directory its relative paths start from.
        state: Directory for what the loop keeps on this machine, usually `.kfloop`.
    """
    return _MAKERS[pipeline](loop, base, state)


def _data(loop: Loop, base: Path) -> Arguments:
    features = loop.features
    return {
        "sources": [_source(name, source, base) for name, source in loop.sources.items()],
        "examples_query": _query(loop.examples.query, base),
        "timestamp": loop.examples.timestamp,
        "feature_repo": _uri(features.repo, base) if features else "",
        "feature_service": features.service if features else "",
        "feature_queries": {n: _query(q, base) for n, q in features.tables.items()}
        if features
        else {},
        "service": loop.service,
        "namespace": loop.serving.namespace,
    }


def _learning(loop: Loop, base: Path, state: Path) -> Arguments:
    training, canary = loop.training, loop.serving.canary
    return {
        "name": loop.name,
        "task": loop.task,
        "label": loop.examples.label,
        "entities": loop.examples.entities,
        "split_method": loop.split.method,
        "split_key": loop.split.key,
        "split_fraction": loop.split.fraction,
        "minimum_rows": loop.validation.minimum_rows,
        "schema": _uri(loop.validation.data_schema, base),
        "rules": loop.validation.rules,
        "drift": loop.validation.drift,
        "features": training.features,
        "module": _uri(training.module, base),
        "epochs": training.epochs,
        "batch_size": training.batch_size,
        "learning_rate": training.learning_rate,
        "validation_fraction": training.validation_fraction,
        "seed": training.seed,
        "hyperparameters": training.hyperparameters,
        "training_input": training.input,
        "checkpoint": _uri(training.checkpoint, base),
        "require_gpu": training.require_gpu,
        "accelerator_type": training.accelerator.type,
        "accelerator_count": str(training.accelerator.count),
        "mixed_precision": training.mixed_precision,
        **_tuning(training.tuning, base),
        "onnx": training.onnx,
        "slices": loop.evaluation.slices,
        "minimum_slice_size": loop.evaluation.minimum_slice_size,
        "groups": loop.evaluation.groups,
        "threshold": loop.evaluation.threshold,
        "threshold_by": loop.evaluation.threshold_by,
        "false_positive_cost": loop.evaluation.costs.get("false_positive", 1.0),
        "false_negative_cost": loop.evaluation.costs.get("false_negative", 1.0),
        "resamples": loop.evaluation.resamples,
        "evaluation_seed": loop.evaluation.seed,
        "importance_rows": loop.evaluation.importance_rows,
        "thresholds": loop.gate.thresholds,
        "slice_thresholds": loop.gate.slices,
        "confident": loop.gate.confident,
        "gate_metric": loop.gate.metric,
        "tolerance": loop.gate.tolerance,
        "minimum_improvement": loop.gate.minimum_improvement,
        "maximum_slice_regression": loop.gate.maximum_slice_regression,
        "fairness": loop.gate.fairness,
        "latency_ms": loop.gate.latency_ms,
        "no_baseline": loop.gate.no_baseline,
        "force_gate": loop.gate.force,
        "model_repository": _uri(loop.serving.model_repository, base) or str(state / "models"),
        "inference_log": _uri(loop.serving.inference_log, base)
        or str(state / "inference-log" / loop.service),
        "registry": loop.registry,
        "canary_steps": canary.shares,
        "canary_bake_seconds": canary.bake_seconds,
        "canary_minimum_requests": canary.minimum_requests,
        "canary_wait_seconds": canary.wait_seconds,
        "canary_replay": canary.replay,
        "canary_source": canary.source,
        "canary_prometheus_url": canary.prometheus_url,
        "canary_prometheus_preset": canary.prometheus_preset,
        "canary_prometheus_queries": canary.prometheus_queries,
        "predictor": loop.serving.predictor,
    }


def _tuning(tuning: Tuning | None, base: Path) -> Arguments:
    if not tuning:
        return {}
    return {
        "tuning_space": tuning.given_space,
        "tuning_trials": tuning.trials,
        "tuning_parallel_trials": tuning.parallel_trials,
        "tuning_timeout_minutes": tuning.timeout_minutes,
        "tuning_metric": tuning.metric,
        "tuning_direction": tuning.direction,
        "tuning_pruning": tuning.pruning,
        "tuning_study": _uri(tuning.study, base),
    }


def _training(loop: Loop, base: Path, state: Path) -> Arguments:
    return {
        **_data(loop, base),
        **_learning(loop, base, state),
        "since": loop.split.since,
        "split_at": loop.split.at,
        "until": loop.split.until,
    }


def _monitoring(loop: Loop, base: Path, state: Path) -> Arguments:
    retraining = loop.monitoring.retraining
    learning = _learning(loop, base, state)
    return {
        **_data(loop, base),
        **learning,
        "inference_log": _log_to_read(loop, base) or learning["inference_log"],
        "label_keys": loop.label_keys,
        "window_days": loop.monitoring.window_days,
        "window_minimum_rows": loop.monitoring.minimum_rows,
        "performance_thresholds": loop.monitoring.performance,
        "label_maturity_days": loop.monitoring.label_maturity_days,
        "train_days": retraining.train_days,
        "evaluation_days": retraining.evaluation_days,
        "cooldown_days": retraining.cooldown_days,
        "minimum_new_rows": retraining.minimum_new_rows,
        "consecutive_windows": retraining.consecutive_windows,
        "retraining_budget": retraining.budget,
        "retraining_budget_days": retraining.budget_days,
        "retrain_on_drift": retraining.on_drift,
        "retrain_on_performance": retraining.on_performance,
        "history": _uri(retraining.history, base)
        or str(state / "monitoring" / f"{loop.service}.jsonl"),
        "drift_history": _uri(loop.monitoring.drift_history, base)
        or str(state / "monitoring" / f"{loop.service}-drift.jsonl"),
        "outlier_scores": loop.monitoring.outlier_scores,
        "metrics": _uri(loop.monitoring.metrics, base),
        "webhook": loop.monitoring.notify.webhook,
        "ui_url": loop.monitoring.notify.ui_url,
        "notify_always": loop.monitoring.notify.always,
    }


def _log_to_read(loop: Loop, base: Path) -> str:
    """Returns where monitoring is told to read the log; empty for where requests are logged.

    Raises:
        InputError: If requests go to a payload logger, which cannot be read from.
    """
    written, read = loop.serving.inference_log, loop.monitoring.inference_log
    if not read and written.startswith(("http://", "https://")):
        raise InputError(
            f"The payload logger {written} tells nothing back: name the directory that it writes "
            "for the service, as the pods find it, in monitoring.inference_log."
        )
    return _uri(read, base)


def _batch_scoring(loop: Loop, base: Path, state: Path) -> Arguments:
    return {
        **_data(loop, base),
        "since": loop.split.until,
        "export_to": _uri(loop.batch_scoring.export_to, base),
        "partition_by": loop.batch_scoring.partition_by,
    }


def _replay(loop: Loop, base: Path, state: Path) -> Arguments:
    return {
        **_data(loop, base),
        # Without an end the evaluation data goes to the end of all, so those rows are replayed.
        "since": loop.replay.since or loop.split.until or loop.split.at,
        "until": loop.replay.until,
        "limit": loop.replay.limit,
        "batch_size": loop.replay.batch_size,
    }


def _backtest(loop: Loop, base: Path, state: Path) -> Arguments:
    learning = _learning(loop, base, state)
    known = (
        *("name", "task", "label", "entities", "schema", "features", "module", "epochs"),
        *("batch_size", "learning_rate", "validation_fraction", "seed", "hyperparameters"),
    )
    data = {k: v for k, v in _data(loop, base).items() if k not in ("service", "namespace")}
    return data | {name: learning[name] for name in known}


def _rollback(loop: Loop, base: Path, state: Path) -> Arguments:
    return {
        "service": loop.service,
        "namespace": loop.serving.namespace,
        "name": loop.name,
        "registry": loop.registry,
    }


_MAKERS: dict[str, Callable[[Loop, Path, Path], Arguments]] = {
    "training": _training,
    "monitoring": _monitoring,
    "batch-scoring": _batch_scoring,
    "replay": _replay,
    "backtest": _backtest,
    "rollback": _rollback,
}


def _source(name: str, source: Source, base: Path) -> dict[str, str]:
    query = {"query": _query(source.query, base)} if source.query else {}
    # Unset keys are left out, so that the parameters show what the file says.
    given = source.model_dump(exclude_defaults=True)
    return {"name": name, **given, **query, "uri": _uri(source.uri, base)}


def _uri(value: str, base: Path) -> str:
    """Makes a path absolute; a URI, or a variable that holds one, stays as it is."""
    sqlite = re.fullmatch(r"(sqlite(?:\+\w+)?:///)([^/].*)", value)
    if sqlite:
        return f"{sqlite[1]}{base / sqlite[2]}"
    return str(base / value) if value and "://" not in value and value[:2] != "${" else value


def _query(value: str, base: Path) -> str:
    return (base / value).read_text(encoding="utf-8") if value.endswith(".sql") else value
