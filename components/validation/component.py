# SPDX-License-Identifier: Apache-2.0
"""KFP components of the validation family."""

from typing import List, Optional

from kfp import dsl

from kfloop.components.images import image


@dsl.component(base_image=image("validation"), install_kfp_package=False)
def compute_statistics(
    dataset: dsl.Input[dsl.Dataset],
    statistics: dsl.Output[dsl.Artifact],
    timestamp: str = "",
    since: str = "",
    until: str = "",
    slices: List[str] = [],
    minimum_slice_size: int = 100,
    pipeline_options: List[str] = [],
) -> None:
    """Measures every column of a dataset, or of a time window of it, in constant memory.

    Args:
        dataset: Parquet dataset to measure.
        statistics: TFDV statistics (binary DatasetFeatureStatisticsList). Metadata: rows, columns,
            slices, small_slices, dataset_fingerprint, fingerprint, timestamp, since, until.
        timestamp: Column of event times; needed when since or until is given.
        since: Start of the window, inclusive, ISO 8601; empty for no start.
        until: End of the window, exclusive, ISO 8601; empty for no end.
        slices: Columns whose values are measured apart too, several joined by commas, such as
            ["origin", "origin,carrier"]; at most 200 slices.
        minimum_slice_size: Slices of fewer rows are left out.
        pipeline_options: Apache Beam options such as ["--runner=DataflowRunner", …] that measure
            on its workers; empty to measure in this step.
    """
    from kfloop.components.validation.statistics import compute_statistics as compute

    metadata = compute(
        dataset.path,
        statistics.path,
        timestamp,
        since,
        until,
        slices=slices,
        minimum_slice_size=minimum_slice_size,
        pipeline_options=pipeline_options,
        dataset_uri=dataset.uri,
        result_uri=statistics.uri,
    )
    statistics.metadata.update(metadata)


@dsl.component(base_image=image("validation"), install_kfp_package=False)
def infer_schema(
    statistics: dsl.Input[dsl.Artifact],
    schema: dsl.Output[dsl.Artifact],
    label: str = "",
    schema_uri: str = "",
    missing_slack: float = 0.1,
) -> None:
    """Infers the schema that later data is held against, or takes the one that a person wrote.

    Args:
        statistics: Statistics of the data that is taken as good.
        schema: TFDV schema as text. Metadata: fingerprint, features, label, source.
        label: Label column, expected in the TRAINING environment only; empty for none.
        schema_uri: Path or URI of a schema (text proto) that is used as it is; empty infers one.
        missing_slack: How much the share of missing values of a column may grow, 0 to 1.
    """
    from kfloop.components.validation.schema import infer_schema as infer

    schema.metadata.update(infer(statistics.path, schema.path, label, schema_uri, missing_slack))


@dsl.component(base_image=image("validation"), install_kfp_package=False)
def update_schema(
    schema: dsl.Input[dsl.Artifact],
    statistics: dsl.Input[dsl.Artifact],
    proposed: dsl.Output[dsl.Artifact],
    changes: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    environment: str = "TRAINING",
    missing_slack: float = 0.1,
) -> str:
    """Proposes a schema that new data fits, for a person to review; changes nothing itself.

    Args:
        schema: Schema in use.
        statistics: Statistics of new data that is taken as good.
        proposed: Proposed TFDV schema as text; give it as schema_uri to accept it. Metadata:
            status, changes, fingerprint, replaces.
        changes: JSON: `status`, `rows`, `changes` (each with its reason) and `diff` as text.
        page: The same to read; opens offline.
        environment: Environment of the data; columns absent from it are left alone.
        missing_slack: How much the share of missing values may grow over the new data's where
            that limit changes, 0 to 1.

    Returns:
        unchanged or changed.
    """
    from kfloop.components.validation.schema_update import update_schema as update

    paths = schema.path, statistics.path, proposed.path, changes.path, page.path
    proposed.metadata.update(update(*paths, environment, missing_slack))
    return str(proposed.metadata["status"])


@dsl.component(base_image=image("validation"), install_kfp_package=False)
def validate_data(
    statistics: dsl.Input[dsl.Artifact],
    schema: dsl.Input[dsl.Artifact],
    anomalies: dsl.Output[dsl.Artifact],
    decision: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    label: str = "",
    environment: str = "TRAINING",
    minimum_rows: int = 1,
    baseline: dsl.Input[dsl.Artifact] = None,
    rules: Optional[List[str]] = None,
    ignore: Optional[List[str]] = None,
    drift: str = "report",
    missing_slack: float = 0.1,
    maximum_psi: float = 0.2,
    maximum_l_infinity: float = 0.1,
    serving: dsl.Input[dsl.Artifact] = None,
    skew: str = "report",
) -> str:
    """Holds statistics against a schema, a baseline and rules, and says why.

    Args:
        statistics: Statistics of the data to judge.
        schema: Schema it is held against.
        anomalies: TFDV anomalies as text (Anomalies proto).
        decision: The decision, with a reason for every check.
        page: Every column with its distribution and what was found; opens offline.
        label: Label column; it must be there and vary where the environment expects it.
        environment: TRAINING (with the label) or SERVING (without), or one of your schema.
        minimum_rows: Fewer rows than this fail.
        baseline: Statistics to compare with, slice by slice where both have slices; without it,
            drift is not judged.
        rules: Rules such as "price.mean < 30" or "rows >= 1000"; each must hold.
        ignore: Columns that are not judged.
        drift: What follows from drift: "report", "fail", or "off".
        missing_slack: How much the share of missing values may grow over the baseline, 0 to 1.
        maximum_psi: Population stability index above which a number has drifted.
        maximum_l_infinity: Change of one value's share above which a string column has drifted.
        serving: Statistics of what a live service received, to find training/serving skew.
        skew: What follows from skew: "report", "fail", or "off".

    Returns:
        `pass`, `fail`, or `no_data` when the statistics are of no rows.
    """
    from kfloop.components.contracts.decision import decision_metadata
    from kfloop.components.validation.findings import Limits
    from kfloop.components.validation.validate import validate_data as validate

    outcome = validate(
        statistics.path,
        schema.path,
        anomalies.path,
        decision.path,
        page.path,
        label=label,
        environment=environment,
        baseline=baseline.path if baseline else "",
        rules=rules,
        ignore=ignore,
        limits=Limits(minimum_rows, missing_slack, drift, maximum_psi, maximum_l_infinity, skew),
        serving=serving.path if serving else "",
    )
    decision.metadata.update(decision_metadata(outcome))
    return outcome.decision


@dsl.component(base_image=image("validation"), install_kfp_package=False)
def require_pass(decision: dsl.Input[dsl.Artifact]) -> None:
    """Fails, naming the reasons, unless a decision is `pass`.

    Args:
        decision: Decision of a gate.
    """
    from kfloop.components.validation.require import require_pass as require

    require(decision.path)
