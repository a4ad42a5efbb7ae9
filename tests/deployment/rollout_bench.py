# SPDX-License-Identifier: Apache-2.0
"""One service of tiny models on the local backend, and what tests do to it."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from kfloop.components.contracts.decision import Decision
from kfloop.components.deployment.backend import connect
from kfloop.components.deployment.canary import Limits, analyse_canary
from kfloop.components.deployment.client import ServiceClient
from kfloop.components.deployment.manifest import record_of
from kfloop.components.deployment.publish import publish_model
from kfloop.components.deployment.roll_back import roll_back_model
from kfloop.components.deployment.rollout import deploy_model, promote_model
from kfloop.components.deployment.service import describe_service
from kfloop.components.deployment.smoke_test import smoke_test_model
from kfloop.serving import local_state

SERVICE = "tiny"
LIMITS = Limits(minimum_requests=30, max_error_rate_increase=0.15)


class Bench:
    """One service, with its live version and what tests do to it."""

    def __init__(self, state: Path, packages: Path, evaluation: Path, work: Path) -> None:
        self.state, self.packages, self.evaluation, self.work = state, packages, evaluation, work
        self.record_file = work / "record.json"
        self.good = self.publish("good")
        self.better = self.publish("better")

    def publish(self, name: str) -> str:
        return publish_model(self.packages / name, self.evaluation, str(self.work / "repository"))

    def publish_damaged(self) -> str:
        package = self.work / "damaged"
        shutil.copytree(self.packages / "good", package, dirs_exist_ok=True)
        (package / "1" / "saved_model.pb").write_bytes(b"not a model")
        return publish_model(package, self.evaluation, str(self.work / "repository"))

    def publish_unservable(self) -> str:
        """A package that the service refuses at once: TensorFlow is not even imported."""
        package = self.work / "unservable"
        shutil.copytree(self.packages / "good", package, dirs_exist_ok=True)
        document = json.loads((package / "model.json").read_text())
        document["entities"] = ["status"]
        (package / "model.json").write_text(json.dumps(document))
        return publish_model(package, self.evaluation, str(self.work / "repository"))

    def deploy(self, model_uri: str, service: str = SERVICE, percent: int = 50) -> str:
        return deploy_model(model_uri, service, self.record_file, percent)

    def promote(self, model_uri: str = "") -> str:
        return promote_model(SERVICE, self.record_file, model_uri)

    def roll_back(self, model_uri: str = "") -> str:
        """Returns the URI that is live then; `outcome` says what was done."""
        live, self.outcome = roll_back_model(SERVICE, self.record_file, "a test", model_uri)
        return live

    def analyse(self, replay: bool) -> Decision:
        decision, page = self.work / "decision.json", self.work / "page.html"
        return analyse_canary(SERVICE, decision, page, LIMITS, wait_seconds=0.5, replay=replay)

    def smoke_test(self, model_uri: str) -> Decision:
        return smoke_test_model(SERVICE, model_uri, self.work / "smoke.json")

    @property
    def directory(self) -> Path:
        return local_state.service_directory(self.state, SERVICE)

    @property
    def record(self):
        return record_of(connect().get(SERVICE))

    def answering(self, requests: int = 20) -> set[str]:
        """The versions that answer at the public address."""
        row = {"distance": 1.0, "stops": 1, "rush": True, "carrier": None}
        with ServiceClient(describe_service(SERVICE).url, SERVICE) as client:
            answers = [client.predict([row]) for _ in range(requests)]
        assert all(answer.ok for answer in answers), answers
        return {answer.model_version for answer in answers}


def run_and_kill(code: str, reached: Callable[[], bool]) -> None:
    """Runs code in a process of its own and kills it with SIGKILL once `reached` is true."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not reached():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
