# SPDX-License-Identifier: Apache-2.0
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from feature_repos import (
    DEFINITIONS,
    example_table,
    facts_table,
    write_repo,
    write_tables,
)

from kfloop.components.contracts.dataset import read_dataset, write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.features import steps
from kfloop.components.features.repository import apply
from kfloop.components.features.training_set import retrieve


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("features")
    apply(write_tables(path / "tables"), path / "repo", str(write_repo(path / "user")))
    return path / "repo"


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    rows = [
        ("b", 1.0),
        ("a", 1.5),
        ("a", 0.5),
        ("nobody", 1.0),
        (None, 1.0),
        ("a", 0.5),
        ("a", 9.0),
    ]
    write_dataset(example_table(rows), tmp_path / "examples")
    return tmp_path / "examples"


def test_examples_come_back_as_they_were_with_features(
    repo: Path, examples: Path, tmp_path: Path
) -> None:
    metadata = retrieve(examples, repo, tmp_path / "out", "moment", "plain")
    before, after = read_dataset(examples), read_dataset(tmp_path / "out")
    assert after.select(before.column_names).equals(before)
    assert after["sold"].to_pylist() == [3, 2, 1, None, None, 1, None]
    assert after["size"].to_pylist() == [6.0, 5.0, 5.0, None, None, 5.0, 5.0]
    assert metadata["features"] == ["sold", "size"]
    assert metadata["missing"] == {"sold": 3 / 7, "size": 2 / 7}
    assert metadata["since"] == "2024-01-01T12:30:00+00:00"


def test_on_demand_views_get_none_for_what_is_missing(
    repo: Path, examples: Path, tmp_path: Path
) -> None:
    retrieve(examples, repo, tmp_path / "out", "moment", "computed")
    after = read_dataset(tmp_path / "out")
    assert after["left"].to_pylist() == [3.0, 1.0, None, None, None, None, None]
    assert "sold" not in after.column_names


def test_the_repository_works_from_anywhere(
    repo: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(repo, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    retrieve(examples, "moved", tmp_path / "out", "moment", "plain")
    assert read_dataset(tmp_path / "out")["sold"].null_count == 3
    assert sorted(os.listdir(tmp_path)) == ["examples", "moved", "out"]
    retrieve(examples, repo, tmp_path / "again", "moment", "plain")
    assert read_dataset(tmp_path / "again").equals(read_dataset(tmp_path / "out"))


def test_a_timestamp_without_a_zone_is_utc_and_stays_without(
    repo: Path, examples: Path, tmp_path: Path
) -> None:
    rows = read_dataset(examples)
    naive = rows["moment"].cast(pa.timestamp("us"))
    place = rows.column_names.index("moment")
    write_dataset(rows.set_column(place, "moment", naive), tmp_path / "naive")
    retrieve(tmp_path / "naive", repo, tmp_path / "out", "moment", "plain")
    after = read_dataset(tmp_path / "out")
    assert after["sold"].to_pylist() == [3, 2, 1, None, None, 1, None]
    assert after.schema.field("moment").type == pa.timestamp("us")


def test_without_a_service_the_examples_pass_through(
    examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps.apply(tmp_path / "none", tmp_path / "repo")
    metadata = steps.retrieve(examples, tmp_path / "repo", tmp_path / "out", "moment")
    assert read_dataset(tmp_path / "out").equals(read_dataset(examples))
    assert metadata["features"] == []
    assert "No feature service" in capsys.readouterr().out


def without(column: str) -> pa.Table:
    return example_table([("a", 1.0)]).drop_columns([column])


@pytest.mark.parametrize(
    ("rows", "timestamp", "service", "told"),
    [
        (example_table([("a", 1.0)]), "moment", "plan", "'plan' does not exist.*computed, plain"),
        (example_table([("a", 1.0)]), "when", "plain", "'when' is missing"),
        (example_table([("a", 1.0)]), "label", "plain", "'label' .* holds bool"),
        (without("shop_id"), "moment", "plain", "'shop_id', the entity key of .*'(sales|facts)'"),
        (without("asked"), "moment", "computed", "'asked', which the on-demand view 'remaining'"),
        (
            example_table([("a", 1.0)]).append_column("size", pa.array([1.0])),
            "moment",
            "plain",
            "feature 'size', and so have the examples",
        ),
        (
            example_table([("a", 1.0)]).set_column(
                1, "moment", pa.array([None], pa.timestamp("us"))
            ),
            "moment",
            "plain",
            "1 examples have no 'moment'",
        ),
        (
            example_table([("a", 1.0)]).set_column(2, "shop_id", pa.array([7])),
            "moment",
            "plain",
            "'shop_id' holds BIGINT in the examples and VARCHAR",
        ),
    ],
)
def test_examples_that_do_not_fit_get_one_sentence(
    repo: Path, tmp_path: Path, rows: pa.Table, timestamp: str, service: str, told: str
) -> None:
    write_dataset(rows, tmp_path / "examples")
    with pytest.raises(InputError, match=told) as error:
        retrieve(tmp_path / "examples", repo, tmp_path / "out", timestamp, service)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_on_demand_view_that_fails_is_told(examples: Path, tmp_path: Path) -> None:
    broken = DEFINITIONS.replace("None if sold is None or asked is None else ", "")
    user = write_repo(tmp_path / "user", broken)
    apply(write_tables(tmp_path / "tables"), tmp_path / "repo", str(user))
    with pytest.raises(InputError, match="'computed' cannot be computed: TypeError"):
        retrieve(examples, tmp_path / "repo", tmp_path / "out", "moment", "computed")


def test_two_values_for_one_key_and_time_are_refused(examples: Path, tmp_path: Path) -> None:
    tables = write_tables(tmp_path / "tables")
    write_dataset(facts_table([("a", 0, 1.0), ("a", 0, 2.0)]), tables / "facts")
    apply(tables, tmp_path / "repo", str(write_repo(tmp_path / "user")))
    with pytest.raises(InputError, match=r"'facts' has different rows .*a, 2024-01-01T12:00"):
        retrieve(examples, tmp_path / "repo", tmp_path / "out", "moment", "plain")
