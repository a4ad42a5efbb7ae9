# SPDX-License-Identifier: Apache-2.0
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kfloop.components.contracts.dataset import read_dataset, write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.inference_log import partition
from kfloop.components.data.labels import join_labels
from kfloop.components.data.log import collect

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


def log_rows(ids: list[str], times: list[datetime], predictions: list[float | None]) -> pa.Table:
    return pa.table(
        {
            "request_id": [f"r-{name}" for name in ids],
            "row": pa.array([0] * len(ids), pa.int32()),
            "event_time": pa.array(times, pa.timestamp("us", tz="UTC")),
            "id": ids,
            "prediction": pa.array(predictions, pa.float64()),
        }
    )


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    ids = ["a", "a", "b", "c", "d", "e"]
    times = [NOON, NOON + timedelta(hours=1), NOON, NOON, NOON, NOON]
    write_dataset(log_rows(ids, times, [0.1, 0.2, 0.3, 0.4, None, 0.6]), tmp_path / "predictions")
    return tmp_path / "predictions"


def write_labels(path: Path, rows: list[tuple[str | None, datetime, int | None]]) -> Path:
    ids, times, late = zip(*rows, strict=True)
    # As naive as SQL often makes them: UTC.
    naive = pa.array([time.replace(tzinfo=None) for time in times], pa.timestamp("us"))
    write_dataset(
        pa.table({"id": pa.array(ids, pa.string()), "at": naive, "late": late}), path / "labels"
    )
    return path / "labels"


def test_each_prediction_meets_its_label_and_the_others_are_counted(
    predictions: Path, tmp_path: Path
) -> None:
    labels = write_labels(
        tmp_path,
        [
            ("a", NOON, 1),
            ("a", NOON, 1),
            ("a", NOON + timedelta(hours=1), 0),
            ("b", NOON, None),
            ("c", NOON, 0),
            ("c", NOON, 1),
            ("d", NOON, 1),
        ],
    )
    metadata = join_labels(predictions, labels, tmp_path / "joined", ["id"], "late", "at")
    rows = read_dataset(tmp_path / "joined").sort_by("event_time")
    assert rows["prediction"].to_pylist() == [0.1, 0.2]
    assert rows["late"].to_pylist() == [1, 0]
    counts = {name: metadata[name] for name in ("matched", "unlabelled", "ambiguous", "failed")}
    assert counts == {"matched": 2, "unlabelled": 2, "ambiguous": 1, "failed": 1}
    assert metadata["predictions"] == 6
    assert metadata["rows"] == 2


@pytest.mark.parametrize(
    ("maturity_days", "until", "immature"),
    [
        (0, "", 0),
        # Counted from the newest prediction, an hour after the others.
        (1 / 48, "", 0),
        (1 / 12, "", 2),
        (2, "2024-01-03T13:00:00", 0),
        (2, "2024-01-03T11:00:00", 2),
    ],
)
def test_a_label_that_may_still_come_is_not_missing(
    predictions: Path, tmp_path: Path, maturity_days: float, until: str, immature: int
) -> None:
    labels = write_labels(
        tmp_path, [("a", NOON, 1), ("a", NOON + timedelta(hours=1), 0), ("c", NOON, 1)]
    )
    metadata = join_labels(
        predictions, labels, tmp_path / "joined", ["id"], "late", "at", maturity_days, until
    )
    assert metadata["immature"] == immature
    assert metadata["unlabelled"] == 2 - immature
    assert (metadata["matched"], metadata["failed"], metadata["predictions"]) == (3, 1, 6)


def test_maturity_needs_a_time(tmp_path: Path) -> None:
    write_dataset(pa.table({"id": ["a"], "prediction": [0.5]}), tmp_path / "predictions")
    write_dataset(pa.table({"id": ["a"], "late": [1]}), tmp_path / "labels")
    with pytest.raises(InputError, match="needs the time of each prediction"):
        join_labels(
            tmp_path / "predictions",
            tmp_path / "labels",
            tmp_path / "joined",
            ["id"],
            "late",
            maturity_days=3,
        )


def test_labels_can_come_by_request_id(predictions: Path, tmp_path: Path) -> None:
    write_dataset(pa.table({"request_id": ["r-b"], "late": [1]}), tmp_path / "labels")
    metadata = join_labels(
        predictions, tmp_path / "labels", tmp_path / "joined", ["request_id"], "late"
    )
    assert metadata["matched"] == 1


