# SPDX-License-Identifier: Apache-2.0
"""Predictions meet the labels that arrived since."""

from pathlib import Path
from typing import Any

import duckdb

from kfloop.components.contracts.dataset import dataset_files, require_columns, write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.inference_log import EVENT_TIME
from kfloop.components.contracts.model_package import PREDICTION
from kfloop.components.data import duck

OUTCOMES = ("matched", "unlabelled", "immature", "ambiguous", "failed")


def join_labels(
    predictions: str | Path,
    labels: str | Path,
    path: str | Path,
    keys: list[str],
    label: str,
    timestamp: str = "",
    maturity_days: float = 0.0,
    until: str = "",
) -> dict[str, Any]:
    """Writes the predictions that have a label, with it.

    A missing key equals a missing key. A key with two different labels is ambiguous: its
    predictions are left out and counted. So are those without a label, and requests that failed.

    Labels arrive late. A prediction without one is `immature` while it is younger than
    `maturity_days`, and `unlabelled` after that: its label is missing.

    Args:
        predictions: Rows of the inference log, or of batch scoring.
        labels: Rows with the keys, the timestamp and the label.
        path: The dataset to write.
        keys: Columns that both have and that identify an instance, such as entity keys or
            `request_id`.
        label: Label column of `labels`; a column of that name in the predictions is replaced.
        timestamp: Column of `labels` that equals `event_time` of the predictions; empty when
            the keys identify an instance alone.
        maturity_days: How long a label may take, in days.
        until: The moment it is counted from, ISO 8601, usually the end of the window; empty for
            the newest prediction.

    Returns:
        The dataset's metadata, with the counts `predictions`, `matched`, `unlabelled`, `immature`,
        `ambiguous` and `failed`.

    Raises:
        InputError: If a column is missing, a key has incompatible types, or predictions of no
            time are to mature.
    """
    if not keys:
        raise InputError("Labels are joined by keys; name at least one column.")
    with duck.connect() as connection:
        logged = connection.sql(f"SELECT * FROM {duck.scan(dataset_files(predictions))}")
        known = connection.sql(f"SELECT * FROM {duck.scan(dataset_files(labels))}")
        pairs = [(key, key) for key in keys]
        if timestamp:
            time = EVENT_TIME if EVENT_TIME in logged.columns else timestamp
            pairs.append((time, timestamp))
        require_columns(predictions, [ours for ours, _ in pairs])
        require_columns(labels, [*(theirs for _, theirs in pairs), label])
        if timestamp:
            duck.require_time(logged, pairs[-1][0], "the predictions")
            duck.require_time(known, timestamp, "the labels")
        for key in keys:
            _require_same_kind(logged, known, key)
        young = _immature(logged, timestamp, maturity_days, until)
        joined = _join(connection, logged, known, pairs, label, young)
        counts = _counts(joined)
        columns = [name for name in logged.columns if name != label]
        kept = joined.filter("outcome = 'matched'").project(
            ", ".join([*map(duck.quote, columns), f"found_label AS {duck.quote(label)}"])
        )
        metadata = write_dataset(duck.reader(kept), path, pairs[-1][0] if timestamp else "")
    print(", ".join(f"{count:,} {name}" for name, count in counts.items()), flush=True)
    return metadata | counts


def _immature(
    logged: duckdb.DuckDBPyRelation, timestamp: str, maturity_days: float, until: str
) -> str:
    """Returns the SQL condition that a prediction's label need not be there yet."""
    if maturity_days < 0:
        raise InputError(f"maturity_days is {maturity_days}; give 0 or more.")
    if not maturity_days:
        return "false"
    time = EVENT_TIME if EVENT_TIME in logged.columns else timestamp
    if not time:
        raise InputError(
            "maturity_days needs the time of each prediction; give the timestamp column, or 0 "
            "for labels that are all there."
        )
    duck.require_time(logged, time, "the predictions")
    at = duck.moment(time)
    end = duck.instant(until, "until") if until else f"(SELECT max({at}) FROM logged)"
    seconds = round(maturity_days * 86_400)
    return f"{at} > {end} - INTERVAL {seconds} SECONDS"


def _require_same_kind(
    logged: duckdb.DuckDBPyRelation, known: duckdb.DuckDBPyRelation, key: str
) -> None:
    ours = logged.types[logged.columns.index(key)]
    theirs = known.types[known.columns.index(key)]
    if (ours.id == "varchar") != (theirs.id == "varchar"):
        raise InputError(
            f"The key {key!r} holds {ours} in the predictions and {theirs} in the labels; "
            "cast it in the query of the labels."
        )


def _join(
    connection: duckdb.DuckDBPyConnection,
    logged: duckdb.DuckDBPyRelation,
    known: duckdb.DuckDBPyRelation,
    pairs: list[tuple[str, str]],
    label: str,
    immature: str,
) -> duckdb.DuckDBPyRelation:
    """Gives every prediction an `outcome` and, if there is exactly one, the `found_label`."""
    value = duck.quote(label)
    keys = ", ".join(
        f"{_comparable(known, theirs)} AS key_{number}" for number, (_, theirs) in enumerate(pairs)
    )
    names = ", ".join(f"key_{number}" for number in range(len(pairs)))
    logged.create_view("logged")
    known.create_view("known")
    same = " AND ".join(
        f"{_comparable(logged, ours)} IS NOT DISTINCT FROM key_{number}"
        for number, (ours, _) in enumerate(pairs)
    )
    failed = f"{duck.quote(PREDICTION)} IS NULL" if PREDICTION in logged.columns else "false"
    return connection.sql(
        f"""
        WITH labelled AS (
            SELECT
                {names},
                count(DISTINCT {value}) AS found_labels,
                any_value({value}) AS found_label
            FROM (SELECT {keys}, {value} FROM known WHERE {value} IS NOT NULL)
            GROUP BY {names}
        )
        SELECT
            logged.*,
            found_label,
            CASE
                WHEN {failed} THEN 'failed'
                WHEN found_labels IS NULL AND {immature} THEN 'immature'
                WHEN found_labels IS NULL THEN 'unlabelled'
                WHEN found_labels > 1 THEN 'ambiguous'
                ELSE 'matched'
            END AS outcome
        FROM logged LEFT JOIN labelled ON {same}
        """
    )


def _comparable(relation: duckdb.DuckDBPyRelation, column: str) -> str:
    kind = relation.types[relation.columns.index(column)]
    return duck.moment(column) if kind.id in duck.TIME_TYPES else duck.quote(column)


def _counts(joined: duckdb.DuckDBPyRelation) -> dict[str, int]:
    found = dict(joined.aggregate("outcome, count(*)", "outcome").fetchall())
    outcomes = {name: int(found.get(name, 0)) for name in OUTCOMES}
    return {"predictions": sum(outcomes.values())} | outcomes
