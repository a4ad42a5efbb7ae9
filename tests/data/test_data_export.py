# SPDX-License-Identifier: Apache-2.0
"""Exports to a path and to gs://: partitions are replaced whole, and nothing else is."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from storage_server import Server

from kfloop.components.contracts.dataset import write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.data import export as export_module
from kfloop.components.data.export import export

START = datetime(2024, 1, 1, tzinfo=UTC)


def dataset(tmp_path: Path, days: range, value: float = 0.5) -> Path:
    rows = [(day, number) for day in days for number in range(3)]
    table = pa.table(
        {
            "at": pa.array(
                [START + timedelta(days=day, hours=number) for day, number in rows],
                pa.timestamp("us", tz="UTC"),
            ),
            "carrier": [["AA", "B/6 é", None][number] for _, number in rows],
            "prediction": [value + day for day, _ in rows],
        }
    )
    write_dataset(table, tmp_path / "dataset")
    return tmp_path / "dataset"


def read(place: Path) -> list[tuple[Any, ...]]:
    scan = f"read_parquet('{place}/**/*.parquet', hive_partitioning = true)"
    return duckdb.sql(f"SELECT date, prediction FROM {scan} ORDER BY ALL").fetchall()


def files(place: Path) -> dict[str, int]:
    found = (file for file in place.rglob("*") if file.is_file())
    return {file.relative_to(place).as_posix(): file.stat().st_mtime_ns for file in found}


def test_days_become_partitions_that_a_second_run_replaces(tmp_path: Path) -> None:
    place = tmp_path / "lake" / "predictions"
    told = export(dataset(tmp_path, range(3)), str(place), tmp_path / "receipt", timestamp="at")
    assert told["partitions"] == ["date=2024-01-01", "date=2024-01-02", "date=2024-01-03"]
    assert (told["rows"], told["files"], told["replaced"]) == (9, 3, 0)
    before = files(place)

    (place / "notes.txt").write_text("mine")
    told = export(
        dataset(tmp_path, range(2, 4), 7.5), str(place), tmp_path / "receipt", timestamp="at"
    )
    assert told["replaced"] == 1
    after = files(place)
    assert {name for name, at in after.items() if before.get(name) == at} == {
        "date=2024-01-01/part-00000.parquet",
        "date=2024-01-02/part-00000.parquet",
    }
    assert (place / "notes.txt").read_text() == "mine"
    assert [value for _, value in read(place)] == [0.5] * 3 + [1.5] * 3 + [9.5] * 3 + [10.5] * 3
    receipt = json.loads((tmp_path / "receipt").read_text())
    assert [each["rows"] for each in receipt["partitions"]] == [3, 3]
    assert receipt["partitions"][0]["replaced"] == [f"{place}/date=2024-01-03/part-00000.parquet"]
    assert sorted(entry.name for entry in place.parent.iterdir()) == ["predictions"]


def test_the_same_rows_again_change_no_file(tmp_path: Path) -> None:
    source = dataset(tmp_path, range(2))
    for place in (tmp_path / "days", tmp_path / "carriers"):
        keys = ["carrier"] if place.name == "carriers" else []
        export(source, str(place), tmp_path / "receipt", keys, "at")
        before = files(place)
        told = export(source, str(place), tmp_path / "receipt", keys, "at")
        assert files(place) == before
        assert told["replaced"] == 0


def test_columns_become_folders_that_hive_readers_understand(tmp_path: Path) -> None:
    place = tmp_path / "lake"
    export(dataset(tmp_path, range(2)), str(place), tmp_path / "receipt", ["carrier"])
    folders = sorted(entry.name for entry in place.iterdir())
    assert folders == [
        "carrier=AA",
        "carrier=B%2F6%20%C3%A9",
        "carrier=__HIVE_DEFAULT_PARTITION__",
    ]
    scan = f"read_parquet('{place}/*/*.parquet', hive_partitioning = true)"
    found = duckdb.sql(f"SELECT carrier, count(*) FROM {scan} GROUP BY 1 ORDER BY 1").fetchall()
    assert found == [("AA", 2), ("B/6 é", 2), (None, 2)]


def test_a_folder_without_partitions_is_replaced_only_if_it_is_an_export(tmp_path: Path) -> None:
    source, place = dataset(tmp_path, range(1)), tmp_path / "lake"
    export(source, str(place), tmp_path / "receipt")
    export(dataset(tmp_path, range(2)), str(place), tmp_path / "receipt")
    assert list(files(place)) == ["part-00000.parquet"]
    (place / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"lake holds notes\.txt, which is no part of an export"):
        export(source, str(place), tmp_path / "receipt")
    assert len(files(place)) == 2


def test_large_partitions_have_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kfloop.components.contracts.dataset.ROWS_PER_FILE", 1)
    monkeypatch.setattr("kfloop.components.data.duck.BATCH_ROWS", 1)
    told = export(
        dataset(tmp_path, range(2)), str(tmp_path / "lake"), tmp_path / "r", timestamp="at"
    )
    assert told["files"] == 6
    assert len(read(tmp_path / "lake")) == 6


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"partition_by": ["region"]}, "'region' is missing"),
        ({"timestamp": "when"}, "'when' is missing"),
        ({"timestamp": "carrier"}, "holds VARCHAR"),
        ({"partition_by": ["at", "carrier", "prediction"]}, "leave one for the rows"),
        ({"partition_by": ["at"]}, "more than 2 partitions"),
        ({"uri": "az://bucket/a"}, "only local and mounted"),
        ({"uri": ""}, "is empty"),
        ({"uri": "${NOWHERE_SET}/a"}, "NOWHERE_SET, which is not set"),
    ],
)
def test_a_bad_export_is_one_sentence_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], told: str
) -> None:
    monkeypatch.setattr(export_module, "MOST_PARTITIONS", 2)
    settings = {"uri": str(tmp_path / "lake")} | settings
    with pytest.raises(InputError, match=told) as error:
        export(dataset(tmp_path, range(3)), receipt=tmp_path / "receipt", **settings)
    assert "\n" not in str(error.value)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["dataset"]


def test_no_rows_are_no_export(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no rows to export"):
        export(dataset(tmp_path, range(0)), str(tmp_path / "lake"), tmp_path / "r", timestamp="at")


def test_at_a_store_new_objects_come_before_the_old_ones_go(store: Server, tmp_path: Path) -> None:
    uri = "gs://bucket/lake"
    store.put("lake/date=2024-01-09/part-00000-ff.parquet", b"another day")
    store.put("lake/date=2024-01-020/part-00000-ff.parquet", b"a longer name")
    first = export(dataset(tmp_path, range(3)), uri, tmp_path / "receipt", timestamp="at")
    before = dict(store.objects)
    assert (first["files"], first["replaced"]) == (3, 0)

    store.log.clear()
    again = export(dataset(tmp_path, range(3)), uri, tmp_path / "receipt", timestamp="at")
    assert store.objects == before
    assert (again["files"], again["replaced"]) == (3, 0)

    store.log.clear()
    export(dataset(tmp_path, range(2, 4), 7.5), uri, tmp_path / "receipt", timestamp="at")
    methods = [request.method for request in store.log if request.method in ("POST", "DELETE")]
    assert methods == ["POST", "POST", "DELETE"]
    deleted = next(request for request in store.log if request.method == "DELETE")
    assert "ifGenerationMatch=" in deleted.path
    folders = [name.split("/")[1] for name in store.names()]
    assert folders == [f"date=2024-01-{day}" for day in ("01", "02", "020", "03", "04", "09")]
    receipt = json.loads((tmp_path / "receipt").read_text())
    kept = store.objects["bucket", store.names()[3]]
    assert receipt["partitions"][0]["files"][0]["generation"] == str(kept.generation)
    for (_, name), stored in store.objects.items():
        target = tmp_path / "copy" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(stored.content)
    one = tmp_path / "copy" / store.names()[3]
    assert duckdb.sql(f"SELECT max(prediction) FROM '{one}'").fetchone() == (9.5,)


@pytest.mark.parametrize("status", [429, 503])
def test_a_storm_is_waited_out_and_doubles_nothing(
    store: Server, tmp_path: Path, status: int
) -> None:
    store.faults.statuses = [status] * 3
    export(dataset(tmp_path, range(3)), "gs://bucket/lake", tmp_path / "receipt", timestamp="at")
    assert len(store.names()) == 3


def test_a_run_that_died_before_it_deleted_is_put_right_by_the_next(
    store: Server, tmp_path: Path
) -> None:
    uri = "gs://bucket/lake"
    export(dataset(tmp_path, range(1)), uri, tmp_path / "receipt", timestamp="at")
    store.put("lake/date=2024-01-01/part-00000-0000.parquet", b"of the run that died")
    told = export(dataset(tmp_path, range(1)), uri, tmp_path / "receipt", timestamp="at")
    assert told["replaced"] == 1
    assert len(store.names()) == 1


def test_somebody_elses_object_is_never_deleted(store: Server, tmp_path: Path) -> None:
    store.put("lake/date=2024-01-01/_SUCCESS", b"")
    with pytest.raises(InputError, match="_SUCCESS, which is no part of an export"):
        export(dataset(tmp_path, range(1)), "gs://bucket/lake", tmp_path / "r", timestamp="at")
    assert store.names() == ["lake/date=2024-01-01/_SUCCESS"]


def test_an_object_overwritten_meanwhile_is_left_alone(
    store: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "lake/date=2024-01-01/part-00000-0000.parquet"
    store.put(name, b"old")
    put = store.put

    def race(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(store, "put", put)
        put(name, b"newer")
        return put(*arguments, **named)

    monkeypatch.setattr(store, "put", race)
    with pytest.raises(InputError, match="overwritten by somebody else meanwhile, so it was left"):
        export(dataset(tmp_path, range(1)), "gs://bucket/lake", tmp_path / "r", timestamp="at")
    assert store.objects["bucket", name].content == b"newer"


def test_an_upload_larger_than_one_request_arrives_whole(store: Server, tmp_path: Path) -> None:
    from kfloop.components.data.checksums import checksum
    from kfloop.components.data.storage import open_store

    file = tmp_path / "large"
    file.write_bytes(bytes(range(256)) * 40_000)
    stored = open_store("gs", retry_seconds=5).upload(file, "gs://bucket/large")
    assert stored.checksum == checksum(file)
    assert store.objects["bucket", "large"].content == file.read_bytes()
    (tmp_path / "other").write_bytes(b"other")
    with pytest.raises(InputError, match="written by somebody else meanwhile"):
        open_store("gs").upload(tmp_path / "other", "gs://bucket/large")
