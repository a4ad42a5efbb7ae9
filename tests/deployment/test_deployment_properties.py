# SPDX-License-Identifier: Apache-2.0
"""Whatever happens to rollouts, the service ends with a version that passed.

KFLOOP_PROPERTY_EXAMPLES=500 looks longer.
"""

import functools
import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, settings
from memory_backend import DataPlane, MemoryBackend, write_package
from rollout_machine import Rollouts

from kfloop.components.deployment import client

EXAMPLES = int(os.environ.get("KFLOOP_PROPERTY_EXAMPLES", "30"))


class InMemory(Rollouts):
    """On the cluster in memory; all examples share packages and the address that answers."""

    data_plane: DataPlane

    def open(self, lag: int) -> MemoryBackend:
        return MemoryBackend(self.data_plane, lag)

    def package(self, version: int) -> str:
        path = self.work / "m" / str(version)
        return str(path) if path.exists() else write_package(self.work, str(version))

    def set_failing(self, uri: str, failing: bool) -> None:
        (self.backend.failing.add if failing else self.backend.failing.discard)(uri)

    def written(self) -> list[dict[str, Any] | None]:
        return self.backend.writes


@pytest.fixture(scope="module", autouse=True)
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    InMemory.work = tmp_path_factory.mktemp("packages")
    InMemory.data_plane = DataPlane()
    with pytest.MonkeyPatch.context() as patch:
        # A context for TLS takes longer than the request, and there is no TLS.
        patch.setattr(client.httpx, "Client", functools.partial(httpx.Client, verify=False))
        yield
    InMemory.data_plane.close()


TestInMemory = InMemory.TestCase
TestInMemory.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
