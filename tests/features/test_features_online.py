# SPDX-License-Identifier: Apache-2.0
"""What is served is what was trained on, and what is pushed is served."""

import json
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from feature_repos import NOON, TIME, example_table, facts_table, sales_table, write_repo
from test_features_flights import DAY, ROOT, Flight, flights, training_set  # noqa: F401  # fixture

from kfloop.components.contracts.dataset import read_dataset, write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.features import steps
from kfloop.components.features.materialize import materialize
from kfloop.components.features.online import online_features, retrieve
from kfloop.components.features.push import push
from kfloop.components.features.repository import apply, at_home, open_store
from kfloop.components.features.training_set import features_at

EXAMPLES = [("a", 0.0), ("b", 0.0), ("nobody", 0.0), (None, 0.0), ("a", 0.0)]
PUSHED = """
from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, ValueType
from feast.data_format import ParquetFormat
from feast.types import Float64, Int64

shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.STRING)
table = FileSource(
    name="sales", path="data/sales", file_format=ParquetFormat(), timestamp_field="known_at",
    created_timestamp_column="written_at",
)
sales = FeatureView(
    name="sales", entities=[shop], ttl=timedelta(hours=2),
    schema=[Field(name="sold", dtype=Int64)], source=PushSource(name="till", batch_source=table),
)
facts = FeatureView(
    name="facts", entities=[shop], ttl=timedelta(0), schema=[Field(name="size", dtype=Float64)],
    source=FileSource(name="facts", path="data/facts", file_format=ParquetFormat(),
                      timestamp_field="known_at"),
)
plain = FeatureService(name="plain", features=[sales, facts])
"""


def applied(path: Path, definitions: str = PUSHED) -> Path:
    sales = [("a", 0.0, 0.0, 1), ("a", 1.0, 1.0, None), ("b", -1.0, 0.0, 3)]
    write_dataset(sales_table(sales), path / "tables" / "sales")
    write_dataset(facts_table([("a", -100, 5.0), ("b", -100, None)]), path / "tables" / "facts")
    apply(path / "tables", path / "repo", str(write_repo(path / "user", definitions)))
    return path / "repo"


def check(path: Path, repo: Path, at: str = "", limit: int = 0) -> tuple[str, list[dict]]:
    """Runs the check and returns its decision and the rows that are served."""
    write_dataset(example_table(EXAMPLES), path / "examples")
    _, told = retrieve(
        *(path / "examples", repo, path / "served", path / "decision.json", path / "page.html"),
        *("plain", at, limit),
    )
    assert json.loads((path / "decision.json").read_text())["summary"] == told["summary"]
    assert "training-serving consistency" in (path / "page.html").read_text()
    return told["decision"], read_dataset(path / "served").to_pylist()


def test_flights_are_served_what_they_were_trained_on(
    flights: list[Flight],  # noqa: F811  # the fixture
    tmp_path: Path,
) -> None:
    training_set(tmp_path, flights)
    examples = read_dataset(tmp_path / "examples")
    for hours in (2.5, 24):
        moment = DAY + timedelta(hours=hours)
        until = (moment + timedelta(microseconds=1)).isoformat()
        materialize(tmp_path / "repo", tmp_path / "online", until=until)
        _, told = retrieve(
            *(tmp_path / "examples", tmp_path / "online", tmp_path / "served"),
            *(tmp_path / "decision.json", tmp_path / "page.html", "flight_delay"),
        )
        assert told["decision"] == "pass", told["summary"]
        # And when the model is asked some time later, with what has become too old by then.
        with at_home(tmp_path / "online"):
            store = open_store(tmp_path / "online")
            service = store.get_feature_service("flight_delay")
            for later in (timedelta(hours=2, minutes=1), timedelta(hours=30)):
                served = online_features(store, service, examples, moment + later)
                assert served["seats"].null_count < len(served)
                until_then = with_history_until(moment, tmp_path / "repo", tmp_path / "then")
                then = trained(until_then, examples, moment + later)
                assert served.to_pylist() == then.to_pylist()


def with_history_until(moment: datetime, repo: Path, path: Path) -> Path:
    """The repository as it would be if nothing had happened after a moment."""
    for table in sorted((repo / "data").iterdir()):
        if table.is_dir():
            rows = read_dataset(table)
            time = next(name for name in ("arrived", "known_at") if name in rows.column_names)
            kept = rows.filter([known <= moment for known in rows[time].to_pylist()])
            write_dataset(kept, path / "tables" / table.name)
    apply(path / "tables", path / "repo", str(ROOT))
    return path / "repo"


def trained(repo: Path, examples: pa.Table, moment: datetime) -> pa.Table:
    with at_home(repo):
        store = open_store(repo)
        moments = pa.chunked_array([pa.array([moment] * len(examples), TIME)])
        return features_at(store, store.get_feature_service("flight_delay"), examples, moments)


def test_a_value_is_served_up_to_the_end_of_its_ttl(tmp_path: Path) -> None:
    materialize(applied(tmp_path), tmp_path / "on")
    end = NOON - timedelta(hours=1) + timedelta(hours=2)
    for late, sold in ((timedelta(0), 3), (timedelta(microseconds=1), None)):
        decision, rows = check(tmp_path, tmp_path / "on", (end + late).isoformat())
        assert [row["sold"] for row in rows] == [None, sold, None, None, None]
        assert [row["size"] for row in rows] == [5.0, None, None, None, 5.0]
        assert decision == "pass"


