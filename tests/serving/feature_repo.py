# SPDX-License-Identifier: Apache-2.0
"""A small Feast repository for the toy model: two views, an on-demand view, filled online stores.

`seats` comes from `planes`, which never gets too old; `distance` and `weekend` are computed from
`routes`, whose values count for an hour, and from the request's `day`; `carrier` is sent.
"""

import json
import shutil
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    RequestSource,
    ValueType,
)
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Bool, Float64, Int64

NOW = datetime.now(UTC).replace(microsecond=0)
SERVICE = "toy_features"
# seats by plane, miles by route, and how old the route's value is.
PLANES: dict[str, Any] = {"N1": 150, "N2": 9, "Ünï": None}
ROUTES = {7: (700.0, 0), 8: (None, 0), 9: (2475.5, 30), 10: (100.0, 90)}
SQLITE = {"type": "sqlite", "path": "data/online_store.db"}


def write_repo(repo: Path, online_store: dict[str, Any]) -> FeatureStore:
    """Writes, applies and fills a repository, and returns it opened by Feast."""
    (repo / "data").mkdir(parents=True)
    config = {
        "project": "toy",
        "provider": "local",
        "registry": "data/registry.db",
        "online_store": online_store,
        # As in kfloop's repositories; the model server's environment has no such store.
        "entity_key_serialization_version": 3,
    }
    (repo / "feature_store.yaml").write_text(yaml.safe_dump(config))
    store = FeatureStore(repo_path=str(repo))
    plane = Entity(name="aircraft", join_keys=["plane"], value_type=ValueType.STRING)
    route = Entity(name="route", join_keys=["route"], value_type=ValueType.INT64)
    source = FileSource(name="nowhere", path="data/none.parquet", timestamp_field="at")
    planes = FeatureView(
        name="planes",
        entities=[plane],
        ttl=timedelta(0),
        schema=[Field(name="seats", dtype=Int64), Field(name="built", dtype=Int64)],
        source=source,
    )
    routes = FeatureView(
        name="routes",
        entities=[route],
        ttl=timedelta(hours=1),
        schema=[Field(name="miles", dtype=Float64)],
        source=source,
    )

    @on_demand_feature_view(
        sources=[routes, RequestSource(name="calendar", schema=[Field(name="day", dtype=Int64)])],
        schema=[Field(name="distance", dtype=Float64), Field(name="weekend", dtype=Bool)],
        mode="python",
    )
    def trip(inputs: dict[str, Any]) -> dict[str, Any]:
        return {
            "distance": [None if miles is None else miles * 1.6 for miles in inputs["miles"]],
            "weekend": [None if day is None else day % 7 >= 5 for day in inputs["day"]],
        }

    service = FeatureService(name=SERVICE, features=[planes[["seats"]], trip])
    store.apply([plane, route, source, planes, routes, trip, service])
    ages = [timedelta(minutes=minutes) for _, minutes in ROUTES.values()]
    store.write_to_online_store(
        "planes",
        pd.DataFrame(
            {
                "plane": list(PLANES),
                "seats": pd.array(list(PLANES.values()), "Int64"),
                "built": 1999,
                "at": NOW,
            }
        ),
    )
    store.write_to_online_store(
        "routes",
        pd.DataFrame(
            {
                "route": list(ROUTES),
                "miles": [miles for miles, _ in ROUTES.values()],
                "at": [NOW - age for age in ages],
            }
        ),
    )
    return store


def with_features(package: Path, copy: Path) -> Path:
    """Copies a model package as one that was trained with the repository's feature service."""
    shutil.copytree(package, copy)
    document = json.loads((copy / "model.json").read_text())
    document |= {"feature_service": SERVICE, "entities": ["plane", "route"]}
    (copy / "model.json").write_text(json.dumps(document))
    return copy


class Locked:
    """Holds an SQLite store so that nobody can read it."""

    def __init__(self, repo: Path) -> None:
        self._connection = sqlite3.connect(repo / SQLITE["path"], isolation_level=None)

    def __enter__(self) -> None:
        self._connection.execute("BEGIN EXCLUSIVE")

    def __exit__(self, *_: object) -> None:
        self._connection.execute("ROLLBACK")
        self._connection.close()
