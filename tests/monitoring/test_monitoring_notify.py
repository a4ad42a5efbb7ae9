# SPDX-License-Identifier: Apache-2.0
"""notify against a real webhook on loopback."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kfloop.components.contracts.errors import InputError
from kfloop.components.monitoring.notify import notify

SUCCEEDED = {"state": "SUCCEEDED", "error": {"message": ""}}
FAILED = {"state": "FAILED", "error": {"message": "train-model: no GPU"}}


class Webhook:
    """A chat server: keeps what it was sent, and answers with the statuses it was given."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        self.statuses: list[int] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                """Says nothing."""

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status = outer.statuses.pop(0) if outer.statuses else 200
                if status == 200:
                    outer.received.append(json.loads(body))
                self.send_response(status)
                self.end_headers()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/services/secret"


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    webhook = Webhook()
    monkeypatch.setenv("CHAT", webhook.url)
    yield webhook
    webhook.server.shutdown()
    webhook.server.server_close()


@pytest.fixture
def history(tmp_path: Path) -> str:
    file = tmp_path / "history.jsonl"
    kept = {"now": "2024-01-01", "triggered": False, "action": "keep", "run": "r1", "why": "fine"}
    acted = {**kept, "now": "2024-02-01", "action": "retrain", "run": "r2", "why": "AUC fell"}
    file.write_text("".join(json.dumps(entry) + "\n" for entry in (kept, acted)))
    return str(file)


def test_tells_what_this_run_decided_and_where_to_read_it(webhook: Webhook, history: str) -> None:
    notify(SUCCEEDED, "flights", "r2", history, "${CHAT}", "https://kubeflow/pipeline/")
    (message,) = webhook.received
    assert message["text"] == (
        "flights: monitoring succeeded, retrain: AUC fell\n"
        "https://kubeflow/pipeline/#/runs/details/r2"
    )


def test_a_kept_model_is_told_only_when_asked_for(webhook: Webhook, history: str) -> None:
    notify(SUCCEEDED, "flights", "r1", history, "${CHAT}")
    assert not webhook.received
    notify(SUCCEEDED, "flights", "r1", history, "${CHAT}", always=True)
    assert "keep: fine" in webhook.received[0]["text"]


def test_a_failed_run_is_told_with_its_error(webhook: Webhook, history: str) -> None:
    notify(FAILED, "flights", "r9", history, "${CHAT}")
    assert "monitoring failed, no decision: train-model: no GPU" in webhook.received[0]["text"]


def test_the_log_has_one_json_line(
    history: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFLOOP_STATE", "/state")
    notify(SUCCEEDED, "flights", "r2", history)
    line = json.loads(capsys.readouterr().out)
    assert line["event"] == "monitoring_run_ended"
    assert (line["action"], line["state"]) == ("retrain", "SUCCEEDED")
    assert line["link"] == "file:///state/runs/r2/report.html"


def test_a_server_that_is_down_for_a_moment_gets_the_message(
    webhook: Webhook, history: str
) -> None:
    webhook.statuses = [503]
    notify(SUCCEEDED, "flights", "r2", history, "${CHAT}")
    assert len(webhook.received) == 1


def test_a_refused_message_is_an_error_without_the_secret(webhook: Webhook, history: str) -> None:
    webhook.statuses = [404]
    with pytest.raises(InputError, match="answered 404") as refused:
        notify(SUCCEEDED, "flights", "r2", history, "${CHAT}")
    assert "secret" not in str(refused.value)


def test_a_missing_variable_is_named(history: str) -> None:
    with pytest.raises(InputError, match="environment variable NO_SUCH"):
        notify(FAILED, "flights", "r2", history, "${NO_SUCH}")
