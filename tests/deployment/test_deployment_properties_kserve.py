# SPDX-License-Identifier: Apache-2.0
"""The same as in memory, on KServe's controllers in both of its modes; fewer examples.

KFLOOP_PROPERTY_EXAMPLES=100 looks longer.
"""

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from kubernetes_bench import REAL, Bench, bench
from rollout_machine import SERVICE, Rollouts

from kfloop.components.deployment.backend import Backend, connect

EXAMPLES = int(os.environ.get("KFLOOP_PROPERTY_EXAMPLES", "6"))

pytestmark = pytest.mark.skipif(bool(REAL), reason="a real cluster does not fail on demand")


class Recorded:
    """A backend that keeps every manifest it wrote, as a rollout reads it back."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.writes: list[dict[str, Any] | None] = []

    def apply(self, manifest: dict[str, Any]) -> int:
        generation = self._backend.apply(manifest)
        self.writes.append(self._backend.get(SERVICE))
        return generation

    def delete(self, service: str) -> None:
        self._backend.delete(service)
        self.writes.append(None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


class OnKServe(Rollouts):
    """On the double of an API server with KServe's controllers, a new one for each example."""

    mode = ""
    timeout = 20.0

    def open(self, lag: int) -> Recorded:
        self.stack = ExitStack()
        self.work = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.bench: Bench = self.stack.enter_context(bench(self.mode, self.work))
        self.bench.kserve.lag = lag
        return Recorded(connect())

    def close(self) -> None:
        self.stack.close()

    def package(self, version: int) -> str:
        return self.bench.model(version)

    def set_failing(self, uri: str, failing: bool) -> None:
        if failing:
            self.bench.kserve.fail(uri, "failed_to_load")
        else:
            self.bench.kserve.heal(uri)

    def written(self) -> list[dict[str, Any] | None]:
        return self.backend.writes


class OnStandard(OnKServe):
    """`spec.canary`, weights of the Gateway API."""

    mode = "Standard"


class OnKnative(OnKServe):
    """`canaryTrafficPercent`, revisions."""

    mode = "Knative"


SETTINGS = settings(
    max_examples=EXAMPLES,
    stateful_step_count=10,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestOnStandard = OnStandard.TestCase
TestOnStandard.settings = SETTINGS
TestOnKnative = OnKnative.TestCase
TestOnKnative.settings = SETTINGS
