# SPDX-License-Identifier: Apache-2.0
"""KFP components of the data family."""

from typing import Dict, List, NamedTuple

from kfp import dsl

from kfloop.components.images import image


@dsl.component(base_image=image("data"), install_kfp_package=False)
def ingest_data(
    sources: List[Dict],
    tables: dsl.Output[dsl.Dataset],
    since: str = "",
    until: str = "",
    workers: int = 8,
    retry_seconds: float = 300.0,
    download_directory: str = "",
    memory_limit: str = "",
    temp_directory: str = "",
):
    """Reads sources (Parquet, CSV, JSON lines, databases) and writes one table each.

    Use it with caching off: what lies at a URI changes while the URI stays.

    Args:
        sources: One entry per table: `name`, `uri` (a file, a directory or a glob, at a path,
            gs:// or s3://; or a database's URL with a `query`), and where needed `format`
            (parquet, csv, jsonl; otherwise by extension) and `timestamp`. `${NAME}` in a uri
            stands for an environment variable of the step; no secret belongs in a parameter.
        tables: Directory with one dataset per source. Metadata: `sources` (uri, rows, digest and
            files of each; a file has bytes and sha256, or what its store tells: generation or
            version_id, etag, and a checksum like crc32c or md5), `tables` and `fingerprint`,
            which is of the rows alone.
        since: Start of the window (ISO 8601, inclusive) for sources with a `timestamp`.
        until: End of the window (ISO 8601, exclusive) for sources with a `timestamp`.
        workers: How many requests to gs:// or s3:// run at the same time.
        retry_seconds: How long one request to them is tried again while the store is busy.
        download_directory: A volume where downloads are kept, so that a step that was killed goes
            on where it was; empty to keep nothing.
        memory_limit: Most memory for DuckDB, like 2GB; empty for half of the container's.
        temp_directory: Where DuckDB spills what does not fit; empty for the system's.
    """
    from kfloop.components.data.ingest import ingest

    tables.metadata.update(
        ingest(
            sources,
            tables.path,
            since,
            until,
            workers,
            retry_seconds,
            download_directory,
            memory_limit,
            temp_directory,
        )
    )


@dsl.component(base_image=image("data"), install_kfp_package=False)
def transform_data(
    tables: dsl.Input[dsl.Dataset],
    query: str,
    dataset: dsl.Output[dsl.Dataset],
    timestamp: str = "",
    since: str = "",
    until: str = "",
    allow_empty: bool = False,
    order_by: List[str] = [],
    memory_limit: str = "",
    temp_directory: str = "",
):
    """Runs one SELECT over tables and keeps the rows of a window.

    Args:
        tables: Tables, each a view of its name; or one dataset, the view `dataset`.
        query: DuckDB SQL. It sees all rows, so that history before `since` is there for it.
        dataset: The result. Metadata: `rows`, `columns`, `fingerprint`, `since`, `until`.
        timestamp: Column of the result that the window is about. No row may lack it.
        since: Start of the window, ISO 8601, inclusive; empty for no start.
        until: End of the window, ISO 8601, exclusive; empty for no end.
        allow_empty: Whether no rows are an answer rather than an error.
        order_by: Columns to sort the result by, each with ` DESC` after it or not; ties go by the
            other columns. Empty to keep the query's order.
        memory_limit: Most memory for DuckDB, like 2GB; empty for half of the container's.
        temp_directory: Where DuckDB spills what does not fit; empty for the system's.
    """
    from kfloop.components.data.transform import transform

    dataset.metadata.update(
        transform(
            tables.path,
            query,
            dataset.path,
            timestamp,
            since,
            until,
            allow_empty,
            order_by,
            memory_limit,
            temp_directory,
        )
    )


