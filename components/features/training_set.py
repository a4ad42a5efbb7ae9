# SPDX-License-Identifier: Apache-2.0
"""Training sets: examples with the features that were known at their time."""

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureService, FeatureStore

from kfloop.components.contracts.dataset import read_dataset, require_columns, write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.features.repository import DEFINITION_ERRORS, at_home, open_store

EVENT_TIMESTAMP = "event_timestamp"
ROW = "__row"
# pandas has no missing integer or truth value of its own, and forgets what a column of None held.
NULLABLE = {
    pa.int8(): pd.Int8Dtype(),
    pa.int16(): pd.Int16Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.bool_(): pd.BooleanDtype(),
    pa.string(): pd.StringDtype(),
}


def retrieve(
    examples: str | Path,
    feature_repo: str | Path,
    path: str | Path,
    timestamp: str,
    feature_service: str,
) -> dict[str, Any]:
    """Writes the examples with the features of a service, as known at each one's time.

    Every example comes back once, in its place, with its columns as they were.

    Args:
        examples: Dataset with the entity keys and what on-demand views ask of a request.
        feature_repo: Artifact of `apply`.
        path: The dataset to write.
        timestamp: Column of the examples: the moment that each one is about.
        feature_service: Features to join.

    Returns:
        The dataset's metadata, with `feature_service`, `features` (names) and `missing` (part of
        the rows without a value, by feature).

    Raises:
        InputError: If the service, an entity key, a requested column or a timestamp is missing,
            or a feature has the name of a column.
    """
    rows = read_dataset(examples)
    require_columns(examples, [timestamp])
    _require_timestamps(rows[timestamp], timestamp)
    feature_repo = Path(feature_repo).absolute()
    with at_home(feature_repo):
        store = open_store(feature_repo)
        service = find_service(store, feature_service)
        features = feature_names(service)
        _require_free(features, rows.column_names, feature_service)
        joined = features_at(store, service, rows, rows[timestamp])
    for name in features:
        rows = rows.append_column(name, joined[name])
    missing = {name: rows[name].null_count / max(len(rows), 1) for name in features}
    for name, part in missing.items():
        if part == 1:
            print(f"The feature {name} has no value for any example.", flush=True)
    print(f"{len(rows):,} examples with {len(features)} features", flush=True)
    return write_dataset(rows, path, timestamp) | {
        "feature_service": feature_service,
        "features": features,
        "missing": missing,
    }


def features_at(
    store: FeatureStore, service: FeatureService, rows: pa.Table, moments: pa.ChunkedArray
) -> pa.Table:
    """Returns the features of a service as known at a moment, a row for each of `rows`.

    Args:
        store: The repository, opened.
        service: The features to join.
        rows: Entity keys and what on-demand views ask of a request.
        moments: The time that each row is about; without a zone it is UTC.

    Raises:
        InputError: If a column is missing, or an on-demand view fails.
    """
    joined = _join(store, service, _asked(store, service, rows, moments)).sort_by(ROW)
    if not joined[ROW].combine_chunks().equals(pa.array(range(len(rows)), pa.int64())):
        raise RuntimeError(
            f"The offline store gave {len(joined)} rows for {len(rows)} examples; "
            "it lost or repeated some."
        )
    return joined.select(feature_names(service))


def feature_names(service: FeatureService) -> list[str]:
    """Returns the features of a service, in its order."""
    return [each.name for view in service.feature_view_projections for each in view.features]


def _join(store: FeatureStore, service: FeatureService, asked: pd.DataFrame) -> pa.Table:
    try:
        return store.get_historical_features(entity_df=asked, features=service).to_arrow()
    except InputError:
        raise
    except DEFINITION_ERRORS as error:
        raise InputError(
            f"The features of the service {service.name!r} cannot be computed: "
            f"{type(error).__name__}: {' '.join(str(error).split())} (the function of an "
            "on-demand view must define and import all that it uses, and accept None)."
        ) from error


def find_service(store: FeatureStore, name: str) -> FeatureService:
    """Returns a feature service.

    Raises:
        InputError: If there is none of that name.
    """
    services = {service.name: service for service in store.list_feature_services()}
    if name not in services:
        raise InputError(
            f"The feature service {name!r} does not exist; "
            f"the repository has {', '.join(sorted(services)) or 'none'}."
        )
    return services[name]


def _require_timestamps(column: pa.ChunkedArray, name: str) -> None:
    if not (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)):
        raise InputError(
            f"Column {name!r} is used as the timestamp but holds {column.type}; "
            "cast it to a timestamp in the query."
        )
    if column.null_count:
        raise InputError(
            f"{column.null_count} examples have no {name!r}, so nobody can say what was known; "
            "leave them out in the query."
        )


def _require_free(features: list[str], columns: list[str], service: str) -> None:
    taken = [name for name in features if name in columns]
    if taken:
        raise InputError(
            f"The feature service {service!r} has the feature {', '.join(map(repr, taken))}, and "
            "so have the examples; rename it in the query of the examples."
        )


def _asked(
    store: FeatureStore, service: FeatureService, rows: pa.Table, moments: pa.ChunkedArray
) -> pd.DataFrame:
    """Returns what Feast needs to know of the examples."""
    needed = require_inputs(store, service, rows)
    zoned = pa.types.is_timestamp(moments.type) and moments.type.tz
    moments = moments.cast(pa.timestamp("us", tz="UTC" if zoned else None), safe=False)
    if not zoned:
        moments = pc.assume_timezone(moments, "UTC")
    columns = {name: rows[name] for name in needed if name != EVENT_TIMESTAMP}
    columns |= {EVENT_TIMESTAMP: moments, ROW: pa.array(range(len(rows)), pa.int64())}
    return pa.table(columns).to_pandas(types_mapper=NULLABLE.get)


def require_inputs(store: FeatureStore, service: FeatureService, rows: pa.Table) -> list[str]:
    """Returns the columns that a service asks of the examples.

    Raises:
        InputError: If one is missing.
    """
    needed = _needed(store, service)
    for name, why in needed.items():
        if name not in rows.column_names:
            raise InputError(
                f"The examples lack the column {name!r}, {why}; "
                f"they have {', '.join(rows.column_names)}."
            )
    return list(needed)


def _needed(store: FeatureStore, service: FeatureService) -> dict[str, str]:
    """Returns the columns that the features ask of the examples, and why."""
    needed: dict[str, str] = {}
    on_demand = {view.name: view for view in store.list_on_demand_feature_views()}
    join_keys = {entity.name: entity.join_key for entity in store.list_entities()}
    views = {view.name: view for view in store.list_feature_views()}
    projections = list(service.feature_view_projections)
    for projection in service.feature_view_projections:
        computed = on_demand.get(projection.name)
        if computed is not None:
            projections += computed.source_feature_view_projections.values()
            for name in computed.get_request_data_schema():
                needed[name] = f"which the on-demand view {computed.name!r} asks for"
    for projection in projections:
        view = views.get(projection.name)
        for entity in view.entities if view else []:
            key = join_keys.get(entity)
            if key:
                column = projection.join_key_map.get(key, key)
                needed[column] = f"the entity key of the feature view {projection.name!r}"
    return needed
