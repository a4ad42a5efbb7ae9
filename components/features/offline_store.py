# SPDX-License-Identifier: Apache-2.0
"""Feast's DuckDB store with a point-in-time join in one pass; a project names it so::

    offline_store:
      type: kfloop.components.features.offline_store.AsOfOfflineStore

Feast's own joins every example with the whole history of its entity and then keeps the newest row:
with few entities (an airport, a shop) that is examples × history. What is joined (keys, names, ttl,
sources) is Feast's definition, and Feast computes the on-demand views. What this store cannot join
it says, and leaves to Feast's. Relative paths start at the repository, wherever one works.
"""

import functools
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

import ibis
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureView, FileSource, OnDemandFeatureView
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.offline_stores.duckdb import (
    DuckDBOfflineStore,
    DuckDBOfflineStoreConfig,
    _read_data_source,
    _write_data_source,
)
from feast.infra.offline_stores.ibis import (
    pull_all_from_table_or_query_ibis,
    pull_latest_from_table_or_query_ibis,
)
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import RepoConfig
from feast.saved_dataset import SavedDatasetStorage

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import write_bytes
from kfloop.components.features.as_of import History, join

STORE: Final = "kfloop.components.features.offline_store.AsOfOfflineStore"


class AsOfOfflineStoreConfig(DuckDBOfflineStoreConfig):
    """Feast finds it by the name of the store."""

    type: Literal["kfloop.components.features.offline_store.AsOfOfflineStore"] = STORE


class AsOfOfflineStore(DuckDBOfflineStore):
    """See the module."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        **window: datetime,
    ) -> RetrievalJob:
        """Returns a job with the features of `entity_df`; see Feast's `OfflineStore`.

        Raises:
            InputError: If `entity_df` is no data frame, or has a column with the name of a feature.
        """
        if not isinstance(entity_df, pd.DataFrame) or window:
            raise InputError(
                "The store on DuckDB joins features to a data frame; give entity_df as one, "
                "without start_date and end_date."
            )
        on_demand = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        reason = _cannot_join(feature_views, on_demand, filter_by_created_timestamp)
        if reason:
            print(f"Feast's own DuckDB store computes the join: {reason}.", flush=True)
            return DuckDBOfflineStore.get_historical_features(
                config=config,
                feature_views=feature_views,
                feature_refs=feature_refs,
                entity_df=entity_df,
                registry=registry,
                project=project,
                full_feature_names=full_feature_names,
                filter_by_created_timestamp=filter_by_created_timestamp,
            )
        timestamp = infer_event_timestamp_from_entity_df(
            dict(zip(entity_df.columns, entity_df.dtypes, strict=True))
        )
        repo = str(config.repo_path)
        histories = [
            _history(view, feature_refs, full_feature_names, repo) for view in feature_views
        ]
        examples = _examples(entity_df, timestamp)
        _require_free(examples, histories)
        metadata = RetrievalMetadata(
            features=feature_refs,
            keys=[name for name in examples.column_names if name != timestamp],
            min_event_timestamp=examples[timestamp].to_pandas().min(),
            max_event_timestamp=examples[timestamp].to_pandas().max(),
        )
        compute = functools.partial(join, examples, timestamp, histories)
        return AsOfJob(compute, on_demand, metadata, full_feature_names, repo)

    @staticmethod
    def pull_latest_from_table_or_query(*args: Any, **kwargs: Any) -> RetrievalJob:
        """What `materialize` reads; see Feast's `OfflineStore`."""
        return pull_latest_from_table_or_query_ibis(
            *args, **kwargs, data_source_reader=_read, data_source_writer=_write_data_source
        )

    @staticmethod
    def pull_all_from_table_or_query(*args: Any, **kwargs: Any) -> RetrievalJob:
        """All rows of a source in a window; see Feast's `OfflineStore`."""
        return pull_all_from_table_or_query_ibis(
            *args, **kwargs, data_source_reader=_read, data_source_writer=_write_data_source
        )

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Appends rows to a view's source; see Feast's `OfflineStore`.

        A directory gets another file; Feast's store would replace it by a single one.
        """
        path = local_path(feature_view.batch_source, str(config.repo_path))
        if path is None or not path.is_dir():
            DuckDBOfflineStore.offline_write_batch(config, feature_view, table, progress)
            return
        files = sorted(path.glob("*.parquet"))
        schema = pq.read_schema(files[0])
        sink = pa.BufferOutputStream()
        pq.write_table(table.select(schema.names).cast(schema), sink, coerce_timestamps="us")
        write_bytes(path / f"part-{len(files):05d}.parquet", sink.getvalue().to_pybytes())
        if progress:
            progress(len(table))


class AsOfJob(RetrievalJob):
    """Computes the join when it is asked for."""

    def __init__(
        self,
        compute: Callable[[], pa.Table],
        on_demand: list[OnDemandFeatureView],
        metadata: RetrievalMetadata,
        full_feature_names: bool = False,
        repo: str = "",
    ) -> None:
        super().__init__()
        self._compute = compute
        self._on_demand = on_demand
        self._metadata = metadata
        self._full_feature_names = full_feature_names
        self._repo = repo

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._compute()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._compute().to_pandas()

    @property
    def full_feature_names(self) -> bool:
        """Whether features are named with their view."""
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """What Feast computes from the joined columns."""
        return self._on_demand

    @property
    def metadata(self) -> RetrievalMetadata:
        """What was asked for."""
        return self._metadata

    def persist(
        self,
        storage: SavedDatasetStorage,
        allow_overwrite: bool = False,
        timeout: int | None = None,
    ) -> None:
        """Writes the result as a saved dataset; see Feast's `RetrievalJob`."""
        table = ibis.memtable(self.to_arrow())
        _write_data_source(
            table, storage.to_data_source(), self._repo, "overwrite", allow_overwrite
        )