@dsl.component(base_image=image("data"), install_kfp_package=False)
def build_feature_tables(
    tables: dsl.Input[dsl.Dataset],
    queries: Dict[str, str],
    feature_tables: dsl.Output[dsl.Dataset],
    memory_limit: str = "",
    temp_directory: str = "",
):
    """Runs one SELECT per feature table.

    Args:
        tables: Tables, each a view of its name.
        queries: DuckDB SQL by the name of the table that it makes. Its rows carry the time at
            which they became known. Empty for a loop without feature tables.
        feature_tables: Directory with one dataset per table. Metadata: `tables` (rows by name),
            `fingerprint`.
        memory_limit: Most memory for DuckDB, like 2GB; empty for half of the container's.
        temp_directory: Where DuckDB spills what does not fit; empty for the system's.
    """
    from kfloop.components.data.transform import build_feature_tables as build

    feature_tables.metadata.update(
        build(tables.path, queries, feature_tables.path, memory_limit, temp_directory)
    )


@dsl.component(base_image=image("data"), install_kfp_package=False)
def split_data(
    dataset: dsl.Input[dsl.Dataset],
    train: dsl.Output[dsl.Dataset],
    evaluation: dsl.Output[dsl.Dataset],
    method: str = "time",
    timestamp: str = "",
    at: str = "",
    fraction: float = 0.2,
    key: str = "",
    since: str = "",
    until: str = "",
):
    """Splits a dataset into a part to train on and a part to evaluate on.

    Args:
        dataset: Dataset to split.
        train: Rows to train on. Metadata: `rows`, `columns`, `fingerprint`; with a timestamp also
            `since` and `until`.
        evaluation: Rows to evaluate on. Metadata: the same.
        method: `time` (the newest rows evaluate), `hash` (a key's hash decides, for good) or
            `group` (whole keys until the size is reached).
        timestamp: Column of times, for `time`.
        at: Moment of the split, ISO 8601, for `time`; empty to use `fraction`.
        fraction: Part of the rows to evaluate on, between 0 and 1.
        key: Column whose values stay together, for `hash` and `group`.
        since: Rows before this moment, ISO 8601, are in neither part.
        until: Rows from this moment on are in neither part.
    """
    from kfloop.components.data.split import split

    parts = split(
        dataset.path,
        train.path,
        evaluation.path,
        method,
        timestamp,
        at,
        fraction,
        key,
        since,
        until,
    )
    train.metadata.update(parts["train"])
    evaluation.metadata.update(parts["evaluation"])


@dsl.component(base_image=image("data"), install_kfp_package=False)
def join_labels(
    predictions: dsl.Input[dsl.Dataset],
    labels: dsl.Input[dsl.Dataset],
    joined: dsl.Output[dsl.Dataset],
    keys: List[str],
    label: str,
    timestamp: str = "",
    maturity_days: float = 0.0,
    until: str = "",
):
    """Joins the labels that arrived since to predictions.

    Args:
        predictions: Rows of the inference log, or of batch scoring.
        labels: Rows with the keys, the timestamp and the label.
        joined: Predictions that have one label, with it; possibly none. Metadata: the dataset's
            and the counts `predictions`, `matched`, `unlabelled`, `immature`, `ambiguous`,
            `failed`.
        keys: Columns that identify an instance: entity keys, or `request_id`.
        label: Label column of `labels`.
        timestamp: Column of `labels` that equals the predictions' `event_time`; empty when the
            keys identify an instance alone.
        maturity_days: How many days a label may take: until then a prediction without one is
            `immature`, not `unlabelled`.
        until: The moment those days are counted from, ISO 8601; empty for the newest prediction.
    """
    from kfloop.components.data.labels import join_labels as join

    joined.metadata.update(
        join(
            predictions.path,
            labels.path,
            joined.path,
            keys,
            label,
            timestamp,
            maturity_days,
            until,
        )
    )


