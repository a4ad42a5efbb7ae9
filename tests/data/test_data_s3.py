# SPDX-License-Identifier: Apache-2.0
"""Sources and exports at s3://, against a server that speaks S3 and the real client."""

import base64
import gzip
import hashlib
import json
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_server import Server, crc32c
from test_data_export import dataset
from test_data_storage import CSV, nothing_is_left, parquet

from kfloop.components.contracts.dataset import read_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.data import s3_parts, storage
from kfloop.components.data.checksums import checksum
from kfloop.components.data.export import export
from kfloop.components.data.ingest import ingest


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "tables"


def from_s3(out: Path, uri: str = "s3://bucket/days.csv", **settings: object) -> dict[str, object]:
    return ingest([{"name": "days", "uri": uri}], out, **settings)  # type: ignore[arg-type]


def refused(out: Path, told: str, uri: str = "s3://bucket/days.csv", **settings: object) -> None:
    with pytest.raises(InputError, match=told) as error:
        from_s3(out, uri, **settings)
    assert "\n" not in str(error.value)
    assert nothing_is_left(out)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PIECE_BYTES", 100_000)


def composite(content: bytes, part_bytes: int) -> str:
    parts = [content[at : at + part_bytes] for at in range(0, len(content), part_bytes)]
    digests = b"".join(zlib.crc32(part).to_bytes(4, "big") for part in parts)
    return f"{base64.b64encode(zlib.crc32(digests).to_bytes(4, 'big')).decode()}-{len(parts)}"


def test_an_object_becomes_a_table_and_tells_its_version(s3: Server, out: Path) -> None:
    s3.versioned = True
    stored = s3.put("days.csv", CSV)
    metadata = from_s3(out)
    assert read_dataset(out / "days")["value"].to_pylist() == [1, None, 3]
    assert metadata["sources"][0]["files"] == [
        {
            "uri": "s3://bucket/days.csv",
            "bytes": len(CSV),
            "version_id": stored.version,
            "etag": stored.etag,
            "md5": hashlib.md5(CSV).hexdigest(),
        }
    ]
    json.dumps(metadata, allow_nan=False)
    assert list(out.parent.iterdir()) == [out]


def test_the_fingerprint_is_that_of_the_same_rows_at_a_path(
    s3: Server, out: Path, tmp_path: Path
) -> None:
    s3.put("days.csv", CSV)
    (tmp_path / "elsewhere.csv").write_bytes(CSV)
    local = from_s3(tmp_path / "again", uri=str(tmp_path / "elsewhere.csv"))
    assert from_s3(out)["fingerprint"] == local["fingerprint"]


@pytest.mark.parametrize(
    ("uri", "rows"),
    [
        ("s3://bucket/in", [0, 1, 2, 3]),
        ("s3://bucket/in/*.parquet", [0, 1]),
        ("s3://bucket/in/**/*.parquet", [0, 1, 2, 3]),
        ("s3://${INGEST_BUCKET}/in/?.parquet", [0, 1]),
    ],
)
def test_a_folder_and_a_glob_read_every_object_in_pages(
    s3: Server, out: Path, monkeypatch: pytest.MonkeyPatch, uri: str, rows: list[int]
) -> None:
    monkeypatch.setenv("INGEST_BUCKET", "bucket")
    s3.page = 2
    names = ["in/a.parquet", "in/b.parquet", "in/c d+é/1.parquet", "in/c d+é/2&.parquet"]
    for number, name in enumerate(names):
        s3.put(name, parquet(1, number))
    for name in ("in/", "in/_SUCCESS", "inside.parquet"):
        s3.put(name, b"no data")
    from_s3(out, uri)
    assert read_dataset(out / "days")["x"].to_pylist() == rows


def test_objects_stored_compressed_are_read(s3: Server, out: Path) -> None:
    s3.put("days.csv", gzip.compress(CSV), encoding="gzip")
    from_s3(out)
    assert read_dataset(out / "days")["value"].to_pylist() == [1, None, 3]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("versioned", [True, False])
