# SPDX-License-Identifier: Apache-2.0
"""Newest feature values into the online store."""

import contextlib
import io
import shutil
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from feast import FeatureStore, FeatureView

from kfloop.components.contracts.dataset import parse_time
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import new_directory
from kfloop.components.features.config import load
from kfloop.components.features.registry import sole_writer
from kfloop.components.features.repository import at_home, local_source, open_store

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


def materialize(
    feature_repo: str | Path, path: str | Path, since: str = "", until: str = ""
) -> dict[str, Any]:
    """Copies a repository and fills its online store with each entity's newest values.

    The registry notes what was materialized, so it belongs to the output. Without `since` each
    view goes on where the registry says that it ended, which misses values that arrived later for
    an earlier time: give `since` to read those again.

    Args:
        feature_repo: Artifact of `apply`, or of an earlier `materialize`.
        path: The artifact to write.
        since: Values from this time on, ISO 8601, inclusive; empty to go on.
        until: Values before this time, ISO 8601; empty for all there are.

    Returns:
        `feature_views` (names), `since` and `until` (ISO 8601, both inclusive) of what was read,
        and `intervals` (both, by view); empty when there was nothing new.

    Raises:
        InputError: If it is no feature repository, the window is empty, or it ends before values
            that are in the online store already.
    """
    with new_directory(Path(path).absolute()) as repo:
        shutil.copytree(feature_repo, repo, dirs_exist_ok=True)
        config = load(repo)
        with at_home(repo), sole_writer(config, repo):
            store = open_store(repo, config)
            views = [view for view in store.list_feature_views() if view.online]
            if not config.online_store:
                print("No online store: nothing to materialize.", flush=True)
                views = []
            # Feast includes the end.
            end = (
                parse_time(until, "until") - timedelta(microseconds=1)
                if until
                else _newest(store, repo)
            )
            windows = _windows(views, since, end)
            for start, names in windows.items():
                print(f"{start.isoformat()} to {end.isoformat()}: {', '.join(names)}", flush=True)
                # Feast says the same in the colours of a terminal.
                with contextlib.redirect_stdout(io.StringIO()):
                    store.materialize(start, end, names)
    intervals = {
        name: [start.isoformat(), end.isoformat()]
        for start, names in windows.items()
        for name in names
    }
    if views and not intervals:
        print(f"Everything until {end.isoformat()} is in the online store.", flush=True)
    return {
        "feature_views": sorted(intervals),
        "since": min(windows).isoformat() if windows else "",
        "until": end.isoformat() if windows else "",
        "intervals": intervals,
    }


def _windows(views: list[FeatureView], since: str, end: datetime) -> dict[datetime, list[str]]:
    """Returns the views to read by the time to read them from."""
    windows: dict[datetime, list[str]] = defaultdict(list)
    for view in views:
        done = view.most_recent_end_time
        if since or done is None:
            start = parse_time(since, "since") if since else BEGINNING
            if end < start:
                raise InputError(
                    f"Nothing lies between {start.isoformat()} and {end.isoformat()}; "
                    "give an earlier since or a later until."
                )
            if done and end < done:
                raise InputError(
                    f"The feature view {view.name!r} is in the online store until "
                    f"{done.isoformat()}; a window that ends before would put older values in the "
                    "place of newer ones, so leave until out."
                )
            windows[start].append(view.name)
        elif done < end:
            windows[done].append(view.name)
    return dict(windows)


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