@dsl.component(base_image=image("data"), install_kfp_package=False)
def export_data(
    dataset: dsl.Input[dsl.Dataset],
    uri: str,
    exported: dsl.Output[dsl.Artifact],
    partition_by: List[str] = [],
    timestamp: str = "",
    workers: int = 8,
    retry_seconds: float = 300.0,
    memory_limit: str = "",
    temp_directory: str = "",
):
    """Writes a dataset where others read it, in partitions that a second run replaces.

    Args:
        dataset: Rows to export, such as the predictions of batch scoring.
        uri: Folder to write into: a path, gs://bucket/folder or s3://bucket/folder. Partitions the
            dataset has rows for are replaced whole; everything else there stays.
        exported: JSON file with every file that was written and replaced. Metadata: `uri`, `rows`,
            `files`, `replaced`, `partition_by`, `partitions`.
        partition_by: Columns whose values make the folders `column=value`, outermost first; empty
            for the day of the timestamp.
        timestamp: Column of times, used without `partition_by`; empty for one folder.
        workers: How many requests to gs:// or s3:// run at the same time.
        retry_seconds: How long one request to them is tried again while the store is busy.
        memory_limit: Most memory for DuckDB, like 2GB; empty for half of the container's.
        temp_directory: Where DuckDB spills what does not fit; empty for the system's.
    """
    from kfloop.components.data.export import export

    exported.metadata.update(
        export(
            dataset.path,
            uri,
            exported.path,
            partition_by,
            timestamp,
            workers,
            retry_seconds,
            memory_limit,
            temp_directory,
        )
    )


@dsl.component(base_image=image("data"), install_kfp_package=False)
def collect_inference_log(
    log_uri: str,
    dataset: dsl.Output[dsl.Dataset],
    model_version: str = "",
    since: str = "",
    until: str = "",
    timestamp: str = "",
):
    """Reads a window of the inference log as one dataset.

    Args:
        log_uri: The inference log.
        dataset: Its rows, with `model_version`. Metadata: `rows`, `columns`, `fingerprint`,
            `since`, `until`.
        model_version: Version whose requests count; empty for all.
        since: Start of the window, ISO 8601, inclusive; empty for no start.
        until: End of the window, ISO 8601, exclusive; empty for no end.
        timestamp: Second name for `event_time`, as the model's data calls it.
    """
    from kfloop.components.data.log import collect

    dataset.metadata.update(collect(log_uri, dataset.path, model_version, since, until, timestamp))


@dsl.component(base_image=image("data"), install_kfp_package=False)
def plan_windows(
    log_uri: str,
    model_version: str = "",
    until: str = "",
    window_days: int = 31,
    train_days: int = 180,
    evaluation_days: int = 14,
    timestamp: str = "",
) -> NamedTuple(
    "Windows",
    [
        ("window_since", str),
        ("until", str),
        ("data_since", str),
        ("data_until", str),
        ("train_since", str),
        ("split_at", str),
    ],
):
    """Says which window a monitoring run judges and which it would train on.

    Args:
        log_uri: The inference log.
        model_version: Version whose requests count; empty for all.
        until: End of all windows, ISO 8601; empty for the end of the log's newest day.
        window_days: Days of requests to judge.
        train_days: Days to train on, before the days to evaluate on.
        evaluation_days: Newest days, kept to evaluate on.
        timestamp: Time column of the examples; without one, only the log has windows.

    Returns:
        Bounds in ISO 8601: `window_since` and `until` of the requests to judge, `data_since` and
        `data_until` of the examples whose labels are joined to them, `train_since` of those to
        train on, and `split_at`, where those to evaluate on begin. Without `timestamp` the last
        four are empty.
    """
    from kfloop.components.data.windows import plan_windows as plan

    return plan(log_uri, model_version, until, window_days, train_days, evaluation_days, timestamp)


@dsl.component(base_image=image("data"), install_kfp_package=False)
def load_reference(model_uri: str, reference: dsl.Output[dsl.Dataset]):
    """Reads the sample of training rows that travels with a published model.

    Args:
        model_uri: The published model package.
        reference: The sample, with `prediction`. Metadata: `rows`, `columns`, `fingerprint`.
    """
    from kfloop.components.data.reference import load_reference as load

    reference.metadata.update(load(model_uri, reference.path))