def test_a_large_object_comes_in_pieces_that_all_name_its_content(
    s3: Server, out: Path, versioned: bool
) -> None:
    s3.versioned = versioned
    stored = s3.put("x.parquet", parquet(100_000))
    from_s3(out, "s3://bucket/x.parquet", workers=4)
    assert read_dataset(out / "days")["x"].to_pylist() == list(range(100_000))
    assert s3.count("GET", "x.parquet") == -(-len(stored.content) // 100_000)
    named = f"versionId={stored.version}" if versioned else "x.parquet"
    assert s3.count("GET", named) == s3.count("GET", "x.parquet")


@pytest.mark.usefixtures("small_pieces")
def test_a_cut_connection_goes_on_from_the_last_byte(s3: Server, out: Path) -> None:
    s3.put("x.parquet", parquet(50_000))
    s3.faults.cuts = [70_000, 5]
    from_s3(out, "s3://bucket/x.parquet", workers=1)
    assert read_dataset(out / "days")["x"].to_pylist() == list(range(50_000))
    ranges = [request.range for request in s3.log if request.range]
    assert ranges[:3] == ["bytes=0-99999", "bytes=70000-99999", "bytes=70005-99999"]


def test_a_download_that_never_ends_well_is_no_output(s3: Server, out: Path) -> None:
    s3.put("days.csv", CSV)
    s3.faults.always_cut = 0
    refused(out, r"s3://bucket/days.csv could not be had in time", retry_seconds=0.3)


def test_a_download_that_says_too_soon_that_it_is_whole_is_no_output(s3: Server, out: Path) -> None:
    s3.put("days.csv", CSV)
    s3.faults.wrong_size = True
    refused(out, "arrived incomplete: 47 of 48 bytes")


@pytest.mark.parametrize(
    ("algorithm", "about"),
    [
        ("md5", {}),
        ("md5", {"part_bytes": 20}),
        ("crc32c", {"kms": True, "checksums": {"crc32c": crc32c(CSV)}}),
        ("crc32", {"kms": True, "part_bytes": 7, "checksums": {"crc32": composite(CSV, 7)}}),
    ],
)
def test_damaged_bytes_are_found_by_every_kind_of_checksum(
    s3: Server, out: Path, algorithm: str, about: dict[str, object]
) -> None:
    s3.put("days.csv", CSV, **about)
    assert algorithm in from_s3(out)["sources"][0]["files"][0]
    s3.faults.corrupt = True
    with pytest.raises(InputError, match=f"damaged: its {algorithm} is .*, the store says"):
        from_s3(out.with_name("again"))


def test_an_etag_that_is_no_checksum_is_not_taken_for_one(s3: Server, out: Path) -> None:
    stored = s3.put("days.csv", CSV, kms=True)
    told = from_s3(out)["sources"][0]["files"][0]
    assert told == {"uri": "s3://bucket/days.csv", "bytes": len(CSV), "etag": stored.etag}


@pytest.mark.parametrize("part_bytes", [0, 1, 7, 1 << 20, (1 << 20) + 1, 5 << 20])
def test_a_checksum_of_parts_is_that_of_their_digests(tmp_path: Path, part_bytes: int) -> None:
    content = bytes(range(256)) * (10 if 0 < part_bytes < 10 else 10_000)
    (tmp_path / "file").write_bytes(content)
    expected = hashlib.md5(content).hexdigest()
    if part_bytes:
        parts = [content[at : at + part_bytes] for at in range(0, len(content), part_bytes)]
        digests = b"".join(hashlib.md5(part).digest() for part in parts)
        expected = f"{hashlib.md5(digests).hexdigest()}-{len(parts)}"
    assert checksum(tmp_path / "file", "md5", part_bytes) == expected


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("content", [b"day,value\n", None])
def test_an_object_overwritten_or_deleted_while_it_is_read_is_no_output(
    s3: Server, out: Path, content: bytes | None
) -> None:
    s3.put("days.csv", CSV)
    s3.put("in/0.parquet", parquet(50_000))

    def change(name: str) -> None:
        if content is None:
            del s3.objects["bucket", name]
        else:
            s3.put(name, content)

    for uri in ("s3://bucket/days.csv", "s3://bucket/in"):
        s3.faults.before_download = change
        refused(out, "overwritten or deleted while it was read", uri, workers=1)


def test_an_object_overwritten_between_listing_and_reading_is_no_output(
    s3: Server, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put("in/days.csv", CSV)
    pin = storage.Store.pin

    def late(*arguments: object) -> object:
        s3.put("in/days.csv", CSV + b"2024-01-04,4\n")
        return pin(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(storage.Store, "pin", late)
    refused(out, "in/days.csv was overwritten or deleted while it was read", "s3://bucket/in")


def test_a_bucket_with_versions_gives_the_one_that_was_found(s3: Server, out: Path) -> None:
    s3.versioned = True
    first = s3.put("days.csv", CSV)
    s3.faults.before_download = lambda name: s3.put(name, b"day,value\n") and None
    metadata = from_s3(out)
    assert metadata["tables"] == {"days": 3}
    assert metadata["sources"][0]["files"][0]["version_id"] == first.version


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_storm_that_passes_is_waited_out(s3: Server, out: Path, status: int) -> None:
    s3.put("days.csv", CSV)
    s3.faults.statuses = [status, status]
    assert from_s3(out)["tables"] == {"days": 3}


def test_a_storm_that_stays_is_one_sentence(s3: Server, out: Path) -> None:
    s3.put("in/days.csv", CSV)
    s3.faults.always = 503
    refused(out, "went on failing .*503.* again later", retry_seconds=0.3)
    refused(out, "went on failing .*SlowDown.* again later", "s3://bucket/in/", retry_seconds=0.3)


@pytest.mark.parametrize(
    ("denied", "uri"),
    [("HEAD", "days.csv"), ("GET days.csv", "days.csv"), ("GET ", "in/"), ("HEAD", "in/")],
)
def test_a_closed_place_is_one_sentence(s3: Server, out: Path, denied: str, uri: str) -> None:
    s3.put("days.csv", CSV)
    s3.put("in/days.csv", CSV)
    s3.denied = denied
    refused(out, "not open to these credentials", f"s3://bucket/{uri}")


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "credentials and there are none"),
        ({"AWS_SECRET_ACCESS_KEY": ""}, "half of them is missing .*AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": "unknown"}, "credentials are refused .*InvalidAccessKeyId"),
        ({"AWS_PROFILE": "nobody"}, r"profile \(nobody\) could not be found"),
        ({"AWS_ENDPOINT_URL": "minio:9000"}, "Invalid endpoint: minio:9000; check AWS_ENDPOINT"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "went on failing .*Could not connect"),
        ({"AWS_REGION": "no region"}, "settings for S3 are wrong|not match"),
        ({"AWS_CA_BUNDLE": "/nowhere/ca.pem"}, "not trusted .*No such file.*set AWS_CA_BUNDLE"),
    ],
)
def test_wrong_settings_are_one_sentence(
    s3: Server, out: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], told: str
) -> None:
    s3.put("days.csv", CSV)
    for name, value in variables.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    if "AWS_CA_BUNDLE" in variables:
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url.replace("http", "https"))
    refused(out, told, retry_seconds=0.2)


