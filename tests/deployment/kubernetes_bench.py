# SPDX-License-Identifier: Apache-2.0
"""A cluster for tests of rollouts: the double, or a real one named by KFLOOP_TEST_KUBECONFIG.

CONTRIBUTING.md says what a real cluster needs, and what the variables of these tests mean.
"""

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from doubles import ApiServer, KServe
from doubles.models import Predict, model_for

from kfloop.components.contracts.decision import Decision
from kfloop.components.contracts.deployment_record import DeploymentRecord
from kfloop.components.contracts.model_package import (
    GOLDEN,
    REFERENCE,
    Feature,
    ModelPackage,
    write_model_json,
)
from kfloop.components.deployment import kubernetes_backend, kubernetes_failures
from kfloop.components.deployment.backend import connect
from kfloop.components.deployment.client import ServiceClient
from kfloop.components.deployment.manifest import record_of
from kfloop.components.deployment.roll_back import roll_back_model
from kfloop.components.deployment.roll_out import roll_out_model
from kfloop.components.deployment.rollout import deploy_model, promote_model, shift_traffic
from kfloop.components.deployment.smoke_test import smoke_test_model

REAL = os.environ.get("KFLOOP_TEST_KUBECONFIG", "")
REAL_MODELS = os.environ.get("KFLOOP_TEST_MODELS", "")
NAMESPACE = os.environ.get("KFLOOP_TEST_NAMESPACE", "") if REAL else "ml"
SERVICE, CLAIM = ("kfloop-test" if REAL else "flights"), "models"
BOTH_MODES = ["Standard", "Knative"]
MODES = os.environ.get("KFLOOP_TEST_MODES", "Standard").split(",") if REAL else BOTH_MODES
TIMEOUT = 300.0 if REAL else 60.0
# What every version answers, and what version 4 does not.
ROW = {"distance": 1.0, "stops": 0, "rush": True, "carrier": "A"}
BAD_ROW = ROW | {"stops": 3}
FLAKY = 4


def write_package(directory: Path, version: int) -> None:
    """Writes the small files of a package; the double needs no SavedModel."""
    kinds = {"distance": "float", "stops": "int", "rush": "bool", "carrier": "string"}
    features = [Feature(name, kind) for name, kind in kinds.items()]
    package = ModelPackage(
        name="flights", task="binary", label="late", features=features, version=str(version)
    )
    (directory / "reference").mkdir(parents=True)
    write_model_json(package, directory)
    distance = [float(100 * row) for row in range(20)]
    rows = {
        "distance": distance,
        "stops": [row % 3 for row in range(20)],
        "rush": [row % 2 == 0 for row in range(20)],
        "carrier": ["AB"[row % 2] for row in range(20)],
        "prediction": [round(min(1.0, value / 2000 + version / 100), 6) for value in distance],
    }
    for file in (REFERENCE, GOLDEN):
        pq.write_table(pa.table(rows), directory / file)


