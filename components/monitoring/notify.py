# SPDX-License-Identifier: Apache-2.0
"""Tells people how a monitoring run ended: a log line, and a webhook that Slack understands too."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter, Retry

from kfloop.components.contracts.environment import expand
from kfloop.components.contracts.errors import InputError
from kfloop.components.monitoring.history import Entry, open_history
from kfloop.components.monitoring.retraining import KEEP

SUCCEEDED = "SUCCEEDED"
TIMEOUT_SECONDS = 10.0
# Five tries over 15 s: a chat server that restarts is no failed run.
RETRIES = Retry(
    total=4,
    backoff_factor=1,
    status_forcelist=(429, 500, 502, 503, 504),
    allowed_methods=("POST",),
    raise_on_status=False,
)


@dataclass(frozen=True)
class Notification:
    """What is told.

    Attributes:
        service: The service.
        state: How the run ended, for example `SUCCEEDED` or `FAILED`.
        action: `retrain` or `keep`; empty when the run did not get that far.
        why: The decision's summary, or the error.
        link: Where to read more; may be empty.
        run: Id of the run.
    """

    service: str
    state: str
    action: str
    why: str
    link: str
    run: str

    @property
    def matters(self) -> bool:
        """Whether somebody should look: the run failed, was cut short, or retrained."""
        return self.state != SUCCEEDED or self.action != KEEP

    @property
    def text(self) -> str:
        """The message in words."""
        outcome = self.action or "no decision"
        told = f"{self.service}: monitoring {self.state.lower()}, {outcome}: {self.why}"
        return f"{told}\n{self.link}" if self.link else told


def notify(
    status: dict[str, Any],
    service: str,
    run: str,
    history_uri: str = "",
    webhook: str = "",
    ui_url: str = "",
    always: bool = False,
) -> Notification:
    """Tells how a run ended.

    Args:
        status: KFP's final status of the run: `state`, and `error` with a `message`.
        service: The service.
        run: Id of the run, under which decide_retraining wrote its history.
        history_uri: The history of retraining decisions; empty tells the state alone.
        webhook: Address that gets `{"text": …}`, for example of a Slack incoming webhook;
            `${NAME}` stands for an environment variable, the place for an address that is a secret.
            Empty writes the log line only.
        ui_url: Address of the KFP UI, for the link.
        always: Whether a run that succeeded and kept the model is sent too.

    Raises:
        InputError: If the webhook does not take the message; it is in the log all the same.
    """
    told = _notification(status, service, run, history_uri, ui_url)
    print(json.dumps({"event": "monitoring_run_ended", **asdict(told)}), flush=True)
    if webhook and (told.matters or always):
        _post(expand(webhook, "webhook"), told.text)
    return told


def _notification(
    status: dict[str, Any], service: str, run: str, history_uri: str, ui_url: str
) -> Notification:
    entry = _entry(history_uri, run)
    state = str(status.get("state") or "UNKNOWN")
    error = str((status.get("error") or {}).get("message") or "")
    decided = entry.why if entry else _undecided(history_uri)
    why = decided if state == SUCCEEDED or not error else error
    return Notification(service, state, entry.action if entry else "", why, _link(ui_url, run), run)


def _undecided(history_uri: str) -> str:
    if not history_uri:
        return "see the run's report; with a retraining history the reason stands here"
    return "the run made no decision that the history knows"


def _entry(history_uri: str, run: str) -> Entry | None:
    if not history_uri:
        return None
    with open_history(history_uri) as history:
        return next((entry for entry in reversed(history.entries) if entry.run == run), None)


def _link(ui_url: str, run: str) -> str:
    if ui_url:
        return f"{ui_url.rstrip('/')}/#/runs/details/{run}"
    report = Path(os.environ.get("KFLOOP_STATE", "")) / "runs" / run
    return (report / "report.html").as_uri() if report.is_absolute() else ""


def _post(url: str, text: str) -> None:
    with requests.Session() as session:
        for scheme in ("https://", "http://"):
            session.mount(scheme, HTTPAdapter(max_retries=RETRIES))
        try:
            answer = session.post(url, json={"text": text}, timeout=TIMEOUT_SECONDS)
        except requests.RequestException as error:
            # Its message holds the address, which may be a secret.
            raise InputError(
                f"The webhook cannot be reached ({type(error).__name__}); check its address."
            ) from None
    if not answer.ok:
        raise InputError(f"The webhook answered {answer.status_code}; check its address.")
