# SPDX-License-Identifier: Apache-2.0
"""export_metrics: what Prometheus reads."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kfloop.components.contracts.decision import Decision, Reason, write_decision
from kfloop.components.contracts.errors import InputError
from kfloop.components.monitoring.export import export_metrics


def decisions(path: Path) -> list[str | Path]:
    drift = [
        Reason("psi", "temperature", 0.4, 0.1, False, "moved"),
        Reason("psi", "temperature", 0.05, 0.1, True, "stays", "origin=JFK"),
        Reason("psi", "carrier", None, 0.1, True, "nothing to measure"),
    ]
    write_decision(Decision("drift", "fail", drift), path / "drift.json")
    write_decision(Decision("retraining", "fail", [], "retrain"), path / "retraining.json")
    return [path / "drift.json", path / "retraining.json"]


def samples(text: str) -> dict[tuple[Any, ...], float]:
    return {
        (sample.name, *sorted(value for value in sample.labels.values() if value)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_writes_what_a_textfile_collector_reads(tmp_path: Path) -> None:
    target = tmp_path / "collector" / "flights.prom"
    export_metrics(decisions(tmp_path), "flights", "3", "2024-02-01", str(target))
    found = samples(target.read_text())
    assert found["kfloop_decision", "3", "drift", "fail", "flights"] == 1
    assert found["kfloop_decision", "3", "drift", "flights", "pass"] == 0
    assert found["kfloop_action", "3", "flights", "retrain", "retraining"] == 1
    assert found["kfloop_check_value", "3", "drift", "flights", "psi", "temperature"] == 0.4
    assert found["kfloop_check_threshold", "3", "drift", "flights", "psi", "temperature"] == 0.1
    assert found["kfloop_check_passed", "3", "drift", "flights", "psi", "temperature"] == 0
    inside = ("kfloop_check_value", "3", "drift", "flights", "origin=JFK", "psi", "temperature")
    assert found[inside] == 0.05
    assert ("kfloop_check_value", "3", "carrier", "drift", "flights", "psi") not in found
    assert found["kfloop_monitored_until_seconds", "3", "flights"] == 1706745600


def test_pushes_to_a_gateway_under_the_service(tmp_path: Path) -> None:
    taken: list[tuple[str, str]] = []

    class Gateway(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            taken.append((self.path, body))
            self.send_response(200)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        export_metrics(decisions(tmp_path), "flights", "3", "2024-02-01", url)
    finally:
        server.shutdown()
        server.server_close()
    ((path, body),) = taken
    assert path == "/metrics/job/kfloop-monitoring/service/flights"
    assert samples(body)["kfloop_action", "3", "flights", "retrain", "retraining"] == 1


@pytest.mark.parametrize(
    ("destination", "sentence"),
    [
        ("http://127.0.0.1:9", "Pushgateway http://127.0.0.1:9 does not take the metrics"),
        ("/tmp/flights.txt", "does not end in .prom"),
        ("gs://bucket/x.prom", "metrics destination is 'gs://bucket/x.prom'"),
    ],
)
def test_a_destination_that_cannot_be_used_is_named(
    tmp_path: Path, destination: str, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        export_metrics(decisions(tmp_path), "flights", "3", "2024-02-01", destination)


def test_without_a_destination_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_metrics(decisions(tmp_path), "flights", "3", "2024-02-01", "")
    assert "nothing is exported" in capsys.readouterr().out
