# SPDX-License-Identifier: Apache-2.0
"""What was known when: the join against a slow, obvious loop and against Feast's own store."""

import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from feast import FeatureStore
from feature_repos import NOON, TIME, write_repo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kfloop.components.contracts.dataset import read_dataset, write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.features.repository import apply, at_home, open_store
from kfloop.components.features.training_set import retrieve

DEFINITIONS = """
from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.data_format import ParquetFormat
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64

shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.STRING)
customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)


def source(name, **more):
    return FileSource(
        name=name, path=f"data/{name}", file_format=ParquetFormat(), timestamp_field="known_at",
        **more,
    )


visits = FeatureView(
    name="visits", entities=[shop, customer], ttl=timedelta(minutes=90),
    schema=[Field(name="visits", dtype=Int64)],
    source=source("visits", created_timestamp_column="written_at", field_mapping={"n": "visits"}),
)
spend = FeatureView(
    name="spend", entities=[customer], ttl=timedelta(0),
    schema=[Field(name="spent", dtype=Float64)], source=source("spend"),
)
rent = FeatureView(
    name="rent", entities=[shop], ttl=timedelta(hours=2),
    schema=[Field(name="rent", dtype=Int64)],
    source=source("rent", field_mapping={"store": "shop_id"}),
)
weather = FeatureView(
    name="weather", entities=[], ttl=timedelta(hours=1),
    schema=[Field(name="rain", dtype=Float64)], source=source("weather"),
)


@on_demand_feature_view(
    sources=[rent, RequestSource(name="request", schema=[Field(name="asked", dtype=Int64)])],
    schema=[Field(name="offer", dtype=Int64)],
    mode="python",
)
def offer(inputs):
    pairs = zip(inputs["rent"], inputs["asked"])
    return {"offer": [None if None in pair else sum(pair) for pair in pairs]}


everything = FeatureService(
    name="everything",
    features=[
        visits, spend, rent.with_name("rival").with_join_key_map({"shop_id": "rival_id"}), weather,
    ],
)
computed = FeatureService(name="computed", features=[offer])
"""
TTL = {"visits": 90, "spend": None, "rent": 120, "weather": 60}
VALUE = {"visits": "n", "spend": "spent", "rent": "rent", "weather": "rain"}
TYPES = {
    **{"shop_id": pa.string(), "store": pa.string(), "rival_id": pa.string()},
    **{"customer_id": pa.int64(), "asked": pa.int64(), "n": pa.int64(), "rent": pa.int64()},
    **{"spent": pa.float64(), "rain": pa.float64()},
    **{"known_at": TIME, "written_at": TIME, "moment": TIME},
}
COLUMNS = {
    "visits": ["shop_id", "customer_id", "known_at", "written_at", "n"],
    "spend": ["customer_id", "known_at", "spent"],
    "rent": ["store", "known_at", "rent"],
    "weather": ["known_at", "rain"],
    "examples": ["shop_id", "rival_id", "customer_id", "moment", "asked"],
}
Row = dict[str, Any]


def rows_of(name: str, chance: random.Random) -> list[Row]:
    """Random rows of few keys and few moments, so that ties and the edges of a ttl are common."""
    count = chance.choice([1, 8] if name == "examples" else [0, 1, 5, 30])
    rows = [{column: value(column, chance) for column in COLUMNS[name]} for _ in range(count)]
    rows = decided(name, rows)
    # The same row twice is no contradiction, and rows come in any order.
    rows += rows[:3]
    chance.shuffle(rows)
    return rows


def value(column: str, chance: random.Random) -> Any:
    if TYPES[column] == TIME:
        edge = timedelta(microseconds=chance.choice([0, 0, 0, 1, -1]))
        known = NOON + chance.randint(-3, 3) * timedelta(minutes=30) + edge
        return None if column == "known_at" and chance.random() < 0.1 else known
    if chance.random() < 0.15:
        return None
    if TYPES[column] == pa.string():
        return chance.choice(["a", "b"])
    return chance.choice([7, -7]) if column == "customer_id" else chance.randint(0, 9)


