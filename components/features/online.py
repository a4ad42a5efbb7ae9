# SPDX-License-Identifier: Apache-2.0
"""What a model is served: features from the online store, with the ttl applied.

Feast answers with a value however old it is; training counts a value older than its view's ttl as
missing. So whoever serves must apply the ttl, and before on-demand views are computed. `retrieve`
does so and compares the answer with the training join: same entities, same moment, same values.
"""

import functools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureService, FeatureStore, FeatureView
from feast.feature_view import DUMMY_ENTITY_ID
from feast.feature_view_projection import FeatureViewProjection
from feast.infra.offline_stores.offline_store import RetrievalMetadata
from feast.type_map import feast_value_type_to_python_type

from kfloop.components.contracts.dataset import parse_time, read_dataset, write_dataset
from kfloop.components.contracts.decision import (
    NO_DATA,
    Decision,
    Reason,
    decision_metadata,
    outcome_of,
    write_decision,
)
from kfloop.components.contracts.errors import InputError
from kfloop.components.features.offline_store import AsOfJob
from kfloop.components.features.repository import at_home, open_store
from kfloop.components.features.steps import is_repo
from kfloop.components.features.training_set import (
    feature_names,
    features_at,
    find_service,
    require_inputs,
)

GATE = "training-serving consistency"
ROWS_PER_REQUEST = 1000