def test_an_online_store_that_lags_behind_does_not_pass(tmp_path: Path) -> None:
    materialize(applied(tmp_path), tmp_path / "on", until="2024-01-01T12:30:00")
    assert check(tmp_path, tmp_path / "on")[0] == "pass"
    decision, rows = check(tmp_path, tmp_path / "on", "2024-01-01T13:00:00")
    assert decision == "fail"
    assert rows[0]["sold"] == 1
    told = json.loads((tmp_path / "decision.json").read_text())["summary"]
    assert "sold differs for 2 of 5 examples: row 0 has None in training and 1 online" in told


def test_nothing_to_compare_is_no_pass(tmp_path: Path) -> None:
    repo = applied(tmp_path)
    with pytest.raises(InputError, match="Nothing of the feature service 'plain' was material"):
        check(tmp_path, repo)
    assert check(tmp_path, repo, "2024-01-01T13:00:00", limit=2)[0] == "fail"
    materialize(repo, tmp_path / "on")
    assert check(tmp_path, tmp_path / "on", "2020-01-01", limit=2)[0] == "fail"
    assert check(tmp_path, tmp_path / "on", limit=3)[0] == "pass"
    write_dataset(example_table([("nobody", 0.0)]), tmp_path / "nobody")
    paths = [tmp_path / name for name in ("nobody", "on", "served", "decision.json", "page.html")]
    assert retrieve(*paths, "plain")[1]["decision"] == "no_data"
    steps.apply(tmp_path / "none", tmp_path / "no-repo")
    paths[1] = tmp_path / "no-repo"
    assert retrieve(*paths)[1]["decision"] == "no_data"


def test_materialize_goes_on_where_it_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = applied(tmp_path)
    first = materialize(repo, tmp_path / "one", until="2024-01-01T12:30:00")
    second = materialize(tmp_path / "one", tmp_path / "two")
    assert first["until"] == second["since"] == "2024-01-01T12:29:59.999999+00:00"
    assert second["intervals"]["sales"] == [first["until"], "2024-01-01T13:00:00+00:00"]
    third = materialize(tmp_path / "two", tmp_path / "three")
    assert third == {"feature_views": [], "since": "", "until": "", "intervals": {}}
    assert "Everything until 2024-01-01T13:00:00+00:00 is in" in capsys.readouterr().out
    assert check(tmp_path, tmp_path / "three")[0] == "pass"
    with pytest.raises(InputError, match="older values in the place of newer ones"):
        materialize(tmp_path / "two", tmp_path / "four", "2024-01-01", "2024-01-01T12:10:00")
    again = materialize(tmp_path / "two", tmp_path / "four", "2024-01-01")
    assert again["since"] == "2024-01-01T00:00:00+00:00"


def test_pushed_values_are_served_and_joined(tmp_path: Path) -> None:
    materialize(applied(tmp_path), tmp_path / "on")
    rows = [("a", 1.5, 1.5, 6), ("a", 1.25, 1.5, 7), ("b", -2.0, 1.5, 9), ("c", 1.0, 1.5, 8)]
    write_dataset(sales_table(rows), tmp_path / "new")
    for _ in range(2):
        told = push(tmp_path / "new", tmp_path / "on", tmp_path / "pushed", "till", "both")
        assert told["offline"] == {"sales": 4}
        assert told["online"] == {"sales": 2}
        assert told["outdated"] == {"sales": 1}
    decision, served = check(tmp_path, tmp_path / "pushed", "2024-01-01T13:30:00")
    assert decision == "pass"
    assert [row["sold"] for row in served] == [6, None, None, None, 6]
    assert check(tmp_path, tmp_path / "on", "2024-01-01T13:30:00")[1][0]["sold"] is None
    files = sorted(file.name for file in (tmp_path / "pushed" / "data" / "sales").iterdir())
    assert files == ["part-00000.parquet", "part-00001.parquet"]


@pytest.mark.parametrize(
    ("rows", "source", "to", "told"),
    [
        ([("a", 1.0, 1.0, 1)], "cash", "online", "push source 'cash'; the repository has till"),
        ([("a", 1.0, 1.0, 1)], "till", "nowhere", "pushed to online, offline, both, not to"),
        ([], "till", "online", "has no rows to push"),
        ([("a", None, 1.0, 1)], "till", "online", "1 rows have no 'known_at'"),
        ([(None, 1.0, 1.0, 1)], "till", "online", "1 rows have no 'shop_id'"),
        ([("a", 1.0, 1.0, None)], "till", "online", "No row has a value for .*'sales'"),
    ],
)
def test_what_cannot_be_pushed_gets_one_sentence(
    tmp_path: Path, rows: list, source: str, to: str, told: str
) -> None:
    repo = applied(tmp_path)
    write_dataset(sales_table(rows), tmp_path / "new")
    with pytest.raises(InputError, match=told):
        push(tmp_path / "new", repo, tmp_path / "pushed", source, to)
    assert not (tmp_path / "pushed").exists()


def test_a_missing_column_of_a_push_is_told(tmp_path: Path) -> None:
    repo = applied(tmp_path)
    rows = sales_table([("a", 1.0, 1.0, 1)]).drop_columns(["written_at"])
    write_dataset(rows, tmp_path / "new")
    with pytest.raises(InputError, match="needs the column written_at"):
        push(tmp_path / "new", repo, tmp_path / "pushed", "till", "online")
