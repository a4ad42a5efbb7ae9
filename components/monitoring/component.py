# SPDX-License-Identifier: Apache-2.0
"""KFP components of the monitoring family."""

from typing import Dict, List

from kfp import dsl

from kfloop.components.images import image


@dsl.component(base_image=image("monitoring"), install_kfp_package=False)
def detect_drift(
    current: dsl.Input[dsl.Dataset],
    model_uri: str,
    decision: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    minimum_rows: int = 200,
    maximum_rows: int = 20_000,
    minimum_drifted: int = 1,
    significance: float = 0.01,
    thresholds: Dict[str, float] = {},
    calibration_splits: int = 20,
    calibration_factor: float = 1.5,
    slices: List[str] = [],
    multivariate: bool = False,
    seed: int = 0,
    history_uri: str = "",
    run_id: str = "",
) -> str:
    """Compares a window of live traffic with the training data the model was published with.

    Args:
        current: Rows of the inference log, or any rows with the model's features. Failed requests
            (status 400 and above) are left out and counted.
        model_uri: Published model package; its reference sample is the baseline.
        decision: The decision: `pass` is no drift, `fail` is drift. Metadata: `rows`,
            `failed_requests`, `since`, `until`, `drifted`.
        page: Every check and the distributions side by side, the strongest effect first.
        minimum_rows: With fewer answered requests the outcome is `no_data`; with fewer rows in the
            model's reference it is `no_baseline`.
        maximum_rows: More rows than this are sampled.
        minimum_drifted: So many drifted features make it `fail`; a drifted prediction does alone.
        significance: Chance of a false alarm over all features together.
        thresholds: Smallest effects that matter where they differ from the defaults: `psi` 0.1,
            `jensen_shannon` 0.134, `wasserstein` 0.2 (standard deviations), `out_of_range` 0.01,
            `unseen` 0.01, `missing` 0.05, `vanished` 0.01 (shares).
        calibration_splits: Random splits of the reference that tell what chance alone makes.
        calibration_factor: Multiplies the largest effect of those splits.
        slices: Columns; the rows of each value are compared on their own too.
        multivariate: Also test whether a classifier can tell the window from the reference.
        seed: Of sampling and splits.
        history_uri: File on a shared volume that remembers the windows, for the trend on the page.
        run_id: Name of this run, so that a retried step does not count itself.

    Returns:
        `pass`, `fail`, `no_data` or `no_baseline`.
    """
    from kfloop.components.monitoring.drift import detect_drift as detect

    report = detect(
        current.path,
        model_uri,
        decision.path,
        page.path,
        history_uri,
        run_id,
        minimum_rows=minimum_rows,
        maximum_rows=maximum_rows,
        minimum_drifted=minimum_drifted,
        significance=significance,
        thresholds=thresholds,
        calibration_splits=calibration_splits,
        calibration_factor=calibration_factor,
        slices=slices,
        multivariate=multivariate,
        seed=seed,
    )
    decision.metadata.update(report.metadata)
    return report.decision.decision


@dsl.component(base_image=image("monitoring"), install_kfp_package=False)
def score_outliers(
    current: dsl.Input[dsl.Dataset],
    model_uri: str,
    scores: dsl.Output[dsl.Dataset],
    contamination: float = 0.01,
    seed: int = 0,
):
    """Scores how unlike the training data each single request is, by an isolation forest.

    Args:
        current: Rows of the inference log, or any rows with the model's features.
        model_uri: Published model package; the forest is grown on its reference sample.
        scores: `request_id`, `row`, `event_time`, `outlier_score` (higher is stranger) and
            `outlier`. Metadata: the dataset's, `outliers`, `outlier_share`.
        contamination: Share of the reference that counts as outliers; sets the threshold.
        seed: Of the forest.
    """
    from kfloop.components.monitoring.outliers import score_outliers as score

    scores.metadata.update(score(current.path, model_uri, scores.path, contamination, seed))


@dsl.component(base_image=image("monitoring"), install_kfp_package=False)
def measure_performance(
    joined: dsl.Input[dsl.Dataset],
    model_uri: str,
    metrics: dsl.Output[dsl.Metrics],
    decision: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    label: str = "",
    thresholds: Dict[str, Dict[str, float]] = {},
    minimum_rows: int = 200,
    confidence: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
) -> str:
    """Measures the live model on labels that arrived, against its evaluation at release.

    Args:
        joined: Rows of the inference log with the label; rows without one are counted.
        model_uri: Published model package with its `evaluation.json`.
        metrics: Each metric with its interval (`_low`, `_high`), and estimates without labels
            (`estimated_`).
        decision: The decision: `fail` is worse than allowed. Metadata: `rows`, `rows_labelled`,
            `rows_measured`, `failed_requests`, `since`, `until`.
        page: The metrics beside those at release; reliability of the probabilities.
        label: Label column; empty is the model's own.
        thresholds: By metric any of `maximum_drop`, `maximum_relative_drop`, `minimum` and
            `maximum`, for example `{"auc": {"maximum_drop": 0.05}}`. Empty allows an AUC or
            accuracy 0.05 lower, or a mean absolute error 10 % higher. A drop fails only when its
            interval excludes no drop.
        minimum_rows: With fewer labelled rows the outcome is `no_data`.
        confidence: Of the intervals.
        resamples: Bootstrap resamples.
        seed: Of the bootstrap.

    Returns:
        `pass`, `fail`, `no_data` or `no_baseline`.
    """
    from kfloop.components.monitoring.performance import measure_performance as measure

    report = measure(
        joined.path,
        model_uri,
        decision.path,
        page.path,
        label,
        thresholds,
        minimum_rows,
        confidence,
        resamples,
        seed,
    )
    for name, value in report.metrics.items():
        metrics.log_metric(name, value)
    decision.metadata.update(report.metadata)
    return report.decision.decision


