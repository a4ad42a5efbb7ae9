# SPDX-License-Identifier: Apache-2.0
"""What is known of each version: by the inference log, by its shadow, by labels that arrived."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kfloop.components.contracts import inference_log as log
from kfloop.components.contracts.dataset import read_dataset, require_columns
from kfloop.components.contracts.model_package import PREDICTION
from kfloop.components.deployment.latencies import Latencies, Values
from kfloop.components.deployment.packages import Instance, instances_of

OK = 200
READ = [log.ROW, log.RECEIVED_AT, log.STATUS, log.LATENCY_MS, PREDICTION]


@dataclass
class Evidence:
    """Requests to one version.

    Attributes:
        version: Model version.
        requests: Requests to it.
        errors: Requests that it did not answer with 200.
        latencies: Latencies of the answered requests.
        predictions: Predictions of the answered rows, None where there is none; None as a whole
            when the source does not tell predictions.
    """

    version: str
    requests: int = 0
    errors: int = 0
    latencies: Latencies = field(default_factory=Values)
    predictions: list[Any] | None = field(default_factory=list)

    @property
    def error_rate(self) -> float:
        """Share of failed requests; NaN without requests."""
        return self.errors / self.requests if self.requests else float("nan")

    @property
    def known(self) -> list[Any]:
        """The predictions that are there."""
        return [value for value in self.predictions or [] if value is not None]

    @property
    def numbers(self) -> npt.NDArray[np.float64]:
        """The predictions that are there, as numbers."""
        return np.array(self.known, dtype=float)


@dataclass
class Pairs:
    """Two versions' values for the same rows, in the same order."""

    live: list[Any] = field(default_factory=list)
    candidate: list[Any] = field(default_factory=list)


def read_evidence(directory: str, version: str, since: datetime) -> Evidence:
    """Returns what a log says of a version's requests received at or after `since`."""
    evidence = Evidence(version, predictions=[])
    for table in _tables(directory, version, since, READ):
        answered = table.filter(pc.equal(table[log.STATUS], OK))
        first = answered.filter(pc.equal(answered[log.ROW], 0))
        requests = pc.sum(pc.equal(table[log.ROW], 0)).as_py() or 0
        evidence.requests += requests
        evidence.errors += requests - first.num_rows
        assert isinstance(evidence.latencies, Values) and evidence.predictions is not None
        evidence.latencies.ms += first[log.LATENCY_MS].to_pylist()
        evidence.predictions += answered[PREDICTION].to_pylist()
    return evidence


def read_shadow(directory: str, live: str, candidate: str, since: datetime) -> Pairs:
    """Returns both versions' predictions for the live requests that the candidate got copies of."""
    columns = [log.REQUEST_ID, log.ROW, log.RECEIVED_AT, log.STATUS, PREDICTION]

    def predictions(place: str, version: str) -> dict[tuple[str, int], Any]:
        found = {}
        for table in _tables(place, version, since, columns):
            for row in table.filter(pc.equal(table[log.STATUS], OK)).to_pylist():
                if row[PREDICTION] is not None:
                    found[row[log.REQUEST_ID], row[log.ROW]] = row[PREDICTION]
        return found

    copied = predictions(str(log.shadow_log(directory)), candidate)
    if not copied:
        return Pairs()
    answered = predictions(directory, live)
    both = [key for key in copied if key in answered]
    return Pairs([answered[key] for key in both], [copied[key] for key in both])


def read_labelled(dataset: str | Path, version: str, label: str) -> Pairs:
    """Returns labels and predictions (`live` and `candidate`) of a version's labelled rows.

    Args:
        dataset: What join_labels wrote of the inference log.
        version: Model version whose rows count.
        label: Label column.

    Raises:
        InputError: If a column is missing.
    """
    columns = [log.MODEL_VERSION, label, PREDICTION]
    require_columns(dataset, columns)
    table = read_dataset(dataset, columns)
    table = table.filter(pc.equal(table[log.MODEL_VERSION].cast(pa.string()), version))
    table = table.filter(pc.and_(table[label].is_valid(), table[PREDICTION].is_valid()))
    return Pairs(table[label].to_pylist(), table[PREDICTION].to_pylist())


def newest_instances(
    directory: str, columns: list[str], timestamp: str, limit: int
) -> list[Instance]:
    """Returns the newest answered requests' rows, to be sent again.

    Args:
        directory: The inference log.
        columns: What an instance holds.
        timestamp: The one of them that the log keeps as the event time; may be empty.
        limit: Largest number of rows.
    """
    files = sorted(
        (file for _, file in log.log_files(directory)),
        key=lambda file: file.stat().st_mtime,
        reverse=True,
    )

    def rows() -> Iterator[Instance]:
        for file in files:
            table = pq.ParquetFile(file).read()
            table = table.filter(pc.equal(table[log.STATUS], OK))
            if timestamp and timestamp not in table.schema.names:
                table = table.append_column(timestamp, table[log.EVENT_TIME])
            if set(columns) <= set(table.schema.names):
                yield from instances_of(table, columns)

    return list(islice(rows(), limit))


def _tables(
    directory: str, version: str, since: datetime, columns: list[str]
) -> Iterator[pa.Table]:
    # Partitions are by event time; only the file's own age tells when requests came in.
    begun = since.astimezone(UTC).timestamp()
    for _, file in log.log_files(directory, model_version=version):
        if file.stat().st_mtime >= begun:
            table = pq.read_table(file, columns=columns)
            yield table.filter(pc.greater_equal(table[log.RECEIVED_AT], pa.scalar(since)))