def local_path(source: DataSource | None, repo: str | Path) -> Path | None:
    """Returns where a source's Parquet files are, or None when they are not local."""
    if not isinstance(source, FileSource):
        return None
    if not isinstance(source.file_format, ParquetFormat | None):
        return None
    uri = FileSource.get_uri_for_file_path(repo, source.path)
    return None if "://" in uri else Path(uri)


def _cannot_join(
    views: list[FeatureView], on_demand: list[OnDemandFeatureView], by_created: bool
) -> str:
    """Returns why the join in one pass does not do, or nothing."""
    if by_created:
        return "filter_by_created_timestamp needs more than the newest row of a key"
    for view in views:
        if local_path(view.batch_source, ".") is None:
            return f"the source of the feature view {view.name!r} is no local Parquet file"
    for computed in on_demand:
        if computed.mode == "substrait":
            return f"the on-demand view {computed.name!r} is in substrait mode"
    return ""


def _examples(entity_df: pd.DataFrame, timestamp: str) -> pa.Table:
    """Returns the examples with their times as timestamps; text is read as Feast does."""
    examples = pa.Table.from_pandas(entity_df, preserve_index=False).replace_schema_metadata()
    if not pa.types.is_timestamp(examples[timestamp].type):
        moments = pa.array(pd.to_datetime(entity_df[timestamp], utc=True))
        examples = examples.set_column(
            examples.column_names.index(timestamp), timestamp, pa.chunked_array([moments])
        )
    return examples


def _history(view: FeatureView, refs: list[str], full_names: bool, repo: str) -> History:
    """Returns what Feast defines of a view and what is asked of it, for the join."""
    source = view.batch_source
    path = local_path(source, repo)
    if source is None or path is None or not path.exists():
        raise InputError(
            f"The source of the feature view {view.name!r} is not there; "
            "put it into the repository as a feature table."
        )
    original = {new: old for old, new in source.field_mapping.items()}
    projection = view.projection
    prefix = f"{projection.name_alias or view.name}__" if full_names else ""
    asked = [
        feature
        for name, _, feature in (ref.partition(":") for ref in refs)
        if name == projection.name_to_use()
    ]
    keys = {field.name: field.name for field in view.entity_columns}
    keys |= projection.join_key_map
    keys.pop(DUMMY_ENTITY_ID, None)
    return History(
        name=view.name,
        files=_files(path),
        keys={original.get(theirs, theirs): ours for theirs, ours in keys.items()},
        features={original.get(name, name): prefix + name for name in asked},
        timestamp=original.get(source.timestamp_field, source.timestamp_field),
        created=original.get(source.created_timestamp_column, source.created_timestamp_column),
        ttl=view.ttl,
    )


def _require_free(examples: pa.Table, histories: list[History]) -> None:
    names = [name for history in histories for name in history.features.values()]
    taken = [name for name in names if name in examples.column_names]
    if taken:
        raise InputError(
            f"The examples have a column with the name of the feature {', '.join(taken)}; "
            "rename it, or ask for full feature names."
        )


def _read(source: DataSource, repo: str) -> ibis.Table:
    path = local_path(source, repo)
    return _read_data_source(source, repo) if path is None else ibis.read_parquet(_files(path))


def _files(path: Path) -> str:
    return f"{path}/**/*.parquet" if path.is_dir() else str(path)
