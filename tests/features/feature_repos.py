# SPDX-License-Identifier: Apache-2.0
"""Small feature repositories for tests."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa

from kfloop.components.contracts.dataset import write_dataset

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
TIME = pa.timestamp("us", tz="UTC")

DEFINITIONS = """
from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.data_format import ParquetFormat
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64

shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.STRING)


def source(name, created=""):
    return FileSource(
        name=name, path=f"data/{name}", file_format=ParquetFormat(), timestamp_field="known_at",
        created_timestamp_column=created,
    )


sales = FeatureView(
    name="sales", entities=[shop], ttl=timedelta(hours=2),
    schema=[Field(name="sold", dtype=Int64)], source=source("sales", "written_at"),
)
facts = FeatureView(
    name="facts", entities=[shop], ttl=timedelta(0),
    schema=[Field(name="size", dtype=Float64)], source=source("facts"),
)


@on_demand_feature_view(
    sources=[sales, RequestSource(name="request", schema=[Field(name="asked", dtype=Int64)])],
    schema=[Field(name="left", dtype=Float64)],
    mode="python",
)
def remaining(inputs):
    left = []
    for sold, asked in zip(inputs["sold"], inputs["asked"]):
        left.append(None if sold is None or asked is None else float(sold - asked))
    return {"left": left}


plain = FeatureService(name="plain", features=[sales, facts])
computed = FeatureService(name="computed", features=[facts, remaining])
"""


def write_repo(path: Path, definitions: str = DEFINITIONS) -> Path:
    """Writes a user's repository: definitions, and rubbish that must not travel."""
    for name in ("data", "__pycache__"):
        (path / name).mkdir(parents=True, exist_ok=True)
        (path / name / "old").write_text("old")
    (path / "definitions.py").write_text(definitions)
    return path


def times(hours: list[float | None]) -> pa.Array:
    """Hours after noon as timestamps."""
    return pa.array(
        [None if hour is None else NOON + timedelta(hours=hour) for hour in hours], TIME
    )


def sales_table(rows: list[tuple[str | None, float | None, float, int | None]]) -> pa.Table:
    """Rows of shop, known_at, written_at (hours after noon) and sold."""
    shops, known, written, sold = zip(*rows, strict=True) if rows else ((), (), (), ())
    return pa.table(
        {
            "shop_id": pa.array(shops, pa.string()),
            "known_at": times(list(known)),
            "written_at": times(list(written)),
            "sold": pa.array(sold, pa.int64()),
        }
    )


def facts_table(rows: list[tuple[str | None, float, float | None]]) -> pa.Table:
    """Rows of shop, known_at (hours after noon) and size."""
    shops, known, size = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table(
        {
            "shop_id": pa.array(shops, pa.string()),
            "known_at": times(list(known)),
            "size": pa.array(size, pa.float64()),
        }
    )


def example_table(rows: list[tuple[str | None, float]]) -> pa.Table:
    """Rows of shop and moment (hours after noon), with columns that must survive."""
    shops, moments = zip(*rows, strict=True)
    count = len(rows)
    return pa.table(
        {
            "event_id": pa.array(range(count), pa.int32()),
            "moment": times(list(moments)),
            "shop_id": pa.array(shops, pa.string()),
            "asked": pa.array([None if row % 3 == 2 else row for row in range(count)], pa.int64()),
            "label": pa.array([row % 2 == 0 for row in range(count)]),
        }
    )


def write_tables(path: Path) -> Path:
    """Writes feature tables that fit DEFINITIONS."""
    write_dataset(sales_table([("a", 0, 0, 1), ("a", 1, 1, 2), ("b", 0, 0, 3)]), path / "sales")
    write_dataset(facts_table([("a", -100, 5.0), ("b", -100, 6.0)]), path / "facts")
    return path