def test_a_missing_key_equals_a_missing_key(tmp_path: Path) -> None:
    write_dataset(log_rows(["a"], [NOON], [0.5]), tmp_path / "predictions")
    rows = read_dataset(tmp_path / "predictions")
    nothing = pa.array([None], pa.string())
    write_dataset(rows.set_column(3, "id", nothing), tmp_path / "predictions")
    labels = write_labels(tmp_path, [(None, NOON, 1)])
    assert (
        join_labels(tmp_path / "predictions", labels, tmp_path / "joined", ["id"], "late", "at")[
            "matched"
        ]
        == 1
    )


def test_no_label_yet_is_an_empty_dataset_and_a_count(predictions: Path, tmp_path: Path) -> None:
    labels = write_labels(tmp_path, [("z", NOON, 1)])
    metadata = join_labels(predictions, labels, tmp_path / "joined", ["id"], "late", "at")
    assert (metadata["rows"], metadata["unlabelled"]) == (0, 5)
    assert read_dataset(tmp_path / "joined").column_names[-1] == "late"


@pytest.mark.parametrize(
    ("keys", "label", "timestamp", "told"),
    [
        (["id", "tail"], "late", "at", "'tail' is missing"),
        (["id"], "delay", "at", "'delay' is missing"),
        (["id"], "late", "when", "'when' is missing"),
        ([], "late", "at", "at least one"),
    ],
)
def test_a_missing_column_is_named(
    predictions: Path, tmp_path: Path, keys: list[str], label: str, timestamp: str, told: str
) -> None:
    labels = write_labels(tmp_path, [("a", NOON, 1)])
    with pytest.raises(InputError, match=told):
        join_labels(predictions, labels, tmp_path / "joined", keys, label, timestamp)


def test_keys_of_different_types_are_told(predictions: Path, tmp_path: Path) -> None:
    write_dataset(pa.table({"id": [1], "late": [1]}), tmp_path / "labels")
    with pytest.raises(InputError, match=r"'id' holds VARCHAR .* BIGINT"):
        join_labels(predictions, tmp_path / "labels", tmp_path / "joined", ["id"], "late")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    for day, version, ids in [(1, "1", ["b", "a"]), (1, "10", ["c"]), (2, "10", ["d"])]:
        time = NOON.replace(day=day)
        folder = partition(tmp_path / "log", time.date(), version)
        folder.mkdir(parents=True)
        times = [time + timedelta(hours=1 - place) for place in range(len(ids))]
        pq.write_table(log_rows(ids, times, [0.5] * len(ids)), folder / "one.parquet")
        (folder / ".half.parquet").write_bytes(b"not yet")
    return tmp_path / "log"


def test_the_log_is_read_in_order_with_its_versions(log: Path, tmp_path: Path) -> None:
    metadata = collect(str(log), tmp_path / "out", timestamp="at")
    rows = read_dataset(tmp_path / "out")
    assert rows["id"].to_pylist() == ["a", "b", "c", "d"]
    assert rows["model_version"].to_pylist() == ["1", "1", "10", "10"]
    assert rows["at"].equals(rows["event_time"])
    assert metadata["until"] == "2024-01-02T13:00:00+00:00"


def test_the_log_is_cut_to_a_window_and_a_version(log: Path, tmp_path: Path) -> None:
    collect(str(log), tmp_path / "out", "10", until="2024-01-02")
    assert read_dataset(tmp_path / "out")["id"].to_pylist() == ["c"]
    collect(str(log), tmp_path / "out", since="2024-01-01T13:00:00", until="2024-01-02")
    assert read_dataset(tmp_path / "out")["id"].to_pylist() == ["b", "c"]


@pytest.mark.parametrize(
    "settings", [{"model_version": "3"}, {"since": "2024-02-01"}, {"since": "2024-01-02T20:00"}]
)
def test_a_log_without_such_requests_is_told(
    log: Path, tmp_path: Path, settings: dict[str, str]
) -> None:
    there = "it has requests of 2024-01-01 to 2024-01-02 and of model version 1, 10"
    with pytest.raises(InputError, match=f"holds no request.*{there}"):
        collect(str(log), tmp_path / "out", **settings)
