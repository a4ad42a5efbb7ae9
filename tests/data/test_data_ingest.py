# SPDX-License-Identifier: Apache-2.0
import gzip
import hashlib
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kfloop.components.contracts.dataset import read_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.data.ingest import ingest

CSV = "day,value\n2024-01-01,1\n2024-01-02,\n2024-01-03,3\n"


def source(tmp_path: Path, name: str, content: str | bytes) -> str:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(file)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("days.csv", CSV),
        ("days.csv.gz", gzip.compress(CSV.encode())),
        (
            "days.jsonl",
            '{"day": "2024-01-01", "value": 1}\n{"day": "2024-01-02", "value": null}\n'
            '{"day": "2024-01-03", "value": 3}\n',
        ),
    ],
)
def test_text_formats_give_the_same_table(tmp_path: Path, name: str, content: str | bytes) -> None:
    uri = source(tmp_path, name, content)
    metadata = ingest([{"name": "days", "uri": uri}], tmp_path / "tables")
    table = read_dataset(tmp_path / "tables" / "days")
    assert table["value"].to_pylist() == [1, None, 3]
    assert table.schema.field("day").type == pa.date32()
    told = metadata["sources"][0]
    assert told["rows"] == 3
    assert told["bytes"] == Path(uri).stat().st_size
    digest = hashlib.sha256(Path(uri).read_bytes()).hexdigest()
    assert told["files"] == [{"uri": uri, "bytes": told["bytes"], "sha256": digest}]
    json.dumps(metadata, allow_nan=False)


def test_a_directory_and_a_glob_read_every_file_and_skip_bookkeeping(tmp_path: Path) -> None:
    for number in (1, 2):
        file = tmp_path / "in" / f"{number}.parquet"
        file.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"x": [number]}), file)
    source(tmp_path, "in/_SUCCESS.parquet", "")
    for uri in (str(tmp_path / "in"), str(tmp_path / "in" / "*.parquet")):
        ingest([{"name": "numbers", "uri": uri}], tmp_path / "tables")
        assert read_dataset(tmp_path / "tables" / "numbers")["x"].to_pylist() == [1, 2]


def test_files_whose_columns_differ_are_joined_by_name(tmp_path: Path) -> None:
    source(tmp_path, "in/1.csv", "a,b\n1,2\n")
    source(tmp_path, "in/2.csv", "b,c\n3,4\n")
    ingest([{"name": "t", "uri": str(tmp_path / "in")}], tmp_path / "tables")
    rows = read_dataset(tmp_path / "tables" / "t").to_pylist()
    assert rows == [{"a": 1, "b": 2, "c": None}, {"a": None, "b": 3, "c": 4}]


def test_the_window_applies_only_to_sources_with_a_timestamp(tmp_path: Path) -> None:
    uri = source(tmp_path, "days.csv", CSV)
    metadata = ingest(
        [{"name": "cut", "uri": uri, "timestamp": "day"}, {"name": "whole", "uri": uri}],
        tmp_path / "tables",
        since="2024-01-02",
        until="2024-01-03",
    )
    assert metadata["tables"] == {"cut": 1, "whole": 3}


def test_nanoseconds_become_microseconds(tmp_path: Path) -> None:
    column = pa.array([1_700_000_000_123_456_789], pa.timestamp("ns", tz="UTC"))
    pq.write_table(pa.table({"t": column}), tmp_path / "t.parquet")
    ingest([{"name": "t", "uri": str(tmp_path / "t.parquet")}], tmp_path / "tables")
    assert read_dataset(tmp_path / "tables" / "t").schema.field("t").type == pa.timestamp(
        "us", tz="UTC"
    )


def test_the_same_input_has_the_same_fingerprint(tmp_path: Path) -> None:
    entry = {"name": "days", "uri": source(tmp_path, "days.csv", CSV)}
    first = ingest([entry], tmp_path / "tables")
    assert ingest([entry], tmp_path / "tables") == first


def test_the_fingerprint_depends_on_no_path_or_time(tmp_path: Path) -> None:
    prints = set()
    for place, seconds in (("a", 0), ("run=7/b", 1_600_000_000)):
        uri = source(tmp_path, f"{place}/days.csv", CSV)
        os.utime(uri, (seconds, seconds))
        out = tmp_path / place / "tables"
        prints.add(ingest([{"name": "days", "uri": uri}], out)["fingerprint"])
    assert len(prints) == 1
    changed = source(tmp_path, "a/days.csv", CSV.replace("3\n", "4\n"))
    again = ingest([{"name": "days", "uri": changed}], tmp_path / "tables")
    assert again["fingerprint"] not in prints


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"uri": "az://bucket/days.parquet"}, "az://, which is neither"),
        ({"uri": "sqlite:///days.db"}, "give it a query"),
        ({"uri": "{days}", "query": "SELECT 1", "format": "csv"}, "leave out its format"),
        ({"uri": "nowhere.csv"}, "no data file is"),
        ({"uri": ""}, "no uri"),
        ({"uri": "{days}", "fromat": "csv"}, "'fromat'"),
        ({"uri": "{days}", "format": "excel"}, "'excel'"),
        ({"uri": "{days}", "format": "parquet"}, "cannot be read as parquet"),
        ({"uri": "{days}", "name": "a b"}, "'a b'"),
        ({"uri": "{days}", "timestamp": "when"}, "'when' is missing"),
        ({"uri": "{days}", "timestamp": "value"}, "holds BIGINT"),
        ({"uri": "{unknown}"}, "days.txt"),
        ({"uri": "{header}"}, "has no rows"),
    ],
)
def test_a_bad_source_gets_one_sentence(tmp_path: Path, entry: dict[str, str], told: str) -> None:
    places = {
        "days": source(tmp_path, "days.csv", CSV),
        "unknown": source(tmp_path, "days.txt", CSV),
        "header": source(tmp_path, "header.csv", "day,value\n"),
    }
    entry = {"name": "days"} | entry | {"uri": entry["uri"].format(**places)}
    with pytest.raises(InputError, match=told) as error:
        ingest([entry], tmp_path / "tables", until="2024-02-01")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "tables").exists()


def test_two_sources_of_one_name_are_refused(tmp_path: Path) -> None:
    entry = {"name": "days", "uri": source(tmp_path, "days.csv", CSV)}
    with pytest.raises(InputError, match="given twice"):
        ingest([entry, entry], tmp_path / "tables")
