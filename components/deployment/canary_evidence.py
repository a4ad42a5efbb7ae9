"""What the inference log says of each version since the candidate began."""

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
from kfloop.components.contracts.model_package import PREDICTION
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
        latencies_ms: Milliseconds of the answered requests.
        predictions: Predictions of the answered rows; None where there is none.
    """

    version: str
    requests: int = 0
    errors: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    predictions: list[Any] = field(default_factory=list)

    @property
    def error_rate(self) -> float:
        """Share of failed requests; NaN without requests."""
        return self.errors / self.requests if self.requests else float("nan")

    def latency_ms(self, quantile: float) -> float:
        """Returns a quantile of the latency; NaN without an answer."""
        return float(np.quantile(self.latencies_ms, quantile)) if self.latencies_ms else np.nan

    @property
    def numbers(self) -> npt.NDArray[np.float64]:
        """The predictions that are there, as numbers."""
        return np.array([value for value in self.predictions if value is not None], dtype=float)


def read_evidence(directory: str, versions: list[str], since: datetime) -> list[Evidence]:
    """Returns the evidence of each version from requests received at or after `since`."""
    found = []
    for version in versions:
        evidence = Evidence(version)
        for file in _files_since(directory, version, since):
            table = pq.read_table(file, columns=READ)
            table = table.filter(pc.greater_equal(table[log.RECEIVED_AT], pa.scalar(since)))
            _add(evidence, table)
        found.append(evidence)
    return found


def _add(evidence: Evidence, table: pa.Table) -> None:
    answered = table.filter(pc.equal(table[log.STATUS], OK))
    first = pc.equal(table[log.ROW], 0)
    evidence.requests += pc.sum(first).as_py() or 0
    answered_first = answered.filter(pc.equal(answered[log.ROW], 0))
    evidence.latencies_ms += answered_first[log.LATENCY_MS].to_pylist()
    evidence.errors = evidence.requests - len(evidence.latencies_ms)
    evidence.predictions += answered[PREDICTION].to_pylist()


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


def _files_since(directory: str, version: str, since: datetime) -> list[Path]:
    # Partitions are by event time; only the file's own age tells when requests came in.
    begun = since.astimezone(UTC).timestamp()
    files = [file for _, file in log.log_files(directory, model_version=version)]
    return [file for file in files if file.stat().st_mtime >= begun]
