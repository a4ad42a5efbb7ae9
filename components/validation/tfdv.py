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
from typing import Any

import pyarrow as pa

# Cut points for distances are read from this many equal shares of a numeric column.
QUANTILE_BUCKETS = 100
# A cut point's rank is off by at most this share of the rows: a tenth of a bucket.
QUANTILE_ERROR = 0.001


@lru_cache
def tfdv() -> Any:
    """Returns the module `tensorflow_data_validation`, imported without its notes."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        import tensorflow_data_validation

    return tensorflow_data_validation


class StatisticsStream:
    """Statistics of a dataset that is seen one record batch at a time, in constant memory.

    The quantiles, the value counts and the number of unique values are sketches; the last two are
    exact up to 16,384 values.
    """

    def __init__(self) -> None:
        tfdv()
        from tensorflow_data_validation.statistics import stats_impl
        from tensorflow_data_validation.statistics.stats_options import StatsOptions

        self._stats_impl = stats_impl
        self._options = StatsOptions(
            num_quantiles_histogram_buckets=QUANTILE_BUCKETS, epsilon=QUANTILE_ERROR
        )
        self._generators = stats_impl.get_generators(self._options, in_memory=True)
        self._accumulators: list[Any] | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        """Adds the rows of a batch; its columns must be of the types that `clean` returns."""
        from tfx_bsl.arrow import table_util

        partial = self._stats_impl.generate_partial_statistics_in_memory(
            # TFDV reads only columns of lists; this makes a one-element list of each value.
            table_util.CanonicalizeRecordBatch(batch),
            self._options,
            self._generators,
        )
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
        """Returns a DatasetFeatureStatisticsList of everything added; at least one batch."""
        return self._stats_impl.extract_statistics_output(self._accumulators, self._generators)
