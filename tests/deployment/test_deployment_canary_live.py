# SPDX-License-Identifier: Apache-2.0
"""The canary analysis of a real service: by its log, its metrics, Prometheus and its shadow."""

import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest
from doubles.prometheus import prometheus

from kfloop.components.contracts.dataset import write_dataset
from kfloop.components.contracts.decision import Decision, Reason
from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment.backend import connect
from kfloop.components.deployment.canary import analyse_canary, harmful_now
from kfloop.components.deployment.canary_checks import Limits
from kfloop.components.deployment.canary_sources import Source
from kfloop.components.deployment.client import ServiceClient
from kfloop.components.deployment.manifest import record_of
from kfloop.components.deployment.publish import publish_model
from kfloop.components.deployment.rollout import deploy_model
from kfloop.components.deployment.traffic import with_shadow
from kfloop.serving import local_state

SERVICE = "watched"
LIMITS = Limits(minimum_requests=30, max_error_rate_increase=0.15)


@dataclass
class Watched:
    """A service with a live version, and what tests do to its candidates."""

    packages: Path
    evaluation: Path
    work: Path
    deployed: dict[str, str] = field(default_factory=dict)

    def publish(self, name: str) -> str:
        return publish_model(self.packages / name, self.evaluation, str(self.work / "repository"))

    def deploy(self, name: str, percent: int = 50) -> str:
        uri = self.publish(name)
        deploy_model(uri, SERVICE, self.work / "record.json", percent)
        return uri

    def candidate(self, name: str) -> str:
        """Deploys a candidate unless it is there: loading one takes seconds."""
        manifest = connect().get(SERVICE)
        assert manifest is not None
        candidate = record_of(manifest).candidate
        if candidate is None or candidate.storage_uri != self.deployed.get(name):
            self.deployed[name] = self.deploy(name)
        return self.deployed[name]

    def send(self, requests: int) -> list[int]:
        """Sends single rows to the public address, and waits until they are logged."""
        backend = connect()
        with ServiceClient(backend.status(SERVICE).url, SERVICE) as client:
            rows = [{"distance": 40.0 * i, "stops": i % 4, "rush": True} for i in range(requests)]
            # Ids of one's own: the same requests go to the same side in every run.
            statuses = [
                client.predict([row | {"carrier": "A"}], f"sent-{number}").status
                for number, row in enumerate(rows)
            ]
        backend.flush_log(SERVICE)
        return statuses

    def analyse(
        self, source: Source | None = None, replay: bool = True, **more: object
    ) -> Decision:
        decision, self.page_file = self.work / "decision.json", self.work / "page.html"
        return analyse_canary(
            SERVICE, decision, self.page_file, LIMITS, 0.5, replay, source=source, **more
        )

    @property
    def page(self) -> str:
        return self.page_file.read_text()


@pytest.fixture(scope="module")
def watched(
    state: Path, packages: Path, evaluation: Path, tmp_path_factory: pytest.TempPathFactory
) -> Watched:
    found = Watched(packages, evaluation, tmp_path_factory.mktemp("watched"))
    found.deploy("good")
    return found


def reasons(decision: Decision) -> dict[str, Reason]:
    return {f"{reason.check} {reason.metric}": reason for reason in decision.reasons}


def test_by_the_log_a_good_candidate_passes_and_the_page_shows_both(watched: Watched) -> None:
    uri = watched.candidate("better")
    decision = watched.analyse()
    assert decision.decision == "pass", decision.summary
    assert {"error_rate increase", "latency p50 ms", "shift mean prediction"} < set(
        reasons(decision)
    )
    for told in (uri, "Not checked", "no labels were given", "<svg", "the inference log"):
        assert told in watched.page
    assert harmful_now(SERVICE, LIMITS) is None
    assert reasons(decision)["minimum_requests requests"].threshold == 30
    decision = watched.analyse(steps=4)
    assert decision.decision == "pass", decision.summary
    assert reasons(decision)["minimum_requests requests"].threshold == 38


def test_labelled_rows_are_compared(watched: Watched) -> None:
    uri = watched.candidate("better")
    versions = ["1"] * 100 + [Path(uri).name] * 100
    labels = [i % 2 for i in range(200)]
    # The candidate is wrong about every row, the live version right.
    told = labels[:100] + [1 - label for label in labels[100:]]
    columns = {"model_version": versions, "late": labels, "prediction": [float(x) for x in told]}
    dataset = watched.work / "labelled"
    write_dataset(pa.table(columns), dataset)
    decision = watched.analyse(labels=dataset)
    assert decision.decision == "fail"
    assert reasons(decision)["labels Brier score"].value == pytest.approx(1.0)


def test_by_the_servers_own_metrics(watched: Watched) -> None:
    watched.candidate("better")
    decision = watched.analyse(Source("metrics"))
    assert decision.decision == "pass", decision.summary
    assert "shift mean prediction" not in reasons(decision)
    assert "latency p50 ms" in reasons(decision)
    assert "Predictions on live requests were not compared" in watched.page
    # What came before this analysis does not count, so without new requests nothing is known.
    assert watched.analyse(Source("metrics"), replay=False).decision == "no_data"


def test_by_prometheus(watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched.candidate("better")
    running = connect().status(SERVICE).predictors.values()
    targets = [predictor.url.removeprefix("http://") for predictor in running]
    with prometheus(tmp_path, targets) as url:
        source = Source("prometheus", url)
        assert watched.analyse(source, replay=False).decision == "no_data"
        decision = watched.analyse(source)
        assert decision.decision == "pass", decision.summary
        assert "increase(kfloop_requests_total{" in watched.page
        assert harmful_now(SERVICE, LIMITS, source=source) is None


def test_a_source_that_does_not_answer_is_told(watched: Watched) -> None:
    watched.candidate("better")
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(InputError, match="does not answer"):
        watched.analyse(Source("prometheus", nobody))
    with pytest.raises(InputError, match="give prometheus_url"):
        Source("prometheus")
    with pytest.raises(InputError, match="take log, metrics or prometheus"):
        Source("statsd")


def test_a_candidate_that_fails_requests_is_found_out_before_the_wait_is_over(
    watched: Watched,
) -> None:
    watched.deploy("flaky")
    assert harmful_now(SERVICE, LIMITS) is None
    statuses = watched.send(400)
    assert 30 < sum(status != 200 for status in statuses) < 70
    found = harmful_now(SERVICE, Limits())
    assert found is not None and found.decision == "fail"
    assert not reasons(found)["error_rate increase"].passed
    # It does not even answer its own reference rows: no wait for requests.
    decision = watched.analyse(replay=False)
    assert decision.decision == "fail"
    assert "does not answer the reference rows" in reasons(decision)["agreement prediction"].why


def test_a_shadowed_candidate_is_judged_by_copies_alone(watched: Watched, state: Path) -> None:
    watched.deploy("better", percent=0)
    backend = connect()
    manifest = backend.get(SERVICE)
    assert manifest is not None
    backend.apply(with_shadow(manifest, 100))
    directory = local_state.service_directory(state, SERVICE)
    while local_state.read_status(directory)["shadow"]["percent"] != 100:
        time.sleep(0.05)
    watched.send(60)
    decision = watched.analyse(replay=False)
    assert decision.decision == "pass", decision.summary
    agreement = reasons(decision)["shadow_agreement prediction"]
    assert isinstance(agreement.value, float) and agreement.value < 0.05
    assert "of them copies" in watched.page
    watched.deploy("inverted", percent=0)
    watched.send(60)
    found = harmful_now(SERVICE, LIMITS)
    assert found is not None
    assert not reasons(found)["shadow_agreement prediction"].passed