class Bench:
    """A cluster with a service, and what tests do to it."""

    def __init__(self, mode: str, api: ApiServer, kserve: KServe, work: Path) -> None:
        self.mode, self.api, self.kserve, self.work = mode, api, kserve, work
        self.models, self.record_file = work, work / "record"

    def model(self, version: int) -> str:
        """Returns the URI of a model version, which is made when it is asked for first."""
        if REAL:
            return f"{REAL_MODELS.rstrip('/')}/{version}"
        directory = self.models / CLAIM / "flights" / str(version)
        uri = f"pvc://{CLAIM}/flights/{version}"
        if not directory.exists():
            write_package(directory, version)
            model = model_for(str(directory), {})
            if version == FLAKY:
                model.predict = _flaky(model.predict)
            self.kserve.serve(uri, model)
        return uri

    def deploy(self, version: int, percent: int = 0, **more: Any) -> str:
        more = {"timeout_seconds": TIMEOUT} | more
        return deploy_model(self.model(version), SERVICE, self.record_file, percent, **more)

    def roll_out(self, version: int, steps: Sequence[int] = (), **more: Any) -> Decision:
        return roll_out_model(
            self.model(version),
            SERVICE,
            self.work / "decision.json",
            self.work / "page.html",
            self.record_file,
            [*steps],
            timeout_seconds=TIMEOUT,
            **more,
        )

    def smoke_test(self, version: int) -> str:
        made = smoke_test_model(SERVICE, self.model(version), self.work / "decision")
        assert made.decision == "pass", made.summary
        return made.decision

    def shift(self, percent: int) -> str:
        return shift_traffic(SERVICE, percent, self.record_file, timeout_seconds=TIMEOUT)

    def promote(self, version: int) -> str:
        return promote_model(
            SERVICE, self.record_file, self.model(version), timeout_seconds=TIMEOUT
        )

    def roll_back(self, version: int | None = None) -> str:
        uri = self.model(version) if version else ""
        live, _ = roll_back_model(SERVICE, self.record_file, "a test", uri, timeout_seconds=TIMEOUT)
        return live

    @property
    def record(self) -> DeploymentRecord:
        manifest = connect().get(SERVICE)
        assert manifest is not None
        return record_of(manifest)

    @property
    def live(self) -> str:
        """The version that the record says is live, and `+` with the candidate's."""
        record = self.record
        return record.stable.version + (f"+{record.candidate.version}" if record.candidate else "")

    def answering(self, requests: int = 40) -> Counter[str]:
        """The versions that answer at the public address."""
        with ServiceClient(connect().status(SERVICE).url, SERVICE) as client:
            answers = [client.predict([ROW]) for _ in range(requests)]
        assert all(answer.ok for answer in answers), answers
        return Counter(answer.model_version for answer in answers)

    def pods(self) -> set[str]:
        return {pod["metadata"]["name"] for pod in self.api.list("pods", NAMESPACE)}

    def run_and_kill(self, code: str, write: int) -> bool:
        """Runs code in another process and kills it right after its nth write of the service.

        Returns:
            Whether it was killed; else it ended before that.
        """
        started = threading.Event()
        processes: list[subprocess.Popen[bytes]] = []
        known = self.api.get("inferenceservices", SERVICE, NAMESPACE)
        states = [_written(known)]

        def written(event: str, kind: str, stored: dict[str, Any]) -> None:
            if not kind.startswith("inferenceservices") or _written(stored) == states[-1]:
                return
            states.append(_written(stored))
            if len(states) == write + 1:
                started.wait(10)
                processes[0].kill()

        self.api.on_write(written)
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", code], env=dict(os.environ), stdout=subprocess.DEVNULL
            )
        )
        started.set()
        status = processes[0].wait(60)
        self.api.store.listeners.pop()
        assert status in (0, -9), status
        return status == -9


def _flaky(predict: Predict) -> Predict:
    def predicted(rows: list[Any]) -> Sequence[Any]:
        if any(row.get("stops") == BAD_ROW["stops"] for row in rows):
            raise RuntimeError("the model has no answer to this row")
        return predict(rows)

    return predicted


def _written(stored: dict[str, Any] | None) -> tuple[Any, ...]:
    """What a rollout writes of a service, and no controller."""
    metadata = stored["metadata"] if stored else {}
    return metadata.get("generation"), metadata.get("annotations")


@contextmanager
def bench(mode: str, work: Path, **settings: Any) -> Iterator[Bench]:
    """A bench on a cluster with this default mode, whose controllers run in a thread."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("KFLOOP_STATE", "KUBERNETES_SERVICE_HOST", "KFLOOP_KSERVE_MODE"):
            patch.delenv(name, raising=False)
        if REAL:
            patch.setenv("KUBECONFIG", REAL)
            patch.setenv("KFLOOP_NAMESPACE", NAMESPACE)
            patch.setenv("KFLOOP_KSERVE_MODE", mode)
            connect().delete(SERVICE)  # what a test that was killed left
            try:
                yield Bench(mode, None, None, work)  # type: ignore[arg-type]  # there is no double
            finally:
                connect().delete(SERVICE)
            return
        patch.setattr(kubernetes_backend, "POLL_SECONDS", 0.02)
        patch.setattr(kubernetes_backend, "DRAIN_SECONDS", 0.3)
        patch.setattr(kubernetes_failures, "SETTLED_SECONDS", 0.3)
        patch.setattr(kubernetes_failures, "UNPROVEN_SECONDS", 0.6)
        patch.setattr(kubernetes_failures, "UNSCHEDULABLE_SECONDS", 0.6)
        patch.setenv("KFLOOP_PVC_ROOT", str(work))
        (work / CLAIM).mkdir()
        with ApiServer(namespaces=[NAMESPACE]) as api, KServe(api, mode=mode, **settings) as kserve:
            kubeconfig = api.kubeconfig(work / "kubeconfig", namespace=NAMESPACE)
            patch.setenv("KUBECONFIG", str(kubeconfig))
            with kserve.running(0.02):
                yield Bench(mode, api, kserve, work)
