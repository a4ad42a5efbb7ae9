# SPDX-License-Identifier: Apache-2.0
"""Replaying a dataset as requests to a service.

Also a program, for traffic in the background:
`python -m kfloop.components.deployment.replay --dataset DIR --service NAME`.
"""

import argparse
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from kfloop.components.contracts.dataset import dataset_files, require_columns, row_count
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.package_storage import read_package
from kfloop.components.deployment.backend import connect, require_service
from kfloop.components.deployment.client import NO_ANSWER, ServiceClient
from kfloop.components.deployment.manifest import record_of
from kfloop.components.deployment.packages import Instance, instances_of
from kfloop.components.deployment.smoke_test import request_columns
from kfloop.components.deployment.wait import ensure_live

PROGRESS_SECONDS = 5.0
# A service that does not answer at all is not waited for a thousand times.
MAX_UNANSWERED = 10


@dataclass
class Replayed:
    """What became of a replay.

    Attributes:
        sent: Instances that were answered with predictions.
        requests: Requests, whatever came of them.
        failed: Failed requests by HTTP status; `NO_ANSWER` for none.
        example: The error of the first failed request.
        versions: Instances answered, by model version.
    """

    sent: int = 0
    requests: int = 0
    failed: Counter[int] = field(default_factory=Counter)
    example: str = ""
    versions: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        by_version = ", ".join(f"{count} by version {v}" for v, count in self.versions.items())
        failures = ", ".join(
            f"{count} × {status or 'no answer'}" for status, count in self.failed.items()
        )
        told = f"{self.sent} rows answered in {self.requests} requests ({by_version or 'none'})"
        return f"{told}; failed: {failures}: {self.example}" if failures else told


def replay_requests(
    requests: str | Path,
    service: str,
    limit: int = 0,
    batch_size: int = 20,
    requests_per_second: float = 0.0,
    seconds: float = 0.0,
    namespace: str = "",
) -> Replayed:
    """Sends a dataset's rows to a service's public address, in order, and waits for its log.

    Of each row only what the live model knows is sent: features, entity keys and timestamp.

    Args:
        requests: Directory of a dataset.
        service: Name of the service.
        limit: Largest number of rows, spread evenly over the dataset; 0 sends all.
        batch_size: Rows in one request.
        requests_per_second: Highest rate; 0 sends as fast as it is answered.
        seconds: Longest time to go on; 0 for no end.
        namespace: Kubernetes namespace; empty for the current one.

    Raises:
        InputError: If the dataset lacks a feature of the live model, or more than half of the
            requests failed.
    """
    if limit < 0 or batch_size < 1 or requests_per_second < 0 or seconds < 0:
        raise InputError(
            f"limit {limit}, batch_size {batch_size}, requests_per_second {requests_per_second:g} "
            f"and seconds {seconds:g} cannot be; give batch_size 1 or more and nothing below 0."
        )
    backend = connect(namespace)
    manifest = require_service(backend, service)
    package = read_package(record_of(manifest).stable.storage_uri)
    require_columns(requests, package.feature_names)
    url = ensure_live(backend, manifest)
    batches = _batches(requests, request_columns(package), limit, batch_size)
    deadline = time.monotonic() + seconds if seconds else float("inf")
    replayed = send(
        batches,
        url,
        service,
        "request-",
        requests_per_second,
        lambda _: time.monotonic() > deadline,
    )
    # Who reads the log next must find these requests in it.
    backend.flush_log(service)
    print(f"{service}: {replayed}", flush=True)
    failed = replayed.failed.total()
    if replayed.requests and failed > replayed.requests / 2:
        raise InputError(
            f"{failed} of {replayed.requests} requests to {service!r} failed, the first with: "
            f"{replayed.example}"
        )
    return replayed


def send(
    batches: Iterable[list[Instance]],
    url: str,
    service: str,
    id_prefix: str,
    requests_per_second: float,
    enough: Callable[[Replayed], bool],
) -> Replayed:
    """Sends batches one after another, each under a request id of its own.

    Args:
        batches: Instances of each request.
        url: Address to send them to.
        service: Name of the service, which is the model's name on the path.
        id_prefix: How the request ids begin.
        requests_per_second: Highest rate; 0 for none.
        enough: Asked before each request; True ends the replay.
    """
    replayed, run = Replayed(), uuid.uuid4().hex[:12]
    started = told = time.monotonic()
    with ServiceClient(url, service) as client:
        for number, instances in enumerate(batches):
            if enough(replayed) or replayed.failed[NO_ANSWER] >= MAX_UNANSWERED:
                break
            if requests_per_second:
                time.sleep(max(0.0, started + number / requests_per_second - time.monotonic()))
            answer = client.predict(instances, f"{id_prefix}{run}-{number}")
            replayed.requests += 1
            if answer.ok:
                replayed.sent += len(instances)
                replayed.versions[answer.model_version] += len(instances)
            else:
                replayed.failed[answer.status] += 1
                replayed.example = replayed.example or answer.error
            if time.monotonic() - told > PROGRESS_SECONDS:
                told = time.monotonic()
                print(f"{service}: {told - started:.0f} s: {replayed}", flush=True)
    return replayed


def _batches(
    dataset: str | Path, columns: list[str], limit: int, batch_size: int
) -> Iterator[list[Instance]]:
    rows = row_count(dataset)
    wanted = min(limit or rows, rows)
    chosen = (number * rows // wanted for number in range(wanted))
    waiting: list[Instance] = []
    start, row = 0, next(chosen, None)
    for file in dataset_files(dataset):
        reader = pq.ParquetFile(file)
        present = [column for column in columns if column in reader.schema_arrow.names]
        for batch in reader.iter_batches(columns=present):
            here = []
            while row is not None and row < start + batch.num_rows:
                here.append(row - start)
                row = next(chosen, None)
            waiting += instances_of(batch.take(pa.array(here, pa.int64())), columns)
            while len(waiting) >= batch_size:
                yield waiting[:batch_size]
                waiting = waiting[batch_size:]
            start += batch.num_rows
    if waiting:
        yield waiting


def main() -> None:
    """Reads the command line and replays."""
    parser = argparse.ArgumentParser(description="Sends a dataset's rows to a service.")
    parser.add_argument("--dataset", required=True, help="directory of part-*.parquet")
    parser.add_argument("--service", required=True)
    parser.add_argument("--limit", type=int, default=0, help="rows; 0: all")
    parser.add_argument("--seconds", type=float, default=0.0, help="0: no end")
    parser.add_argument("--batch-size", type=int, default=20, help="rows in a request")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; 0: no bound")
    parser.add_argument("--namespace", default="")
    options = parser.parse_args()
    try:
        replay_requests(
            options.dataset,
            options.service,
            options.limit,
            options.batch_size,
            options.rate,
            options.seconds,
            options.namespace,
        )
    except InputError as error:
        sys.exit(f"InputError: {error}")


if __name__ == "__main__":
    main()
