# SPDX-License-Identifier: Apache-2.0
from datetime import UTC, date, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.inference_log import EVENT_TIME, partition
from kfloop.components.data.windows import plan_windows


@pytest.fixture
def log(tmp_path):
    for day, version in ((date(2024, 5, 30), "1"), (date(2024, 6, 2), "2")):
        directory = partition(tmp_path, day, version)
        directory.mkdir(parents=True)
        moment = datetime(day.year, day.month, day.day, 15, tzinfo=UTC)
        table = pa.table({EVENT_TIME: pa.array([moment], pa.timestamp("us", tz="UTC"))})
        pq.write_table(table, directory / "a.parquet")
    return str(tmp_path)


def test_windows_end_with_the_newest_day_of_the_log(log):
    windows = plan_windows(log, "", "", 7, 30, 5, "at")
    assert windows.until == windows.data_until == "2024-06-03T00:00:00+00:00"
    assert windows.window_since == windows.data_since == "2024-05-27T00:00:00+00:00"
    assert windows.split_at == "2024-05-29T00:00:00+00:00"
    assert windows.train_since == "2024-04-29T00:00:00+00:00"


def test_only_the_live_version_counts(log):
    assert plan_windows(log, "1", "", 7, 30, 5, "at").until.startswith("2024-05-31")


def test_a_given_end_wins(log):
    assert plan_windows(log, "", "2024-06-01", 7, 30, 5, "at").until.startswith("2024-06-01")


def test_examples_without_a_time_column_have_no_windows(log):
    windows = plan_windows(log, "", "", 7, 30, 5)
    assert windows.window_since and windows.until
    assert not any(windows[2:])


def test_an_empty_log_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="holds no request of model version 3"):
        plan_windows(str(tmp_path), "3", "", 7, 30, 5, "at")
