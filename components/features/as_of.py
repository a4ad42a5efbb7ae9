"""Point-in-time joins for Feast on DuckDB's ASOF JOIN.

Feast's own DuckDB store joins every example with the whole history of its entity and then keeps the
newest row: with few entities (an airport, a shop) that is examples × history. Here each example
finds its row in one pass. What is joined (keys, names, ttl, sources) is still Feast's definition,
and on-demand views are still computed by Feast.

A feature value belongs to an example when it is the newest with time <= the example's time, and is
not older than the view's ttl (both bounds inclusive, as in Feast; a ttl of zero is for ever).
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, Literal

import duckdb
import pandas as pd
import pyarrow as pa
from feast import FeatureStore, FeatureView, OnDemandFeatureView
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, DuckDBOfflineStoreConfig
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import RepoConfig

from kfloop.components.contracts.errors import InputError
from kfloop.components.features.repository import local_source

STORE: Final = "kfloop.components.features.as_of.AsOfOfflineStore"
EVENT_TIMESTAMP = "event_timestamp"
ROW = "__row"


def use_as_of_join(store: FeatureStore) -> None:
    """Makes a store that is configured for Feast's DuckDB store use this one.

    The configuration file keeps naming Feast's, so that others can open the repository. Other
    stores (BigQuery, Spark, …) are left as they are.
    """
    if store.config.offline_store.type == "duckdb":
        store.config.offline_config = AsOfOfflineStoreConfig()
        store.config._offline_store = None


class AsOfOfflineStoreConfig(DuckDBOfflineStoreConfig):
    """Feast finds it by the name of the store."""

    type: Literal["kfloop.components.features.as_of.AsOfOfflineStore"] = STORE


class AsOfOfflineStore(DuckDBOfflineStore):
    """Feast's DuckDB store with another point-in-time join.

    The examples are a data frame with the columns `event_timestamp` and `__row`; rows come back
    in the order of `__row`.
    """

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
    ) -> RetrievalJob:
        """Returns a job with the features of `entity_df`; see Feast's `OfflineStore`."""
        if full_feature_names or filter_by_created_timestamp:
            raise NotImplementedError(f"{STORE} gives plain names and counts every value.")
        examples = pa.Table.from_pandas(entity_df, preserve_index=False)
        on_demand = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        metadata = RetrievalMetadata(features=feature_refs, keys=examples.column_names)
        return AsOfJob(
            lambda: join(examples, feature_views, feature_refs, str(config.repo_path)),
            on_demand,
            metadata,
        )


class AsOfJob(RetrievalJob):
    """Computes the join when it is asked for."""

    def __init__(
        self,
        compute: Callable[[], pa.Table],
        on_demand: list[OnDemandFeatureView],
        metadata: RetrievalMetadata,
    ) -> None:
        super().__init__()
        self._compute = compute
        self._on_demand = on_demand
        self._metadata = metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._compute()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._compute().to_pandas()

    @property
    def full_feature_names(self) -> bool:
        """Features have their plain names."""
        return False

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """What Feast computes from the joined columns."""
        return self._on_demand

    @property
    def metadata(self) -> RetrievalMetadata:
        """What was asked for."""
        return self._metadata

    def persist(self, *args: Any, **kwargs: Any) -> None:
        """Not needed here: the component writes the dataset."""
        raise NotImplementedError