def decided(name: str, rows: list[Row]) -> list[Row]:
    """Leaves out rows that contradict each other without a way to decide; those are refused."""
    if name == "examples":
        return rows
    return list({tuple(row[column] for column in COLUMNS[name][:-1]): row for row in rows}.values())


def table(name: str, rows: list[Row]) -> pa.Table:
    schema = pa.schema([(column, TYPES[column]) for column in COLUMNS[name]])
    return pa.Table.from_pylist(rows, schema)


def newest(name: str, rows: list[Row], keys: Row, moment: datetime) -> Any:
    """The reference: looks at every row."""
    best: Row | None = None
    for row in rows:
        if None in keys.values() or any(row[key] != value for key, value in keys.items()):
            continue
        if row["known_at"] is None or row["known_at"] > moment:
            continue
        if best is None or order(row) > order(best):
            best = row
    ttl = TTL[name]
    if best is None or (ttl and moment - best["known_at"] > timedelta(minutes=ttl)):
        return None
    return best[VALUE[name]]


def order(row: Row) -> tuple[datetime, ...]:
    return tuple(row[column] for column in ("known_at", "written_at") if column in row)


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("features")
    for name in TTL:
        write_dataset(table(name, []), path / "tables" / name)
    apply(path / "tables", path / "repo", str(write_repo(path / "user", DEFINITIONS)))
    return path / "repo"


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32))
def test_several_views_and_key_types_equal_the_obvious_loop(
    repo: Path, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    data = {name: rows_of(name, chance) for name in COLUMNS}
    write(repo, data)
    write_dataset(table("examples", data["examples"]), tmp_path / "examples")

    retrieve(tmp_path / "examples", repo, tmp_path / "all", "moment", "everything")
    retrieve(tmp_path / "examples", repo, tmp_path / "computed", "moment", "computed")

    after = read_dataset(tmp_path / "all")
    assert after.select(COLUMNS["examples"]).to_pylist() == data["examples"]
    assert after.drop_columns(COLUMNS["examples"]).to_pylist() == [
        expected(data, row) for row in data["examples"]
    ]
    offers = read_dataset(tmp_path / "computed")["offer"].to_pylist()
    for row, offered in zip(data["examples"], offers, strict=True):
        rent = newest("rent", data["rent"], {"store": row["shop_id"]}, row["moment"])
        parts = (rent, row["asked"])
        assert offered == (None if None in parts else sum(parts))


def expected(data: dict[str, list[Row]], example: Row) -> Row:
    both = {"shop_id": example["shop_id"], "customer_id": example["customer_id"]}
    customer = {"customer_id": example["customer_id"]}
    moment = example["moment"]
    return {
        "visits": newest("visits", data["visits"], both, moment),
        "spent": newest("spend", data["spend"], customer, moment),
        "rent": newest("rent", data["rent"], {"store": example["rival_id"]}, moment),
        "rain": newest("weather", data["weather"], {}, moment),
    }


def write(repo: Path, data: dict[str, list[Row]]) -> None:
    for name in TTL:
        pq.write_table(table(name, data[name]), repo / "data" / name / "part-00000.parquet")


@pytest.fixture
def filled(repo: Path) -> Iterator[Path]:
    """The repository with rows that leave nothing to chance, and Feast's store beside ours."""
    later = NOON + timedelta(hours=1)
    write(
        repo,
        {
            "visits": [
                {"shop_id": shop, "customer_id": who, "known_at": at, "written_at": at, "n": n}
                for n, (shop, who, at) in enumerate(
                    [("a", 1, NOON), ("a", 1, later), ("b", 2, NOON), ("b", 1, later)]
                )
            ],
            "spend": [{"customer_id": 1, "known_at": NOON, "spent": 0.5}],
            "rent": [{"store": shop, "known_at": NOON, "rent": 5} for shop in ("a", "b")],
            "weather": [{"known_at": NOON, "rain": 0.1}, {"known_at": later, "rain": 0.2}],
        },
    )
    yield repo


ENTITIES = pd.DataFrame(
    {
        "shop_id": ["a", "a", "b", "c", "b"],
        "rival_id": ["b", None, "a", "b", "b"],
        "customer_id": [1, 1, 2, 1, 1],
        "event_timestamp": [NOON + timedelta(minutes=30 * n) for n in (0, 1, 4, 5, 3)],
        "asked": [1, 2, 3, 4, 5],
    }
)
REFS = ["visits:visits", "spend:spent", "rent:rent"]


def feasts_own(repo: Path) -> FeatureStore:
    config = yaml.safe_load((repo / "feature_store.yaml").read_text())
    other = repo / "feasts_own.yaml"
    other.write_text(yaml.safe_dump(config | {"offline_store": {"type": "duckdb"}}))
    store = FeatureStore(repo_path=str(repo), fs_yaml_file=other)
    other.unlink()
    return store


@pytest.mark.parametrize("full_names", [False, True])
def test_the_values_are_those_of_feasts_own_store(filled: Path, full_names: bool) -> None:
    asked: dict[str, Any] = {"features": REFS, "full_feature_names": full_names}
    with at_home(filled):
        ours = open_store(filled).get_historical_features(ENTITIES.copy(), **asked).to_df()
        own = feasts_own(filled).get_historical_features(ENTITIES.copy(), **asked).to_df()
    keys = ["shop_id", "customer_id", "event_timestamp"]
    own = own.sort_values(keys).reset_index(drop=True)[list(ours.columns)]
    ours = ours.sort_values(keys).reset_index(drop=True)
    # The same moment in microseconds here, in nanoseconds there.
    pd.testing.assert_frame_equal(ours, own, check_dtype=False)
    assert ("visits__visits" in ours) == full_names


def test_any_program_that_opens_the_repository_uses_the_join(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = FeatureStore(repo_path=str(filled))
    service = store.get_feature_service("everything")
    job = store.get_historical_features(ENTITIES.copy(), features=service)
    assert type(job).__name__ == "AsOfJob"
    assert job.to_df()["visits"].tolist()[:2] == [0, 0]
    store.materialize(NOON, NOON + timedelta(hours=2), ["spend"])
    answer = store.get_online_features(["spend:spent"], [{"customer_id": 1}]).to_dict()
    assert answer["spent"] == [0.5]
    assert list(tmp_path.iterdir()) == []


def test_text_and_times_without_a_zone_are_read_as_feast_does(filled: Path) -> None:
    store = open_store(filled)
    zoned = ENTITIES["event_timestamp"]
    for given_times in (zoned.dt.tz_localize(None), zoned.astype(str), zoned):
        entities = ENTITIES.assign(event_timestamp=given_times)
        answer = store.get_historical_features(entities, features=REFS).to_df()
        assert answer["rent"].fillna(0).tolist() == [5, 5, 5, 0, 5]


def test_what_the_join_cannot_do_feasts_own_store_does_and_it_is_said(
    filled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with at_home(filled):
        job = open_store(filled).get_historical_features(
            ENTITIES.copy(), features=REFS, filter_by_created_timestamp=True
        )
        assert len(job.to_df()) == len(ENTITIES)
    assert type(job).__name__ == "IbisRetrievalJob"
    assert "Feast's own DuckDB store computes the join: filter_by" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("entities", "told"),
    [
        ("SELECT 1", "give entity_df as one"),
        (ENTITIES.assign(rent=1), "name of the feature rent"),
    ],
)
def test_what_cannot_be_joined_gets_one_sentence(filled: Path, entities: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        open_store(filled).get_historical_features(entities, features=REFS)


def test_a_join_can_be_saved(filled: Path, tmp_path: Path) -> None:
    from feast.infra.offline_stores.file_source import SavedDatasetFileStorage

    job = open_store(filled).get_historical_features(ENTITIES.copy(), features=REFS)
    job.persist(SavedDatasetFileStorage(path=str(tmp_path / "saved.parquet")))
    assert pq.read_table(tmp_path / "saved.parquet").num_rows == len(ENTITIES)
