# SPDX-License-Identifier: Apache-2.0
"""The outcomes of a monitoring run as Prometheus metrics, pushed or written to a file."""

from pathlib import Path
from urllib.error import URLError

from prometheus_client import CollectorRegistry, Gauge, push_to_gateway, write_to_textfile

from kfloop.components.contracts.dataset import parse_time
from kfloop.components.contracts.decision import OUTCOMES, read_decision
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import local_path

JOB = "kfloop-monitoring"
TIMEOUT_SECONDS = 10.0


def export_metrics(
    decisions: list[str | Path], service: str, model_version: str, until: str, destination: str
) -> None:
    """Exports decisions and every check in them.

    - `kfloop_decision{service, model_version, gate, decision}`: 1 for what a gate decided, else 0;
    - `kfloop_action{…, gate, action}`: 1 for what is done about it;
    - `kfloop_check_value`, `kfloop_check_threshold` and `kfloop_check_passed`
      `{…, gate, check, metric, slice}`: numbers only;
    - `kfloop_monitored_until_seconds{service, model_version}`: end of the window, Unix time.

    Args:
        decisions: Decision files.
        service: The service.
        model_version: Its live model.
        until: End of the window, ISO 8601.
        destination: A Pushgateway (http:// or https://), or the path of a file that ends in
            `.prom`, for the textfile collector of a node exporter. Empty exports nothing.

    Raises:
        InputError: If the destination cannot be used.
    """
    if not destination:
        print("No destination is set; nothing is exported.", flush=True)
        return
    registry = _registry(decisions, {"service": service, "model_version": model_version}, until)
    if destination.startswith(("http://", "https://")):
        try:
            push_to_gateway(
                destination,
                JOB,
                registry,
                grouping_key={"service": service},
                timeout=TIMEOUT_SECONDS,
            )
        except (URLError, TimeoutError) as error:
            raise InputError(
                f"The Pushgateway {destination} does not take the metrics: {error}."
            ) from error
    else:
        path = local_path(destination, "metrics destination")
        if path.suffix != ".prom":
            raise InputError(
                f"The metrics destination {destination} does not end in .prom, which a node "
                "exporter's textfile collector wants; rename it, or give the URL of a Pushgateway."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_to_textfile(str(path), registry)
    print(f"Exported {len(decisions)} decisions to {destination}.", flush=True)


def _registry(decisions: list[str | Path], labels: dict[str, str], until: str) -> CollectorRegistry:
    registry = CollectorRegistry()

    def gauge(name: str, text: str, *more: str) -> Gauge:
        return Gauge(f"kfloop_{name}", text, [*labels, *more], registry=registry)

    decided = gauge("decision", "1 for what the gate decided.", "gate", "decision")
    action = gauge("action", "1 for what is done about it.", "gate", "action")
    check = ("gate", "check", "metric", "slice")
    value = gauge("check_value", "What a check measured.", *check)
    threshold = gauge("check_threshold", "What it may be.", *check)
    passed = gauge("check_passed", "1 when the check passed.", *check)
    end = gauge("monitored_until_seconds", "End of the newest window, Unix time.")
    end.labels(**labels).set(parse_time(until, "until").timestamp())
    for path in decisions:
        made = read_decision(path)
        for outcome in OUTCOMES:
            found = decided.labels(**labels, gate=made.gate, decision=outcome)
            found.set(outcome == made.decision)
        if made.action:
            action.labels(**labels, gate=made.gate, action=made.action).set(1)
        for reason in made.reasons:
            place = {"check": reason.check, "metric": reason.metric, "slice": reason.slice or ""}
            place |= {**labels, "gate": made.gate}
            passed.labels(**place).set(reason.passed)
            for known, target in ((reason.value, value), (reason.threshold, threshold)):
                if isinstance(known, int | float):
                    target.labels(**place).set(known)
    return registry
