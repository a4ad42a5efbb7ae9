# SPDX-License-Identifier: Apache-2.0
"""KFP components of the evaluation family."""

from typing import Dict, List

from kfp import dsl

from kfloop.components.images import image


@dsl.component(base_image=image("evaluation"), install_kfp_package=False)
def evaluate_model(
    model: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    curves: dsl.Output[dsl.ClassificationMetrics],
    report: dsl.Output[dsl.HTML],
    predictions: dsl.Output[dsl.Dataset],
    slices: List[str] = [],
    minimum_slice_size: int = 100,
    threshold: float = 0.5,
    threshold_by: str = "",
    resamples: int = 200,
    seed: int = 7,
    groups: List[str] = [],
    false_positive_cost: float = 1.0,
    false_negative_cost: float = 1.0,
    importance_rows: int = 2000,
):
    """Judges a model on labelled rows: metrics with intervals, slices, curves, a model card.

    Args:
        model: The model package.
        dataset: Labelled rows with the model's features; none of them trained on.
        evaluation: All results as JSON. Metadata: `task`, `label`, `rows`, `dataset_fingerprint`,
            `window`, and every metric with its `_low` and `_high`.
        metrics: Metric values, with `_low` and `_high` for the 95 % interval.
        curves: ROC curve (of a multiclass model: every row counted once per class) and confusion
            matrix; empty for regression.
        report: The model card.
        predictions: `prediction` of every row, with its label, entities and timestamp.
        slices: Columns; the rows of each value are judged on their own too. Columns joined by a
            comma are crossed.
        minimum_slice_size: Slices with fewer rows are named, but not judged.
        threshold: Binary: probability from which a row is called positive.
        threshold_by: Binary: f1, accuracy, youden (true less false positive rate) or cost chooses
            the threshold that is best by it on these rows; empty keeps `threshold`.
        resamples: Bootstrap resamples behind the intervals; 0 for none.
        seed: Random seed of the resamples.
        groups: Binary: columns whose values must be treated alike; how often each is called
            positive, rightly and wrongly, is in the evaluation and the model card.
        false_positive_cost: What calling a negative row positive costs, for threshold_by cost.
        false_negative_cost: What missing a positive row costs, in the same unit.
        importance_rows: Most rows for the permutation importance; 0 for none.
    """
    from kfloop.components.evaluation import evaluate as core

    settings = core.EvaluateSettings(
        slices,
        minimum_slice_size,
        threshold,
        threshold_by,
        resamples,
        seed,
        groups,
        false_positive_cost,
        false_negative_cost,
        importance_rows,
    )
    result = core.evaluate(
        model.path, dataset.path, evaluation.path, report.path, predictions.path, settings
    )
    evaluation.metadata.update(result.metadata)
    metrics.metadata.update(result.scalars)
    curves.metadata.update(result.classification_metadata)
    predictions.metadata.update(result.predictions)


@dsl.component(base_image=image("evaluation"), install_kfp_package=False)
def compare_models(
    model: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    comparison: dsl.Output[dsl.Artifact],
    decision: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    champion_uri: str = "",
    metric: str = "",
    tolerance: float = 0.0,
    slices: List[str] = [],
    minimum_slice_size: int = 100,
    threshold: float = 0.5,
    resamples: int = 200,
    seed: int = 7,
) -> str:
    """Compares a candidate with the champion on the same rows, by the paired bootstrap.

    Args:
        model: The candidate's package.
        dataset: Labelled rows that neither model was trained on.
        comparison: JSON: `champion`, `metric`, `rows`, `tolerance`, `metrics` (of both, and the
            improvement with its interval) and `slices`.
        decision: Whether the candidate is surely worse.
        page: The same as a page.
        champion_uri: Published package of the champion; empty when there is none yet.
        metric: The metric that decides. Empty: auc, macro_auc or rmse, by the task.
        tolerance: How much worse in `metric` is always allowed, in its own unit.
        slices: Columns; the rows of each value are compared on their own too.
        minimum_slice_size: Slices with fewer rows are named, but not compared.
        threshold: Binary: probability from which a row is called positive, for both models.
        resamples: Bootstrap resamples behind the intervals.
        seed: Random seed of the resamples.

    Returns:
        `pass`, `fail`, `no_baseline` without a champion to compare with, or `no_data`.
    """
    from kfloop.components.contracts.decision import decision_metadata
    from kfloop.components.evaluation import compare as core

    settings = core.CompareSettings(
        metric, tolerance, slices, minimum_slice_size, threshold, resamples, seed
    )
    result = core.compare_models(
        model.path, dataset.path, champion_uri, comparison.path, decision.path, page.path, settings
    )
    decision.metadata.update(decision_metadata(result))
    return result.decision


@dsl.component(base_image=image("evaluation"), install_kfp_package=False)
def gate_model(
    evaluation: dsl.Input[dsl.Artifact],
    decision: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    comparison: dsl.Input[dsl.Artifact] = None,
    thresholds: Dict = {},
    slice_thresholds: Dict = {},
    confident: bool = False,
    minimum_improvement: Dict = {},
    maximum_slice_regression: Dict = {},
    fairness: Dict = {},
    latency_ms: Dict = {},
    no_baseline: str = "pass",
    force: str = "",
) -> str:
    """Decides whether an evaluated model may be published, and says why.

    Args:
        evaluation: Output of evaluate_model.
        decision: The decision with every check.
        page: The same as a page.
        comparison: Output of compare_models. With it the model must not be surely worse than the
            champion.
        thresholds: Limits by metric, for example {"auc": {"minimum": 0.7}, "ece": {"maximum":
            0.1}}; a bare number is the minimum, or for an error the maximum. Empty: the model must
            surely beat one that knows nothing.
        slice_thresholds: As `thresholds`, for every slice that is large enough.
        confident: Whether the 95 % interval must clear the threshold, and not only the value.
        minimum_improvement: How much better than the champion, by metric, for example {"auc":
            0.01}; a negative number allows it to be worse.
        maximum_slice_regression: How much worse than the champion in any slice, by metric.
        fairness: Largest gap between groups, by selection_rate, true_positive_rate or
            false_positive_rate.
        latency_ms: Most milliseconds of the model alone on the evaluation's machine: row, batch.
        no_baseline: What having no champion means: pass or fail.
        force: Why a model that does not pass is let through; recorded in the decision.

    Returns:
        `pass`, `fail` or `no_data`.
    """
    from kfloop.components.contracts.decision import decision_metadata
    from kfloop.components.evaluation.gate import gate
    from kfloop.components.evaluation.gate_checks import GateRules

    rules = GateRules(
        thresholds,
        slice_thresholds,
        confident,
        minimum_improvement,
        maximum_slice_regression,
        fairness,
        latency_ms,
        no_baseline,
        force,
    )
    compared = comparison.path if comparison else None
    result = gate(evaluation.path, decision.path, page.path, rules, compared)
    decision.metadata.update(decision_metadata(result))
    return result.decision


@dsl.component(base_image=image("evaluation"), install_kfp_package=False)
def score_data(
    model_uri: str, dataset: dsl.Input[dsl.Dataset], predictions: dsl.Output[dsl.Dataset]
):
    """Predicts every row of a dataset.

    Args:
        model_uri: Published model package: a path, or a URI with file://, pvc://, gs:// or s3://.
        dataset: Rows with the model's features.
        predictions: The rows with `prediction` and `model_version`.
    """
    from kfloop.components.evaluation.score import score_data as score

    predictions.metadata.update(score(model_uri, dataset.path, predictions.path))