def retrieve(
    examples: str | Path,
    feature_repo: str | Path,
    path: str | Path,
    decision: str | Path,
    page: str | Path,
    feature_service: str = "",
    at: str = "",
    limit: int = 1000,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Reads features from the online store and compares them with the training join.

    Args:
        examples: Dataset with the entity keys and what on-demand views ask of a request.
        feature_repo: Artifact of `materialize`.
        path: Dataset to write: the examples with what the online store says of them.
        decision: Decision to write: `pass` when both agree, `fail` when not, `no_data` when there
            was nothing to compare.
        page: Page of the decision.
        feature_service: Features to read; empty for a loop without features.
        at: The moment to serve, ISO 8601; empty for the end of what was materialized.
        limit: How many examples, from the last ones; 0 for all.

    Returns:
        The dataset's metadata, and the decision's.

    Raises:
        InputError: If the service or a column is missing, or nothing was materialized.
    """
    rows = read_dataset(examples)
    rows = rows.slice(max(len(rows) - limit, 0)) if limit else rows
    if not feature_service or not is_repo(feature_repo):
        if feature_service:
            raise InputError(
                f"The feature service {feature_service!r} needs a feature repository; "
                "there is none."
            )
        print("No feature service: nothing to read.", flush=True)
        outcome = Decision(GATE, NO_DATA)
    else:
        repo = Path(feature_repo).absolute()
        with at_home(repo):
            store = open_store(repo)
            service = find_service(store, feature_service)
            require_inputs(store, service, rows)
            moment = parse_time(at, "at") if at else _materialized_until(store, service)
            moments = pa.array([moment.astimezone(UTC)] * len(rows), pa.timestamp("us", "UTC"))
            trained = features_at(store, service, rows, pa.chunked_array([moments]))
            served = online_features(store, service, rows, moment)
        reasons = compare(trained, served)
        empty = all(
            column.null_count == len(rows) for column in (*trained.columns, *served.columns)
        )
        outcome = Decision(GATE, NO_DATA if empty else outcome_of(reasons), reasons)
        outcome.baseline = f"the training join at {moment.isoformat()}"
        for name in served.column_names:
            rows = rows.append_column(name, served[name])
    write_decision(outcome, decision, page)
    print(outcome.summary, flush=True)
    return write_dataset(rows, path), decision_metadata(outcome)


def online_features(
    store: FeatureStore, service: FeatureService, rows: pa.Table, at: datetime
) -> pa.Table:
    """Returns the features of a service as they are served at a moment, a row for each of `rows`.

    Args:
        store: The repository, opened.
        service: The features to read.
        rows: Entity keys and what on-demand views ask of a request.
        at: The moment; a value older than its view's ttl is missing then.
    """
    columns: dict[str, pa.Array] = {}
    for view, projection in _projections(store, service):
        columns |= read_view(store, view, projection, rows, at)[0]
    computed = {view.name: view for view in store.list_on_demand_feature_views()}
    asked = [
        f"{projection.name_to_use()}:{field.name}"
        for projection in service.feature_view_projections
        for field in projection.features
    ]
    on_demand = [
        computed[projection.name].with_projection(projection)
        for projection in service.feature_view_projections
        if projection.name in computed
    ]
    known = rows.drop_columns([name for name in columns if name in rows.column_names])
    for name, values in columns.items():
        known = known.append_column(name, values)
    # As in training, Feast computes the on-demand views.
    job = AsOfJob(functools.partial(_same, known), on_demand, RetrievalMetadata(asked, []))
    return job.to_arrow().select(feature_names(service))


def read_view(
    store: FeatureStore,
    view: FeatureView,
    projection: FeatureViewProjection,
    rows: pa.Table,
    at: datetime | None = None,
) -> tuple[dict[str, pa.Array], list[datetime | None]]:
    """Reads one view from the online store.

    Args:
        store: The repository, opened.
        view: The view.
        projection: Which of its features, and how its keys are called in `rows`.
        rows: Entity keys; where one is missing, so are the features.
        at: When to serve: a value older than the ttl is missing then; None for any age.

    Returns:
        The values by feature, and the time of each row's values.
    """
    keys = {field.name: field.name for field in view.entity_columns} | projection.join_key_map
    keys.pop(DUMMY_ENTITY_ID, None)
    asked = [dict(zip(keys, values, strict=True)) for values in _values(rows, list(keys.values()))]
    present = [place for place, row in enumerate(asked) if None not in row.values()]
    names = [field.name for field in projection.features]
    values: dict[str, list[Any]] = {name: [None] * len(rows) for name in names}
    times: list[datetime | None] = [None] * len(rows)
    for start in range(0, len(present), ROWS_PER_REQUEST):
        places = present[start : start + ROWS_PER_REQUEST]
        answer = store.get_online_features(
            features=[f"{view.name}:{name}" for name in names],
            entity_rows=[asked[place] for place in places],
        ).proto
        for name, found in zip(answer.metadata.feature_names.val, answer.results, strict=True):
            if name not in values:
                continue
            for place, value, time in zip(
                places, found.values, found.event_timestamps, strict=True
            ):
                known = time.ToDatetime(UTC) if time.seconds or time.nanos else None
                if known is None or (at and _expired(view.ttl, known, at)):
                    continue
                times[place] = known
                values[name][place] = feast_value_type_to_python_type(value)
    return {name: pa.array(column) for name, column in values.items()}, times


def compare(trained: pa.Table, served: pa.Table) -> list[Reason]:
    """Returns for each feature whether training and serving have the same values.

    NaN counts as missing, since an online store does not tell them apart.
    """
    reasons = []
    for name in trained.column_names:
        expected, found = _plain(trained[name]), _plain(served[name])
        different = [
            place
            for place, (one, other) in enumerate(zip(expected, found, strict=True))
            if one != other
        ]
        why = f"{name} is the same for {len(expected)} examples"
        if different:
            first = different[0]
            why = (
                f"{name} differs for {len(different)} of {len(expected)} examples: row {first} has "
                f"{expected[first]} in training and {found[first]} online"
            )
        share = len(different) / max(len(expected), 1)
        reasons.append(Reason("same value", name, share, 0.0, not different, why))
    return reasons


def _same(table: pa.Table) -> pa.Table:
    return table


def _values(rows: pa.Table, names: list[str]) -> Iterator[tuple[Any, ...]]:
    if not names:
        return iter([()] * len(rows))
    return zip(*(rows[name].to_pylist() for name in names), strict=True)


def _plain(column: pa.ChunkedArray) -> list[Any]:
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    values: list[Any] = column.to_pylist()
    return values


def _expired(ttl: timedelta | None, known: datetime, at: datetime) -> bool:
    return bool(ttl) and known + ttl < at  # type: ignore[operator]  # a ttl that is true is none


def _projections(
    store: FeatureStore, service: FeatureService
) -> Iterator[tuple[FeatureView, FeatureViewProjection]]:
    """Yields the views that a service needs, those of on-demand views too."""
    views = {view.name: view for view in store.list_feature_views()}
    computed = {view.name: view for view in store.list_on_demand_feature_views()}
    for projection in service.feature_view_projections:
        if projection.name in computed:
            sources = computed[projection.name].source_feature_view_projections.values()
            yield from ((views[source.name], source) for source in sources)
        else:
            yield views[projection.name], projection


def _materialized_until(store: FeatureStore, service: FeatureService) -> datetime:
    ends = [view.most_recent_end_time for view, _ in _projections(store, service)]
    known: list[datetime] = [end for end in ends if end]
    if not known:
        raise InputError(
            f"Nothing of the feature service {service.name!r} was materialized; "
            "give the output of materialize_features."
        )
    return max(known)
