# SPDX-License-Identifier: Apache-2.0
"""What the statistics say, column by column, in plain numbers. Needs no TFDV and no TensorFlow."""

import math
from bisect import bisect_left
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tensorflow_metadata.proto.v0 import statistics_pb2

from kfloop.components.contracts.errors import InputError

ALL_ROWS = "All Examples"  # TFDV's name for the dataset of all rows, where there are slices too
KIND = "kind"  # the custom statistic that holds the kind, see columns.KINDS
_KIND_OF_TYPE = {0: "int", 1: "float", 2: "string", 3: "bytes", 4: "struct"}


@dataclass(frozen=True)
class Column:
    """The statistics of one column.

    Attributes:
        name: Column name.
        kind: What it holds, one of `columns.KINDS`.
        count: Rows with a value.
        missing: Share of the rows without one, 0 to 1.
        unique: Number of different values; None for numbers, where it is not measured.
        mean, std, min, max, median: Of numbers; None for others. Times are in seconds since 1970.
        zeros: Share of the values that are zero; None for others than numbers.
        cuts: Bounds of buckets of about equal counts, ascending; empty for others than numbers.
        shares: Share of the values in each bucket, one fewer than `cuts`.
        values: Count of each value of a string column, the most frequent first (1,000 at most).
    """

    name: str
    kind: str
    count: int
    missing: float
    unique: int | None = None
    mean: float | None = None
    std: float | None = None
    min: float | None = None
    max: float | None = None
    median: float | None = None
    zeros: float | None = None
    cuts: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()
    values: tuple[tuple[str, float], ...] = ()

    @property
    def is_number(self) -> bool:
        """Whether it is measured as a number; times are."""
        return bool(self.cuts)

    @property
    def is_time(self) -> bool:
        """Whether it holds points in time, which are expected to move from window to window."""
        return self.kind in ("date", "timestamp")

    @property
    def is_constant(self) -> bool:
        """Whether every value is the same."""
        if not self.count:
            return False
        return self.min == self.max if self.is_number else self.unique == 1

    def share_up_to(self, bound: float) -> float:
        """Returns the share of the values <= `bound`, interpolated within its bucket."""
        total = 0.0
        for (low, high), share in zip(pairwise(self.cuts), self.shares, strict=True):
            if high <= bound:
                total += share
            elif low < bound and math.isfinite(high - low):
                total += share * (bound - low) / (high - low)
        return total

    def quantile(self, share: float) -> float:
        """Returns the value below which `share` (0 to 1) of the values lie."""
        reached = [0.0]
        for part in self.shares:
            reached.append(reached[-1] + part)
        at = min(bisect_left(reached, share - 1e-9), len(self.cuts) - 1)
        return self.cuts[at]


@dataclass(frozen=True)
class Summary:
    """The statistics of a dataset: its number of rows, its columns and its slices, by name."""

    rows: int
    columns: dict[str, Column]
    slices: dict[str, "Summary"] = field(default_factory=dict)


def read_statistics(path: str | Path) -> Any:
    """Reads a binary DatasetFeatureStatisticsList, of all rows and perhaps of slices.

    Raises:
        InputError: If the file is something else.
    """
    statistics = statistics_pb2.DatasetFeatureStatisticsList()
    try:
        statistics.ParseFromString(Path(path).read_bytes())
    except (OSError, DecodeError) as error:
        raise InputError(
            f"{path} does not hold statistics; give what compute_statistics wrote."
        ) from error
    names = [dataset.name for dataset in statistics.datasets]
    if len(names) != 1 and ALL_ROWS not in names:
        raise InputError(
            f"{path} holds statistics of {len(names)} datasets and none of all rows; "
            "give what compute_statistics wrote."
        )
    return statistics


def of_all_rows(statistics: Any) -> Any:
    """Returns the statistics without those of slices."""
    if len(statistics.datasets) == 1:
        return statistics
    datasets = [each for each in statistics.datasets if each.name == ALL_ROWS]
    return statistics_pb2.DatasetFeatureStatisticsList(datasets=datasets)


def summarize(statistics: Any) -> Summary:
    """Returns the plain numbers of a DatasetFeatureStatisticsList."""
    whole = of_all_rows(statistics).datasets[0]
    slices = {each.name: _summary(each) for each in statistics.datasets if each.name != whole.name}
    return replace(_summary(whole), slices=slices)


def _summary(dataset: Any) -> Summary:
    columns = [_column(feature, int(dataset.num_examples)) for feature in dataset.features]
    return Summary(int(dataset.num_examples), {column.name: column for column in columns})


def _column(feature: Any, rows: int) -> Column:
    name = feature.path.step[0] if feature.path.step else feature.name
    kinds = [custom.str for custom in feature.custom_stats if custom.name == KIND]
    kind = kinds[0] if kinds else _KIND_OF_TYPE[feature.type]
    if feature.HasField("num_stats"):
        return _number(name, kind, feature.num_stats, rows)
    text = feature.string_stats if feature.HasField("string_stats") else feature.bytes_stats
    count = int(text.common_stats.num_non_missing)
    values: tuple[tuple[str, float], ...] = ()
    if feature.HasField("string_stats"):
        values = tuple((each.label, each.sample_count) for each in text.rank_histogram.buckets)
    return Column(name, kind, count, _missing(count, rows), unique=int(text.unique), values=values)


def _number(name: str, kind: str, stats: Any, rows: int) -> Column:
    count = int(stats.common_stats.num_non_missing)
    if not count:
        return Column(name, kind, 0, _missing(0, rows))
    buckets = _quantile_buckets(stats)
    values = sum(bucket.sample_count for bucket in buckets)
    total = max(stats.common_stats.tot_num_values, 1)  # of a list column: more than its rows
    return Column(
        name,
        kind,
        count,
        _missing(count, rows),
        mean=stats.mean,
        std=stats.std_dev,
        min=stats.min,
        max=stats.max,
        median=stats.median,
        zeros=stats.num_zeros / total,
        cuts=(buckets[0].low_value, *(bucket.high_value for bucket in buckets)),
        shares=tuple(bucket.sample_count / values for bucket in buckets),
    )


def _quantile_buckets(stats: Any) -> list[Any]:
    kind = statistics_pb2.Histogram.QUANTILES
    return next(list(each.buckets) for each in stats.histograms if each.type == kind)


def _missing(count: int, rows: int) -> float:
    return 1 - count / rows if rows else 0.0
