# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kfloop.components.contracts.dataset import write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.validation.statistics import compute_statistics
from kfloop.components.validation.summary import Column, Summary, read_statistics, summarize

DIRECT = ["--runner=DirectRunner"]


@pytest.fixture
def dataset(tmp_path: Path, sales_of: Any) -> Path:
    """Three files of sales, with a column of missing values."""
    table = pa.table(sales_of(6000) | {"never": pa.nulls(6000, pa.float64())})
    (tmp_path / "data").mkdir()
    for part in range(3):
        file = tmp_path / "data" / f"part-{part:05d}.parquet"
        pq.write_table(table.slice(part * 2000, 2000).drop_columns(["receipt"]), file)
    return tmp_path / "data"


def assert_agree(one: Summary, other: Summary) -> None:
    assert one.rows == other.rows
    assert list(one.columns) == list(other.columns)
    for name in one.columns:
        assert_columns_agree(one.columns[name], other.columns[name])


def assert_columns_agree(one: Column, other: Column) -> None:
    for exact in ("kind", "count", "missing", "unique", "min", "max", "zeros"):
        assert getattr(one, exact) == getattr(other, exact), (one.name, exact)
    assert dict(one.values) == dict(other.values)
    for rounded in ("mean", "std") if one.is_number else ():
        assert getattr(one, rounded) == pytest.approx(getattr(other, rounded), rel=1e-9)
    # Sketches merged in another order: off by a tenth of a percentile at most.
    for share in (0.1, 0.5, 0.9) if one.is_number else ():
        assert one.share_up_to(other.quantile(share)) == pytest.approx(
            other.share_up_to(other.quantile(share)), abs=0.002
        )


@pytest.mark.parametrize("window", [{}, {"timestamp": "at", "since": "2020-01-02"}])
def test_beam_measures_what_one_process_measures(dataset: Path, window: dict[str, str]) -> None:
    slices = {"slices": ["shop", "shop,sold"], "minimum_slice_size": 700}
    here, there = dataset.parent / "here", dataset.parent / "there"
    told_here = compute_statistics(dataset, here, **window, **slices)
    told_there = compute_statistics(dataset, there, **window, **slices, pipeline_options=DIRECT)
    told_here.pop("fingerprint"), told_there.pop("fingerprint")
    assert told_here == told_there
    assert told_here["small_slices"] == 3
    one, other = summarize(read_statistics(here)), summarize(read_statistics(there))
    assert_agree(one, other)
    assert len(one.slices) == 6
    assert list(one.slices) == list(other.slices)
    for name in one.slices:
        assert_agree(one.slices[name], other.slices[name])


def test_beam_in_several_processes_measures_the_same(dataset: Path) -> None:
    here, there = dataset.parent / "here", dataset.parent / "there"
    workers = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    compute_statistics(dataset, here)
    compute_statistics(dataset, there, pipeline_options=[*DIRECT, *workers])
    assert_agree(summarize(read_statistics(here)), summarize(read_statistics(there)))


# Trap: Beam's DirectRunner downloads another runner's binary when it can.
def test_the_direct_runner_downloads_nothing(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **settings: Any) -> None:
        raise AssertionError(f"something is downloaded: {arguments}")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("apache_beam.utils.subprocess_server.urlopen", refuse)
    monkeypatch.setattr("apache_beam.runners.portability.prism_runner.PrismRunner.__init__", refuse)
    for options in (DIRECT, ["--job_name=statistics"]):
        told = compute_statistics(dataset, dataset.parent / "s", pipeline_options=options)
        assert told["rows"] == 6000


def test_an_empty_window_is_an_error_on_beam_too(dataset: Path) -> None:
    with pytest.raises(InputError, match="holds no rows between its start and 2019-01-01"):
        compute_statistics(
            dataset,
            dataset.parent / "s",
            timestamp="at",
            until="2019-01-01",
            pipeline_options=DIRECT,
        )
    assert not (dataset.parent / "s").exists()


def test_too_many_slices_are_refused_in_a_worker(tmp_path: Path) -> None:
    write_dataset(pa.table({"id": [f"u{i}" for i in range(1000)]}), tmp_path / "data")
    with pytest.raises(InputError, match=r"^The dataset has more than 200 slices by id;"):
        compute_statistics(
            tmp_path / "data", tmp_path / "s", slices=["id"], pipeline_options=DIRECT
        )


def test_a_runner_elsewhere_needs_a_store_that_beam_knows(dataset: Path) -> None:
    with pytest.raises(InputError, match="FlinkRunner cannot reach odd://bucket/data/part-00000"):
        compute_statistics(
            dataset,
            dataset.parent / "s",
            pipeline_options=["--runner=FlinkRunner"],
            dataset_uri="odd://bucket/data",
            result_uri="odd://bucket/statistics",
        )


def test_a_local_runner_reads_the_local_copy_whatever_the_artifact_store(dataset: Path) -> None:
    told = compute_statistics(
        dataset,
        dataset.parent / "s",
        pipeline_options=DIRECT,
        dataset_uri="odd://bucket/data",
        result_uri="odd://bucket/statistics",
    )
    assert told["rows"] == 6000
    left = {path.name for path in dataset.parent.iterdir()}
    assert left == {"data", "s"}
    assert np.isfinite(summarize(read_statistics(dataset.parent / "s")).columns["price"].mean)