def join(
    examples: pa.Table, views: list[FeatureView], feature_refs: list[str], repo: str
) -> pa.Table:
    """Returns the examples with the features of the views, in the order of `__row`.

    Args:
        examples: Entity keys, `event_timestamp` and `__row`.
        views: Feature views.
        feature_refs: Features to join, as `view:feature`.
        repo: Where relative paths of sources start.

    Raises:
        InputError: If a source cannot be read, an entity key has another type there, or a source
            has two values for one key and time.
    """
    wanted: dict[str, list[str]] = {}
    for ref in feature_refs:
        name, _, feature = ref.partition(":")
        wanted.setdefault(name, []).append(feature)
    with duckdb.connect(config={"autoinstall_known_extensions": "false"}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        # As a table: DuckDB knows its size, and does not join it in a loop as if it were tiny.
        connection.register("given", examples)
        connection.execute("CREATE TABLE examples AS SELECT * FROM given")
        columns = [f"examples.{_quote(name)}" for name in examples.column_names]
        joins = ""
        for number, view in enumerate(views):
            features = wanted.get(view.projection.name_alias or view.projection.name, [])
            keys = _keys(view)
            history = f"history_{number}"
            _load(connection, view, features, list(keys), history, repo)
            _require_key_types(connection, view, keys, history)
            joins += f" ASOF LEFT JOIN {history} ON " + " AND ".join(
                [
                    *(
                        f"examples.{_quote(ours)} = {history}.{_quote(theirs)}"
                        for theirs, ours in keys.items()
                    ),
                    f"examples.{EVENT_TIMESTAMP} >= {history}.known_at",
                ]
            )
            columns += [_unexpired(view, history, feature) for feature in features]
        return connection.sql(
            f"SELECT {', '.join(columns)} FROM examples{joins} ORDER BY examples.{ROW}"
        ).to_arrow_table()


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _keys(view: FeatureView) -> dict[str, str]:
    """Returns the examples' column by join key of the view; none for a view without entities."""
    keys = {field.name: field.name for field in view.entity_columns}
    keys |= view.projection.join_key_map
    keys.pop(DUMMY_ENTITY_ID, None)
    return keys


def _unexpired(view: FeatureView, history: str, feature: str) -> str:
    column = f"{history}.{_quote(feature)}"
    if not view.ttl:
        return f"{column} AS {_quote(feature)}"
    microseconds = round(view.ttl.total_seconds() * 1_000_000)
    expires = f"{history}.known_at + to_microseconds({microseconds})"
    return (
        f"CASE WHEN examples.{EVENT_TIMESTAMP} <= {expires} THEN {column} END AS {_quote(feature)}"
    )


def _load(
    connection: duckdb.DuckDBPyConnection,
    view: FeatureView,
    features: list[str],
    keys: list[str],
    history: str,
    repo: str,
) -> None:
    """Creates the table `history`: one row per key and time."""
    found = local_source(view, repo)
    if found is None or not found[1].exists():
        raise InputError(
            f"The source of the feature view {view.name!r} is no local Parquet file; "
            "put it into the repository as a feature table."
        )
    source, path = found
    files = f"{path}/**/*.parquet" if path.is_dir() else str(path)
    original = {new: old for old, new in source.field_mapping.items()}
    selected = [
        f"{_quote(original.get(name, name))} AS {_quote(name)}" for name in [*keys, *features]
    ]
    identity = [*map(_quote, keys), "known_at"]
    created = source.created_timestamp_column
    newest = ""
    if created:
        newest = (
            f" QUALIFY rank() OVER (PARTITION BY {', '.join(identity)} "
            f"ORDER BY {_quote(created)} DESC NULLS LAST) = 1"
        )
    connection.execute(
        f"""CREATE TABLE {history} AS SELECT DISTINCT * FROM (
            SELECT {", ".join([*selected, ""])}
                CAST({_quote(source.timestamp_field)} AS TIMESTAMPTZ) AS known_at
            FROM read_parquet('{files.replace("'", "''")}', union_by_name = true)
            WHERE {_quote(source.timestamp_field)} IS NOT NULL{newest}
        )"""
    )
    tie = connection.sql(
        f"SELECT {', '.join(identity)} FROM {history} GROUP BY ALL HAVING count(*) > 1 LIMIT 1"
    ).fetchone()
    if tie:
        shown = ", ".join(str(_told(value)) for value in tie)
        raise InputError(
            f"The source of the feature view {view.name!r} has different rows for one key and "
            f"time ({shown}); aggregate them, or name a created_timestamp_column that decides."
        )


def _told(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value


def _require_key_types(
    connection: duckdb.DuckDBPyConnection, view: FeatureView, keys: dict[str, str], history: str
) -> None:
    examples = connection.table("examples")
    source = connection.table(history)
    for theirs, ours in keys.items():
        asked = examples.types[examples.columns.index(ours)]
        known = source.types[source.columns.index(theirs)]
        if (asked.id == "varchar") != (known.id == "varchar"):
            raise InputError(
                f"The entity key {ours!r} holds {asked} in the examples and {known} in the source "
                f"of the feature view {view.name!r}; cast one of them."
            )
