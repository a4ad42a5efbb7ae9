# SPDX-License-Identifier: Apache-2.0
import gzip
import hashlib
import json
import os
from datetime import date
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
        (
            "days.json",
            '[{"day": "2024-01-01", "value": 1}, {"day": "2024-01-02", "value": null},\n'
            ' {"day": "2024-01-03", "value": 3}]',
        ),
        ("days.tsv", "\ufeff" + CSV.replace(",", "\t")),
        ("excel.csv", "\r\n" + CSV.replace(",", ";").replace("\n", "\r\n")),
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


LINES = "day,value,note\n" + "2024-01-01,1,a\n" * 50


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "short.csv",
            LINES + "2024-01-01,1\n",
            "line 52 of short.csv has 2 values, its first line",
        ),
        # DuckDB by itself reads the long line alone, and no other.
        ("long.csv", LINES + "2024-01-01,1,a,b\n", "line 52 of long.csv has 4 values, its first"),
        ("cut.csv.gz", gzip.compress(LINES.encode())[:-20], "cut.csv.gz is cut off or damaged"),
        ("cut.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99)[:-9], "cut.jsonl.gz is cut off"),
        (
            "latin.csv",
            (LINES + "2024-01-01,1,é\n").encode("latin-1"),
            r"not UTF-8 text \(byte 0xe9",
        ),
        ("utf16.csv", LINES.encode("utf-16"), "not UTF-8 text"),
    ],
)
def test_no_line_is_left_out_of_a_text_that_is_damaged(
    tmp_path: Path, name: str, content: str | bytes, told: str
) -> None:
    with pytest.raises(InputError, match=told) as error:
        ingest([{"name": "t", "uri": source(tmp_path, name, content)}], tmp_path / "tables")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_dates_that_could_be_day_or_month_first_stay_text(tmp_path: Path, capsys) -> None:
    """Of months' first days DuckDB makes twelve days of January."""
    months = "".join(f"{month:02d}/01/2024,{month}\n" for month in range(1, 13))
    uri = source(tmp_path, "months.csv", "month,value\n" + months)
    ingest([{"name": "months", "uri": uri}], tmp_path / "tables")
    assert read_dataset(tmp_path / "tables" / "months")["month"][1].as_py() == "02/01/2024"
    assert "could be day or month first; say which in the query" in capsys.readouterr().out


def test_dates_of_which_one_shows_the_order_are_dates(tmp_path: Path) -> None:
    uri = source(tmp_path, "days.csv", "day,value\n02/01/2024,1\n02/29/2024,2\n")
    ingest([{"name": "days", "uri": uri}], tmp_path / "tables")
    assert read_dataset(tmp_path / "tables" / "days")["day"].to_pylist() == [
        date(2024, 2, 1),
        date(2024, 2, 29),
    ]


@pytest.mark.parametrize(
    ("other", "told"),
    [("NA", 'TRY_CAST("x" AS DOUBLE)'), ("0,5", "replace(\"x\", ',', '.')")],
)
def test_a_column_that_is_text_because_of_a_few_values_is_told(
    tmp_path: Path, capsys, other: str, told: str
) -> None:
    lines = "".join(f"{number};7\n" for number in range(20))
    uri = source(tmp_path, "t.csv", f"x;y\n{lines}{other};7\n")
    ingest([{"name": "t", "uri": uri}], tmp_path / "tables")
    printed = capsys.readouterr().out
    assert f"t: 'x' is text, since it holds '{other}'" in printed
    assert told in printed


def test_a_value_that_is_a_number_here_and_a_text_there_is_a_text(tmp_path: Path) -> None:
    uri = source(tmp_path, "mixed.jsonl", '{"a": 1}\n{"a": "x"}\n{}\n')
    ingest([{"name": "mixed", "uri": uri}], tmp_path / "tables")
    assert read_dataset(tmp_path / "tables" / "mixed")["a"].to_pylist() == ["1", "x", None]


def test_a_directory_and_a_glob_read_every_file_and_skip_bookkeeping(tmp_path: Path) -> None:
    for number in (1, 2):
        file = tmp_path / "in" / f"{number}.parquet"
        file.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"x": [number]}), file)
    source(tmp_path, "in/_SUCCESS.parquet", "")
    for uri in (str(tmp_path / "in"), str(tmp_path / "in" / "*.parquet")):
        ingest([{"name": "numbers", "uri": uri}], tmp_path / "tables")
        assert read_dataset(tmp_path / "tables" / "numbers")["x"].to_pylist() == [1, 2]


def test_a_json_file_beside_data_is_no_data_unless_it_is_named(tmp_path: Path) -> None:
    source(tmp_path, "in/days.csv", CSV)
    about = source(tmp_path, "in/about.json", '{"by": "me"}')
    ingest([{"name": "days", "uri": str(tmp_path / "in")}], tmp_path / "tables")
    assert read_dataset(tmp_path / "tables" / "days").column_names == ["day", "value"]
    ingest([{"name": "about", "uri": about}], tmp_path / "tables")
    assert read_dataset(tmp_path / "tables" / "about").to_pylist() == [{"by": "me"}]


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
