# SPDX-License-Identifier: Apache-2.0
"""The one place that loads TensorFlow Data Validation (TFDV).

Its import takes seconds and prints notes about optional packages; its streaming interface
(partial statistics that are merged) is internal. Everything else in this family reads and writes
the protos of `tensorflow_metadata`, which are light.
"""

import contextlib
import io
import os
import warnings
from functools import lru_cache
from typing import Any, NamedTuple

import pyarrow as pa
from tensorflow_metadata.proto.v0 import statistics_pb2

from kfloop.components.validation.deferred import tensorflow_deferred


class Precision(NamedTuple):
    """How finely the distribution of a number is measured.

    Attributes:
        buckets: Equal shares of the rows whose bounds are kept; distances and percentiles are read
            from them.
        error: How far a bound's rank may be off, as a share of the rows.
    """

    buckets: int
    error: float


OF_ALL_ROWS = Precision(100, 0.001)
# Memory grows with 1/error (15 MB a column at 0.001, 1.7 MB at 0.01) and time with the buckets; of
# a slice the deciles are enough.
OF_A_SLICE = Precision(20, 0.01)


@lru_cache
def tfdv() -> Any:
    """Returns the module `tensorflow_data_validation`, imported without its notes."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
        tensorflow_deferred(),
    ):
        warnings.simplefilter("ignore")
        import tensorflow_data_validation

    return tensorflow_data_validation


def stats_options(precision: Precision, slice_functions: list[Any] | None = None) -> Any:
    """Returns what is measured, in one process and on Beam alike: TFDV's StatsOptions."""
    return tfdv().StatsOptions(
        num_quantiles_histogram_buckets=precision.buckets,
        epsilon=precision.error,
        # Beam would otherwise count every value exactly, by a shuffle of all of them.
        experimental_use_sketch_based_topk_uniques=True,
        experimental_slice_functions=slice_functions,
    )


def canonical(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the batch with a one-element list of each value: TFDV reads nothing else."""
    tfdv()
    from tfx_bsl.arrow import table_util

    return table_util.CanonicalizeRecordBatch(batch)


class StatisticsStream:
    """Statistics of a dataset that is seen one record batch at a time, in constant memory.

    The quantiles, the value counts and the number of unique values are sketches; the last two are
    exact up to 16,384 values.

    Attributes:
        rows: Rows added so far.
    """

    def __init__(self, precision: Precision = OF_ALL_ROWS) -> None:
        self._options = stats_options(precision)
        from tensorflow_data_validation.statistics import stats_impl

        self._stats_impl = stats_impl
        self.rows = 0
        self._generators = stats_impl.get_generators(self._options, in_memory=True)
        self._accumulators: list[Any] | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        """Adds the rows of a batch; its columns must be of the types that `clean` returns."""
        partial = self._stats_impl.generate_partial_statistics_in_memory(
            canonical(batch), self._options, self._generators
        )
        self.rows += batch.num_rows
        if self._accumulators is None:
            self._accumulators = partial
        else:
            self._accumulators = [
                generator.merge_accumulators([merged, new])
                for generator, merged, new in zip(
                    self._generators, self._accumulators, partial, strict=True
                )
            ]

    def statistics(self) -> Any:
        """Returns a DatasetFeatureStatisticsList of everything added, with one dataset."""
        if self._accumulators is None:
            return statistics_pb2.DatasetFeatureStatisticsList(
                datasets=[statistics_pb2.DatasetFeatureStatistics()]
            )
        return self._stats_impl.extract_statistics_output(self._accumulators, self._generators)
