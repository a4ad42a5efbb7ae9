# SPDX-License-Identifier: Apache-2.0
"""Model packages made once, and real services that are stopped however a test ends."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving_helpers import CODE, write_package

from kfloop.serving import local_state


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("packages")
    return {
        "v1": write_package(root / "v1", "1"),
        "v2": write_package(root / "v2", "2", shift=1.0),
        "multiclass": write_package(root / "multiclass", "7", task="multiclass"),
        "regression": write_package(root / "regression", "8", task="regression"),
    }


@pytest.fixture(scope="session")
def start_service() -> Iterator[Callable[..., dict[str, Any]]]:
    """Applies a manifest, starts its service and waits until it is ready."""
    started = []

    def start(directory: Path, document: dict[str, Any], wait: bool = True) -> dict[str, Any]:
        local_state.apply_manifest(directory, document)
        started.append(directory)
        local_state.start(directory, sys.executable, CODE)
        return local_state.wait_ready(directory) if wait else local_state.read_status(directory)

    yield start
    for directory in started:
        local_state.stop(directory)