@dsl.component(base_image=image("monitoring"), install_kfp_package=False)
def decide_retraining(
    data_quality: dsl.Input[dsl.Artifact],
    drift: dsl.Input[dsl.Artifact],
    performance: dsl.Input[dsl.Artifact],
    joined: dsl.Input[dsl.Dataset],
    decision: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    model_uri: str = "",
    minimum_new_rows: int = 200,
    cooldown_days: float = 14.0,
    last_trained: str = "",
    now: str = "",
    consecutive_windows: int = 1,
    budget: int = 0,
    budget_days: float = 365.0,
    on_drift: bool = True,
    on_performance: bool = True,
    history_uri: str = "",
    run_id: str = "",
    force: str = "",
) -> str:
    """Decides whether the live model is retrained.

    Args:
        data_quality: Decision of the window's validation; unless it is good nothing is retrained.
        drift: Decision of detect_drift.
        performance: Decision of measure_performance.
        joined: Rows that got a label since the last training; they are counted.
        decision: The decision: `fail` when something calls for retraining; its action tells
            whether it is done now. Metadata: also `action`.
        page: Every rule and how it came out.
        model_uri: The live model's published package.
        minimum_new_rows: New labelled rows that a retraining needs.
        cooldown_days: Days of data time after a training in which there is no other.
        last_trained: End of the live model's training data; empty reads it from `model_uri`.
        now: Newest time of the window's data; empty takes what detect_drift found.
        consecutive_windows: How many windows in a row must call for retraining; above 1 needs
            `history_uri`.
        budget: Most retrainings in `budget_days` of data time; 0 is no limit, more needs
            `history_uri`.
        budget_days: Days that the budget is for.
        on_drift: Whether drift calls for retraining.
        on_performance: Whether worse performance calls for retraining.
        history_uri: File on a shared volume that remembers decisions between runs; empty is none.
        run_id: Name of this run, so that a retried step does not count itself.
        force: Reason to retrain whatever the rules say; it is recorded.

    Returns:
        `retrain` or `keep`.
    """
    from kfloop.components.monitoring.retraining import decide_retraining as decide

    action, metadata = decide(
        data_quality.path,
        drift.path,
        performance.path,
        joined.path,
        decision.path,
        page.path,
        model_uri,
        last_trained,
        now or drift.metadata.get("until", ""),
        history_uri,
        run_id,
        minimum_new_rows=minimum_new_rows,
        cooldown_days=cooldown_days,
        consecutive_windows=consecutive_windows,
        budget=budget,
        budget_days=budget_days,
        on_drift=on_drift,
        on_performance=on_performance,
        force=force,
    )
    decision.metadata.update(metadata)
    return action


@dsl.component(base_image=image("monitoring"), install_kfp_package=False)
def export_metrics(
    data_quality: dsl.Input[dsl.Artifact],
    drift: dsl.Input[dsl.Artifact],
    performance: dsl.Input[dsl.Artifact],
    serving_skew: dsl.Input[dsl.Artifact],
    retraining: dsl.Input[dsl.Artifact],
    service: str,
    model_version: str,
    until: str,
    destination: str = "",
):
    """Exports the decisions of a monitoring run, and every check in them, to Prometheus.

    Gauges: `kfloop_decision`, `kfloop_action`, `kfloop_check_value`, `kfloop_check_threshold`,
    `kfloop_check_passed` and `kfloop_monitored_until_seconds`.

    Args:
        data_quality: Decision of the window's validation.
        drift: Decision of detect_drift.
        performance: Decision of measure_performance.
        serving_skew: Decision of detect_serving_skew.
        retraining: Decision of decide_retraining.
        service: Name of the service.
        model_version: Its live model.
        until: End of the window, ISO 8601.
        destination: URL of a Pushgateway, or the path of a `.prom` file for the textfile collector
            of a node exporter. Empty exports nothing.
    """
    from kfloop.components.monitoring.export import export_metrics as export

    decisions = data_quality, drift, performance, serving_skew, retraining
    export([one.path for one in decisions], service, model_version, until, destination)


@dsl.component(base_image=image("monitoring"), install_kfp_package=False)
def notify(
    status: dsl.PipelineTaskFinalStatus,
    service: str,
    run_id: str,
    history_uri: str = "",
    webhook: str = "",
    ui_url: str = "",
    always: bool = False,
):
    """Tells how a monitoring run ended: one JSON line in the log, and a webhook. An exit task.

    Args:
        status: How the run ended; KFP fills it in.
        service: Name of the service.
        run_id: Id of this run.
        history_uri: The history that decide_retraining writes; it holds this run's decision.
        webhook: Address that gets `{"text": ...}`, for example of a Slack incoming webhook;
            `${NAME}` stands for an environment variable. Empty writes the log line only.
        ui_url: Address of the KFP UI, for the link in the message.
        always: Whether a run that succeeded and kept the model is sent too.
    """
    from kfloop.components.monitoring.notify import notify as tell

    tell(
        {"state": status.state, "error": {"message": status.error_message}},
        service,
        run_id,
        history_uri,
        webhook,
        ui_url,
        always,
    )
