# SPDX-License-Identifier: Apache-2.0
"""The rules and the dashboard in a real Prometheus that scrapes a real model server."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from doubles.prometheus import Exporter, prometheus, wait_until
from serving_helpers import manifest, write_package

MANIFESTS = Path(__file__).parents[2] / "serving/manifests/monitoring"
RULES = yaml.safe_load((MANIFESTS / "rules.yaml").read_text())["spec"]
DASHBOARD = json.loads((MANIFESTS / "dashboard.json").read_text())
ROW = {"distance": 900, "seats": 100, "weekend": True, "carrier": "UA"}


def expressions() -> list[str]:
    """Every query of the dashboard with its variables filled in."""
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    found += [note["expr"] for note in DASHBOARD["annotations"]["list"]]
    filled = [query.replace("$__rate_interval", "1m").replace("$__range", "1h") for query in found]
    return [query.replace("$model", "toy") for query in filled]


def test_promtool_accepts_the_rules(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("there is no `promtool` here to ask: apt-get install prometheus")
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(RULES))
    done = subprocess.run(
        [promtool, "check", "rules", str(tmp_path / "rules.yml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "SUCCESS" in done.stdout


def monitored(exporter: Exporter) -> None:
    """What export_metrics writes of a run that found drift."""
    labels = {"service": "toy", "model_version": "1"}
    check = {**labels, "gate": "drift", "check": "psi", "metric": "distance", "slice": ""}
    exporter.set("kfloop_check_value", 0.4, **check)
    exporter.set("kfloop_check_threshold", 0.1, **check)
    exporter.set("kfloop_check_value", 0.7, **{**check, "gate": "performance", "metric": "auc"})
    exporter.set("kfloop_decision", 1, **labels, gate="drift", decision="fail")
    exporter.set("kfloop_action", 1, **labels, gate="retraining", action="retrain")
    exporter.set("kfloop_monitored_until_seconds", 1.7e9, **labels)
    exporter.set("push_time_seconds", 1.7e9, job="kfloop-monitoring", service="toy")


def test_a_storm_of_errors_raises_the_alert_and_every_panel_has_its_query_answered(
    packages: dict[str, Path], start_service: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    # A model whose answer is never a number: the server answers 500.
    broken = write_package(tmp_path / "broken", "9", shift=float("nan"))
    status = start_service(tmp_path / "toy", manifest("toy", packages["v1"], broken))
    calm, storm = (status["predictors"][name]["url"] for name in ("v1", "broken"))
    targets = [url.removeprefix("http://") for url in (calm, storm)]
    # Durations are for people; a test cannot wait for them.
    text = re.sub(r"for: \d+m", "for: 1s", yaml.safe_dump(RULES))
    exporter = Exporter()
    monitored(exporter)

    def send(predictor: str, times: int) -> set[int]:
        url, body = f"{predictor}/v1/models/toy:predict", {"instances": [ROW]}
        return {httpx.post(url, json=body).status_code for _ in range(times)}

    try:
        with prometheus(tmp_path / "prometheus", [*targets, exporter.address], text) as url:
            assert send(calm, 30) == {200}
            wait_until(url, 'sum(kfloop_requests_total{status="200"})', 30)
            alerts = httpx.get(f"{url}/api/v1/alerts").json()["data"]["alerts"]
            assert "KfloopErrors" not in {alert["labels"]["alertname"] for alert in alerts}
            assert send(storm, 30) == {500}
            wait_until(url, 'ALERTS{alertname="KfloopErrors", alertstate="firing"}', 1)
            wait_until(url, 'ALERTS{alertname="KfloopDrift", alertstate="firing"}', 1)
            wait_until(url, 'ALERTS{alertname="KfloopMonitoringStale", alertstate="firing"}', 1)
            # Rates need traffic within their window, not only before it.
            send(calm, 5)
            unanswered = []
            for query in expressions():
                answer = httpx.get(f"{url}/api/v1/query", params={"query": query}).json()
                assert answer["status"] == "success", (query, answer)
                if not answer["data"]["result"]:
                    unanswered.append(query)
    finally:
        exporter.close()
    # This model asks no feature store, loses no log rows, and has just been told to retrain.
    allowed = ("kfloop_feature", "kfloop_log_dropped", "changes(")
    assert [query for query in unanswered if not any(name in query for name in allowed)] == []
