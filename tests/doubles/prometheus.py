# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus server on loopback, and exporters for it to scrape."""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import Metric

BINARY = shutil.which("prometheus")
DEADLINE_SECONDS = 30.0


class Exporter:
    """Serves samples under any names, so that it can look like any exporter."""

    def __init__(self) -> None:
        self.samples: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        registry = CollectorRegistry()
        registry.register(self)
        self._server, self._thread = start_http_server(0, "127.0.0.1", registry)
        self.address = f"127.0.0.1:{self._server.server_port}"

    def set(self, name: str, value: float, **labels: str) -> None:
        """Sets one sample."""
        self.samples[name, tuple(labels.items())] = value

    def collect(self) -> Iterator[Metric]:
        """Called for each scrape."""
        for (name, labels), value in dict(self.samples).items():
            metric = Metric(name, "a sample", "unknown")
            metric.add_sample(name, dict(labels), value)
            yield metric

    def close(self) -> None:
        """Stops serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def prometheus(
    work: Path, targets: list[str], rules: str = "", up: int | None = None
) -> Iterator[str]:
    """Runs a server that scrapes targets five times a second; gives its URL.

    Args:
        work: Its directory.
        targets: What it scrapes: `host:port` for its `/metrics`, or `host:port/path`.
        rules: A rule file's text; its rules are evaluated as often.
        up: How many of the targets answer at first; None for all.
    """
    if not BINARY:
        pytest.skip("there is no `prometheus` here to ask: apt-get install prometheus")
    # honor_labels: as everybody scrapes a Pushgateway, whose samples bring their own job.
    scrape = {
        "job_name": "test",
        "honor_labels": True,
        "static_configs": [_static(target) for target in targets],
    }
    configuration = {
        "global": {
            "scrape_interval": "200ms",
            "scrape_timeout": "200ms",
            "evaluation_interval": "200ms",
        },
        "scrape_configs": [scrape],
        "rule_files": ["rules.yml"],
    }
    work.mkdir(parents=True, exist_ok=True)
    (work / "rules.yml").write_text(rules or "groups: []")
    # JSON is YAML.
    (work / "prometheus.yml").write_text(json.dumps(configuration))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (work / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                BINARY,
                f"--config.file={work / 'prometheus.yml'}",
                f"--storage.tsdb.path={work / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        url = f"http://{address}"
        wait_until(url, "sum(up)", len(targets) if up is None else up)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _static(target: str) -> dict[str, object]:
    address, _, path = target.partition("/")
    labels = {"__metrics_path__": f"/{path}"} if path else {}
    return {"targets": [address], "labels": labels}


def wait_until(url: str, promql: str, value: float) -> None:
    """Waits until a query gives a value."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    found: object = None
    while time.monotonic() < deadline:
        try:
            answer = httpx.get(f"{url}/api/v1/query", params={"query": promql}, trust_env=False)
            found = answer.json()["data"]["result"]
            if found and float(found[0]["value"][1]) == value:
                return
        except (httpx.TransportError, ValueError):
            pass
        time.sleep(0.1)
    raise AssertionError(f"{promql} is {found}, not {value}")
