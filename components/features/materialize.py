"""Newest feature values into the online store."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from feast import FeatureStore

from kfloop.components.contracts.dataset import parse_time
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import new_directory
from kfloop.components.features.repository import at_home, is_repo, local_source, open_store

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


def materialize(
    feature_repo: str | Path, path: str | Path, since: str = "", until: str = ""
) -> dict[str, Any]:
    """Copies a repository and fills its online store with each entity's newest values.

    The registry notes what was materialized, so it belongs to the output.

    Args:
        feature_repo: Artifact of `apply`.
        path: The artifact to write.
        since: Values from this time on, ISO 8601, inclusive; empty for no start.
        until: Values before this time, ISO 8601; empty for all there are.

    Returns:
        `feature_views` (names), `since` and `until` (ISO 8601).

    Raises:
        InputError: If it is no feature repository, or the window is empty.
    """
    with new_directory(Path(path).absolute()) as repo:
        shutil.copytree(feature_repo, repo, dirs_exist_ok=True)
        if not is_repo(repo):
            print("No feature repository: nothing to materialize.", flush=True)
            return {"feature_views": [], "since": "", "until": ""}
        with at_home(repo):
            store = open_store(repo)
            views = [view.name for view in store.list_feature_views() if view.online]
            start = parse_time(since, "since") if since else BEGINNING
            # Feast includes the end.
            end = (
                parse_time(until, "until") - timedelta(microseconds=1)
                if until
                else _newest(store, repo)
            )
            if end < start:
                raise InputError(f"Nothing lies between since {since} and until {until}.")
            store.materialize(start, end, views)
        return {"feature_views": views, "since": start.isoformat(), "until": end.isoformat()}


def _newest(store: FeatureStore, repo: Path) -> datetime:
    """Returns the newest time of any local source; now, when there is none."""
    newest = []
    for view in store.list_feature_views():
        found = local_source(view, repo)
        if found is None:
            continue
        source, file = found
        name = source.timestamp_field
        column = ds.dataset(file, format="parquet").to_table(columns=[name])[name]
        moment = pc.max(column.cast(pa.timestamp("us", tz="UTC"), safe=False)).as_py()
        newest += [moment] if moment else []
    return max(newest, default=datetime.now(UTC))
