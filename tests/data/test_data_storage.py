# SPDX-License-Identifier: Apache-2.0
"""Sources at gs://, against a real server and the real client."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from storage_server import Server

from kfloop.components.contracts.dataset import read_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.data import storage
from kfloop.components.data.ingest import ingest

CSV = b"day,value\n2024-01-01,1\n2024-01-02,\n2024-01-03,3\n"


def parquet(rows: int, start: int = 0) -> bytes:
    sink = pa.BufferOutputStream()
    # Not compressed, so that an object has several pieces.
    table = pa.table({"x": pa.array(range(start, start + rows), pa.int64())})
    pq.write_table(table, sink, compression="none", use_dictionary=False)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "tables"


def from_store(
    out: Path, uri: str = "gs://bucket/days.csv", **settings: object
) -> dict[str, object]:
    return ingest([{"name": "days", "uri": uri}], out, **settings)  # type: ignore[arg-type]


def nothing_is_left(out: Path) -> bool:
    return not out.parent.exists() or not list(out.parent.iterdir())


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PIECE_BYTES", 100_000)


def test_an_object_becomes_a_table_and_tells_its_generation(store: Server, out: Path) -> None:
    stored = store.put("days.csv", CSV)
    metadata = from_store(out)
    assert read_dataset(out / "days")["value"].to_pylist() == [1, None, 3]
    assert metadata["sources"][0]["files"] == [
        {
            "uri": "gs://bucket/days.csv",
            "bytes": len(CSV),
            "generation": str(stored.generation),
            "etag": f"tag-{stored.generation}",
            "crc32c": stored.crc32c,
        }
    ]
    json.dumps(metadata, allow_nan=False)
    assert list(out.parent.iterdir()) == [out]


def test_the_fingerprint_is_of_the_content_and_of_nothing_else(
    store: Server, out: Path, tmp_path: Path
) -> None:
    store.put("days.csv", CSV)
    first = from_store(out)
    (tmp_path / "elsewhere.csv").write_bytes(CSV)
    local = from_store(tmp_path / "again", uri=str(tmp_path / "elsewhere.csv"))
    store.put("other/days.csv", CSV)
    moved = from_store(out, uri="gs://bucket/other/days.csv")
    assert first["fingerprint"] == local["fingerprint"] == moved["fingerprint"]

    store.put("days.csv", CSV.replace(b"3\n", b"4\n"))
    changed = from_store(out)
    assert changed["fingerprint"] != first["fingerprint"]
    assert changed["sources"][0]["digest"] != first["sources"][0]["digest"]


@pytest.mark.parametrize(
    ("uri", "rows"),
    [
        ("gs://bucket/in", [0, 1, 2, 3]),
        ("gs://bucket/in/", [0, 1, 2, 3]),
        ("gs://bucket/in/*.parquet", [0, 1]),
        ("gs://bucket/in/**/*.parquet", [0, 1, 2, 3]),
        ("gs://bucket/in/[!b]*.parquet", [0]),
        ("gs://${INGEST_BUCKET}/in/?.parquet", [0, 1]),
    ],
)
def test_a_folder_and_a_glob_read_every_object_in_pages(
    store: Server, out: Path, monkeypatch: pytest.MonkeyPatch, uri: str, rows: list[int]
) -> None:
    monkeypatch.setenv("INGEST_BUCKET", "bucket")
    store.page = 2
    names = ["in/a.parquet", "in/b.parquet", "in/c/1.parquet", "in/c/2.parquet"]
    for number, name in enumerate(names):
        store.put(name, parquet(1, number))
    store.put("in/", b"")
    store.put("in/_SUCCESS", b"")
    store.put("in/_half.parquet", b"PAR1")
    store.put("inside.parquet", b"not this one")
    from_store(out, uri)
    assert read_dataset(out / "days")["x"].to_pylist() == rows


def test_hive_folders_are_columns_as_on_a_disk(store: Server, out: Path, tmp_path: Path) -> None:
    for day in ("2024-01-01", "2024-01-02"):
        store.put(f"run=7/table/day={day}/a.csv", b"x\n1\n")
        file = tmp_path / f"run=7/table/day={day}/a.csv"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"x\n1\n")
    prints = set()
    for uri in ("gs://bucket/run=7/table", "gs://bucket/run=7/table/*/*.csv"):
        prints.add(from_store(out, uri)["fingerprint"])
    for uri in ("run=7/table", "run=7/table/*/*.csv"):
        prints.add(from_store(out, str(tmp_path / uri))["fingerprint"])
    assert read_dataset(out / "days").column_names == ["x", "day"]
    assert len(prints) == 1


def test_objects_stored_compressed_are_read(store: Server, out: Path) -> None:
    store.put("days.csv", gzip.compress(CSV), encoding="gzip")
    from_store(out)
    assert read_dataset(out / "days")["value"].to_pylist() == [1, None, 3]


def test_names_that_are_no_paths_get_files_of_their_own(store: Server, out: Path) -> None:
    for number, name in enumerate(["in//a.parquet", "in/../a.parquet", "in/%/é ü#?.parquet"]):
        store.put(name, parquet(1, number))
    from_store(out, "gs://bucket/in")
    assert sorted(read_dataset(out / "days")["x"].to_pylist()) == [0, 1, 2]


@pytest.mark.usefixtures("small_pieces")
def test_a_large_object_comes_in_pieces_that_all_name_its_generation(
    store: Server, out: Path
) -> None:
    stored = store.put("x.parquet", parquet(100_000))
    from_store(out, "gs://bucket/x.parquet", workers=4)
    assert read_dataset(out / "days")["x"].to_pylist() == list(range(100_000))
    downloads = [request for request in store.log if request.path.startswith("/download")]
    assert len(downloads) == -(-len(stored.content) // 100_000)
    assert all(f"generation={stored.generation}" in request.path for request in downloads)


@pytest.mark.usefixtures("small_pieces")
def test_a_cut_connection_goes_on_from_the_last_byte(store: Server, out: Path) -> None:
    store.put("x.parquet", parquet(50_000))
    store.faults.cuts = [70_000, 5, 20_000]
    from_store(out, "gs://bucket/x.parquet", workers=1)
    assert read_dataset(out / "days")["x"].to_pylist() == list(range(50_000))
    ranges = [request.range for request in store.log if request.range]
    assert ranges[:4] == [
        "bytes=0-99999",
        "bytes=70000-99999",
        "bytes=70005-99999",
        "bytes=90005-99999",
    ]


def test_a_download_that_never_ends_well_is_no_output(store: Server, out: Path) -> None:
    store.put("days.csv", CSV)
    store.faults.always_cut = 0
    with pytest.raises(InputError, match=r"gs://bucket/days.csv could not be had in time") as error:
        from_store(out, retry_seconds=2)
    assert "\n" not in str(error.value)
    assert nothing_is_left(out)


def test_a_download_that_says_too_soon_that_it_is_whole_is_no_output(
    store: Server, out: Path
) -> None:
    store.put("days.csv", CSV)
    store.faults.wrong_size = True
    with pytest.raises(InputError, match="arrived incomplete: 47 of 48 bytes"):
        from_store(out)
    assert nothing_is_left(out)


def test_damaged_bytes_are_no_output(store: Server, out: Path) -> None:
    store.put("days.csv", CSV)
    store.faults.corrupt = True
    with pytest.raises(InputError, match=r"damaged: its crc32c is .*, the store says") as error:
        from_store(out)
    assert "\n" not in str(error.value)
    assert nothing_is_left(out)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("content", [b"day,value\n", None])
def test_an_object_overwritten_or_deleted_after_it_was_listed_is_no_output(
    store: Server, out: Path, content: bytes | None
) -> None:
    store.put("days.csv", CSV)

    def change(name: str) -> None:
        if content is None:
            del store.objects["bucket", name]
        else:
            store.put(name, content)

    store.faults.before_download = change
    with pytest.raises(InputError, match="overwritten or deleted while it was read"):
        from_store(out)
    assert nothing_is_left(out)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_storm_that_passes_is_waited_out(store: Server, out: Path, status: int) -> None:
    store.put("days.csv", CSV)
    store.faults.statuses = [status, status]
    assert from_store(out)["tables"] == {"days": 3}
    assert store.count("GET", "/o/days.csv") >= 3


@pytest.mark.parametrize("status", [429, 503])
def test_a_storm_that_stays_is_one_sentence(store: Server, out: Path, status: int) -> None:
    store.put("days.csv", CSV)
    store.faults.always = status
    with pytest.raises(InputError, match=f"went on failing .*{status}.* again later") as error:
        from_store(out, retry_seconds=1.5)
    assert "\n" not in str(error.value)
    assert nothing_is_left(out)


def test_a_closed_bucket_is_one_sentence(store: Server, out: Path) -> None:
    store.faults.always = 403
    with pytest.raises(InputError, match="not open to these credentials"):
        from_store(out)


def test_missing_credentials_are_one_sentence(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(out))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(out))
    # Not asked whether this is a machine at Google: there is no network.
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    with pytest.raises(InputError, match="needs Google credentials and there are none") as error:
        from_store(out)
    assert "\n" not in str(error.value)
    assert nothing_is_left(out)


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("gs://bucket/nothing", "no data file is"),
        ("gs://bucket/*.orc", "no data file is"),
        ("gs://nowhere/a.csv", "no data file is|does not exist"),
        ("gs:///a.csv", "names no bucket"),
        ("gs://${NOWHERE_SET}/a.csv", "NOWHERE_SET, which is not set"),
        ("az://bucket/a.csv", "az://, which is neither"),
    ],
)
def test_a_bad_place_is_one_sentence(store: Server, out: Path, uri: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as error:
        from_store(out, uri)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("small_pieces")
def test_a_download_that_was_killed_goes_on_where_it_was(
    store: Server, out: Path, tmp_path: Path
) -> None:
    store.put("x.parquet", parquet(100_000))
    downloads = str(tmp_path / "downloads")
    settings = {"workers": 1, "download_directory": downloads}

    # The third piece fails for good, as when the process is killed there.
    answered = []

    def later(name: str) -> None:
        answered.append(name)
        store.faults.before_download = later
        if len(answered) == 3:
            store.faults.always = 403

    store.faults.before_download = later
    with pytest.raises(InputError):
        from_store(out, "gs://bucket/x.parquet", **settings)
    assert nothing_is_left(out)
    store.faults.always, store.faults.before_download = 0, None
    store.log.clear()
    from_store(out, "gs://bucket/x.parquet", **settings)
    assert read_dataset(out / "days")["x"].to_pylist() == list(range(100_000))
    assert next(request.range for request in store.log if request.range) == "bytes=300000-399999"

    # What is there whole is not fetched again, unless it is another generation.
    store.log.clear()
    from_store(out, "gs://bucket/x.parquet", **settings)
    assert store.count("GET", "/download") == 0
    store.put("x.parquet", parquet(10))
    assert from_store(out, "gs://bucket/x.parquet", **settings)["tables"] == {"days": 10}
