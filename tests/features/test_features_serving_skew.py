# SPDX-License-Identifier: Apache-2.0
"""Do requests carry what training would have used?"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from feature_repos import example_table, write_repo, write_tables

from kfloop.components.contracts.dataset import read_dataset, write_dataset
from kfloop.components.contracts.decision import read_decision
from kfloop.components.contracts.errors import InputError
from kfloop.components.features.repository import apply
from kfloop.components.features.serving_skew import detect_serving_skew
from kfloop.components.features.training_set import retrieve

ROWS = [("b", 1.0), ("a", 1.5), ("a", 0.5), ("nobody", 1.0), ("a", 9.0), ("b", 0.5)]


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("features")
    apply(write_tables(path / "tables"), path / "repo", str(write_repo(path / "user")))
    return path / "repo"


def log(path: Path, repo: Path, service: str) -> pa.Table:
    """The log of a service that does what it should."""
    write_dataset(example_table(ROWS), path / "examples")
    retrieve(path / "examples", repo, path / "joined", "moment", service)
    rows = read_dataset(path / "joined")
    return rows.append_column("status", pa.array([200] * len(rows), pa.int32()))


def detect(path: Path, repo: Path, rows: pa.Table, **settings: object) -> str:
    write_dataset(rows, path / "log")
    given = {"feature_service": "plain"} | settings
    return detect_serving_skew(
        path / "log", repo, path / "decision.json", path / "page.html", "moment", **given
    )[0]


@pytest.mark.parametrize("service", ["plain", "computed"])
def test_the_same_values_are_no_skew(tmp_path: Path, repo: Path, service: str) -> None:
    assert detect(tmp_path, repo, log(tmp_path, repo, service), feature_service=service) == "pass"


def test_a_value_that_training_would_not_have_used_is_skew(tmp_path: Path, repo: Path) -> None:
    rows = log(tmp_path, repo, "plain")
    # An expired value is missing in training; this service sent it all the same.
    stale = pc.if_else(pc.is_null(rows["sold"]), 2, rows["sold"])
    rows = rows.set_column(rows.schema.get_field_index("sold"), "sold", stale)
    assert detect(tmp_path, repo, rows) == "fail"
    made = read_decision(tmp_path / "decision.json")
    assert [reason.metric for reason in made.reasons if not reason.passed] == ["sold"]
    assert "2 in a request and None in the store" in made.summary


def test_a_few_late_values_are_allowed_when_asked_for(tmp_path: Path, repo: Path) -> None:
    rows = log(tmp_path, repo, "plain")
    values = rows["size"].to_pylist()
    values[0] = 7.0
    rows = rows.set_column(rows.schema.get_field_index("size"), "size", pa.array(values))
    assert detect(tmp_path, repo, rows) == "fail"
    assert detect(tmp_path, repo, rows, maximum_share=0.2) == "pass"


def test_a_missing_number_and_nan_are_the_same(tmp_path: Path, repo: Path) -> None:
    rows = log(tmp_path, repo, "plain")
    place = rows.schema.get_field_index("size")
    rows = rows.set_column(place, "size", pc.fill_null(rows["size"], float("nan")))
    assert detect(tmp_path, repo, rows) == "pass"


def test_failed_requests_are_not_compared(tmp_path: Path, repo: Path) -> None:
    rows = log(tmp_path, repo, "plain")
    place = rows.schema.get_field_index("status")
    failed = rows.set_column(place, "status", pa.array([503] * len(rows), pa.int32()))
    assert detect(tmp_path, repo, failed) == "no_data"


def test_without_features_there_is_nothing_to_compare(tmp_path: Path, repo: Path) -> None:
    assert detect(tmp_path, repo, log(tmp_path, repo, "plain"), feature_service="") == "no_data"
    assert "there is no feature service" in read_decision(tmp_path / "decision.json").summary


def test_an_absent_repository_is_named(tmp_path: Path, repo: Path) -> None:
    with pytest.raises(InputError, match="is not a feature repository"):
        detect(tmp_path, tmp_path, log(tmp_path, repo, "plain"))
