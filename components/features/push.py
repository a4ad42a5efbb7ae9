# SPDX-License-Identifier: Apache-2.0
"""New feature values from a dataset into the online store, the offline store, or both."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore, FeatureView, PushSource

from kfloop.components.contracts.dataset import read_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import new_directory
from kfloop.components.features.online import read_view
from kfloop.components.features.repository import at_home, open_store
from kfloop.components.features.steps import is_repo
from kfloop.components.features.training_set import NULLABLE

STORES = {"online": ("online",), "offline": ("offline",), "both": ("offline", "online")}


def push(
    dataset: str | Path, feature_repo: str | Path, path: str | Path, push_source: str, to: str
) -> dict[str, Any]:
    """Copies a repository and writes a dataset into its stores.

    An entity's newest row goes online, unless the store has a newer one: what arrives late does
    not undo what is known. Every row goes into the source of the offline store.

    Args:
        dataset: Rows with the entity keys, the features and the time, named as in the view.
        feature_repo: Artifact of `apply` or `materialize`.
        path: The artifact to write.
        push_source: The Feast push source; every view that reads it gets the rows.
        to: `online`, `offline` or `both`.

    Returns:
        `push_source`, `rows`, `offline` (rows written, by view), `online` (rows written, by view)
        and `outdated` (entities with a newer value online, by view).

    Raises:
        InputError: If there is no such source, a column is missing, or there are no rows.
    """
    if to not in STORES:
        raise InputError(f"Features are pushed to {', '.join(STORES)}, not to {to!r}.")
    rows = read_dataset(dataset)
    if not len(rows):
        raise InputError(f"{dataset} has no rows to push.")
    if not is_repo(feature_repo):
        raise InputError(f"The push source {push_source!r} needs a feature repository.")
    told: dict[str, Any] = {"push_source": push_source, "rows": len(rows)}
    told |= {"offline": {}, "online": {}, "outdated": {}}
    with new_directory(Path(path).absolute()) as repo:
        shutil.copytree(feature_repo, repo, dirs_exist_ok=True)
        with at_home(repo):
            store = open_store(repo)
            for view in _views(store, push_source):
                mine = _columns_of(view, rows)
                if "offline" in STORES[to]:
                    _write_offline(store, view, mine, rows)
                    told["offline"][view.name] = len(mine)
                if "online" in STORES[to]:
                    newest = _newest(view, mine)
                    fresh = _fresh(store, view, newest)
                    if len(fresh):
                        store.write_to_online_store(view.name, _frame(fresh))
                    told["online"][view.name] = len(fresh)
                    told["outdated"][view.name] = len(newest) - len(fresh)
                print(f"{view.name}: {len(mine)} rows pushed to {to}", flush=True)
    return told


def _views(store: FeatureStore, name: str) -> list[FeatureView]:
    by_source: dict[str, list[FeatureView]] = {}
    for view in store.list_feature_views():
        if isinstance(view.stream_source, PushSource):
            by_source.setdefault(view.stream_source.name, []).append(view)
    if name not in by_source:
        raise InputError(
            f"No feature view reads the push source {name!r}; "
            f"the repository has {', '.join(sorted(by_source)) or 'none'}."
        )
    return by_source[name]


def _keys(view: FeatureView) -> list[str]:
    return [field.name for field in view.entity_columns]


def _time(view: FeatureView) -> str:
    field = view.batch_source.timestamp_field
    return str(view.batch_source.field_mapping.get(field, field))


def _columns_of(view: FeatureView, rows: pa.Table) -> pa.Table:
    """Returns what a view stores of the rows; those without a time are refused."""
    features = [field.name for field in view.features]
    needed = [*_keys(view), *features, _time(view)]
    created = view.batch_source.created_timestamp_column
    needed += [created] if created else []
    missing = [name for name in needed if name not in rows.column_names]
    if missing:
        raise InputError(
            f"The feature view {view.name!r} needs the column {', '.join(missing)}; "
            f"the dataset has {', '.join(rows.column_names)}."
        )
    for name in [*_keys(view), _time(view)]:
        if rows[name].null_count:
            raise InputError(f"{rows[name].null_count} rows have no {name!r}; leave them out.")
    if all(rows[name].null_count == len(rows) for name in features):
        raise InputError(f"No row has a value for the feature view {view.name!r}.")
    return rows.select(needed)


def _write_offline(store: FeatureStore, view: FeatureView, mine: pa.Table, rows: pa.Table) -> None:
    """Appends the rows to the view's source, with the other columns it has."""
    original = {new: old for old, new in view.batch_source.field_mapping.items()}
    renamed = mine.rename_columns([original.get(name, name) for name in mine.column_names])
    held = [name for name, _ in view.batch_source.get_table_column_names_and_types(store.config)]
    missing = [name for name in held if name not in {*renamed.column_names, *rows.column_names}]
    if missing:
        raise InputError(
            f"The source of the feature view {view.name!r} has the column {', '.join(missing)}, "
            "which the dataset lacks; add it."
        )
    for name in held:
        if name not in renamed.column_names:
            renamed = renamed.append_column(name, rows[name])
    store.write_to_offline_store(view.name, _frame(renamed.select(held)))


def _newest(view: FeatureView, mine: pa.Table) -> pa.Table:
    """Returns the newest row of each entity; of several, the one that was created last."""
    order = [(_time(view), "ascending")]
    if view.batch_source.created_timestamp_column:
        order.append((view.batch_source.created_timestamp_column, "ascending"))
    mine = mine.take(pc.sort_indices(mine, order))
    places = mine.select(_keys(view)).append_column("place", pa.array(range(len(mine))))
    last = places.group_by(_keys(view)).aggregate([("place", "max")])["place_max"]
    return mine.take(last)


def _fresh(store: FeatureStore, view: FeatureView, newest: pa.Table) -> pa.Table:
    """Returns the rows that are not older than what is online."""
    _, online = read_view(store, view, view.projection, newest)
    moments = newest[_time(view)]
    if moments.type.tz is None:
        moments = pc.assume_timezone(moments, "UTC")
    known = pa.array(online, pa.timestamp("us", "UTC"))
    moments = moments.cast(pa.timestamp("us", "UTC"), safe=False)
    return newest.filter(pc.fill_null(pc.greater_equal(moments, known), True))


def _frame(table: pa.Table) -> Any:
    return table.to_pandas(types_mapper=NULLABLE.get)