def test_another_region_is_found_or_named(
    s3: Server, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put("days.csv", CSV)
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    assert from_s3(out)["tables"] == {"days": 3}
    s3.tells_region = False
    refused(out.parent.with_name("other") / "tables", "not in the region us-west-2 .*AWS_REGION")


def test_a_pod_reads_as_the_role_of_its_service_account(
    s3: Server, out: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    s3.put("days.csv", CSV)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "token").write_text("of the pod")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/trips-reader")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    assert from_s3(out)["tables"] == {"days": 3}
    (tmp_path / "token").write_text("of nobody")
    refused(out.parent.with_name("other") / "tables", "the AWS credentials are refused")


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("s3://bucket/nothing", "no data file is"),
        ("s3://bucket/*.orc", "no data file is"),
        ("s3://nowhere/a.csv", "in a bucket that does not exist"),
        ("s3://BUCKET NAME/a.csv", "is no place at S3"),
        ("s3:///a.csv", "names no bucket; write s3://bucket"),
    ],
)
@pytest.mark.usefixtures("s3")
def test_a_bad_place_is_one_sentence(out: Path, uri: str, told: str) -> None:
    refused(out, told, uri)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("kms", [False, True])
def test_a_download_that_was_killed_goes_on_where_it_was(
    s3: Server, out: Path, tmp_path: Path, kms: bool
) -> None:
    s3.put("x.parquet", parquet(100_000), part_bytes=300_000, kms=kms)
    uri = "s3://bucket/x.parquet"
    settings = {"workers": 1, "download_directory": str(tmp_path / "downloads")}

    # The third piece fails for good, as when the process is killed there.
    def later(name: str) -> None:
        s3.faults.before_download = later
        if s3.count("GET", "x.parquet") == 3:
            s3.denied = "GET"

    s3.faults.before_download = later
    with pytest.raises(InputError):
        from_s3(out, uri, **settings)
    assert nothing_is_left(out)
    s3.denied, s3.faults.before_download = "", None
    s3.log.clear()
    from_s3(out, uri, **settings)
    assert read_dataset(out / "days")["x"].to_pylist() == list(range(100_000))
    assert next(request.range for request in s3.log if request.range) == "bytes=300000-399999"

    # What is there whole is not fetched again, if its checksum can show that.
    s3.log.clear()
    from_s3(out, uri, **settings)
    assert bool(s3.count("GET", "x.parquet")) == kms
    s3.put("x.parquet", parquet(10))
    assert from_s3(out, uri, **settings)["tables"] == {"days": 10}


def test_an_export_replaces_partitions_after_the_new_ones_are_there(
    s3: Server, tmp_path: Path
) -> None:
    uri, receipt = "s3://bucket/lake", tmp_path / "receipt"
    s3.put("lake/date=2024-01-020/part-00000-ff.parquet", b"a longer name")
    first = export(dataset(tmp_path, range(3)), uri, receipt, timestamp="at")
    assert (first["files"], first["replaced"]) == (3, 0)
    before = {name: list(versions) for name, versions in s3.objects.items()}
    again = export(dataset(tmp_path, range(3)), uri, receipt, timestamp="at")
    assert s3.objects == before
    assert (again["files"], again["replaced"]) == (3, 0)

    s3.log.clear()
    export(dataset(tmp_path, range(2, 4), 7.5), uri, receipt, timestamp="at")
    methods = [request.method for request in s3.log if request.method in ("PUT", "DELETE")]
    assert methods == ["PUT", "PUT", "DELETE"]
    folders = [name.split("/")[1] for name in s3.names()]
    assert folders == [f"date=2024-01-{day}" for day in ("01", "02", "020", "03", "04")]
    written = json.loads(receipt.read_text())["partitions"][0]["files"][0]
    content = s3.objects["bucket", written["uri"].removeprefix("s3://bucket/")][-1].content
    assert (written["bytes"], written["crc32c"]) == (len(content), crc32c(content))
    assert pq.read_table(pa.BufferReader(content))["prediction"].to_pylist() == [9.5] * 3


def test_an_export_outlives_a_storm_and_leaves_what_is_not_its_own(
    s3: Server, tmp_path: Path
) -> None:
    uri, receipt = "s3://bucket/lake", tmp_path / "receipt"
    s3.faults.statuses = [503, 500, 503]
    export(dataset(tmp_path, range(2)), uri, receipt, timestamp="at")
    assert len(s3.names()) == 2
    s3.put("lake/date=2024-01-01/_SUCCESS", b"")
    with pytest.raises(InputError, match="_SUCCESS, which is no part of an export"):
        export(dataset(tmp_path, range(1)), uri, receipt, timestamp="at")
    assert len(s3.names()) == 3


@pytest.mark.parametrize("heeds", [True, False])
def test_an_object_overwritten_meanwhile_is_not_deleted(
    s3: Server, tmp_path: Path, heeds: bool
) -> None:
    s3.heeds_conditions = heeds
    s3.put("lake/part-00000-0000.parquet", b"old")
    store = storage.open_store("s3")
    (found,) = store.list_folder("s3://bucket/lake/")
    s3.put("lake/part-00000-0000.parquet", b"newer")
    with pytest.raises(InputError, match="overwritten by somebody else meanwhile, so it was left"):
        store.delete(found)
    assert s3.names() == ["lake/part-00000-0000.parquet"]
    (tmp_path / "other").write_bytes(b"other")
    with pytest.raises(InputError, match="written by somebody else meanwhile"):
        store.upload(tmp_path / "other", found.uri)
    (tmp_path / "other").write_bytes(b"newer")
    assert store.upload(tmp_path / "other", found.uri).size == 5
    s3.put("lake/part-00000-0000.parquet", b"newer", kms=True)
    assert store.upload(tmp_path / "other", found.uri).algorithm == ""


@pytest.fixture
def large(s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that goes in three parts."""
    for limit in ("LONGEST_BYTES", "PART_BYTES"):
        monkeypatch.setattr(s3_parts, limit, 100_000)
    s3.smallest_part = 100_000
    (tmp_path / "large").write_bytes(bytes(range(256)) * 1000)
    return tmp_path / "large"


@pytest.mark.parametrize("statuses", [[], [503], [0, 500, 503], [0, 0, 0, 0, 500]])
def test_a_large_file_is_written_in_parts_that_are_checked(
    s3: Server, large: Path, statuses: list[int]
) -> None:
    s3.faults.statuses = statuses
    uri = "s3://bucket/lake/part.parquet"
    stored = storage.open_store("s3").upload(large, uri)
    kept = s3.objects["bucket", "lake/part.parquet"][-1]
    assert kept.content == large.read_bytes()
    assert (stored.algorithm, stored.checksum) == ("crc32c", kept.composite)
    assert (stored.part_bytes, kept.composite[-2:]) == (100_000, "-3")
    # Once more, it is the one that is there.
    assert storage.open_store("s3").upload(large, uri) == stored
    large.write_bytes(large.read_bytes()[::-1])
    with pytest.raises(InputError, match="written by somebody else meanwhile"):
        storage.open_store("s3").upload(large, uri)
    assert (len(s3.objects), s3.uploads) == (1, {})


def test_an_upload_whose_last_answer_was_lost_is_found_complete(s3: Server, large: Path) -> None:
    s3.lost_answers = 1
    assert storage.open_store("s3").upload(large, "s3://bucket/lake/a").size == 256_000
    assert (s3.names(), s3.uploads) == (["lake/a"], {})


def test_an_upload_that_fails_leaves_no_parts(s3: Server, large: Path) -> None:
    s3.denied = "PUT lake"
    with pytest.raises(InputError, match="not open to these credentials"):
        storage.open_store("s3").upload(large, "s3://bucket/lake/a")
    assert s3.count("POST", "uploads") == 1
    assert (s3.names(), s3.uploads) == ([], {})
