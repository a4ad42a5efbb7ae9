# SPDX-License-Identifier: Apache-2.0
"""A service of tiny models on the local backend, in a state directory of the test's own."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kfloop.serving import local_state

SERVING_PYTHON = os.environ.get("KFLOOP_SERVING_PYTHON", "")


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the packages that make_package.py makes."""
    if not SERVING_PYTHON:
        pytest.skip("KFLOOP_SERVING_PYTHON is not set: there is no environment to serve models in")
    directory = tmp_path_factory.mktemp("packages")
    script = Path(__file__).with_name("make_package.py")
    subprocess.run([SERVING_PYTHON, str(script), str(directory)], check=True, capture_output=True)
    return directory


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """KFLOOP_STATE for a module; whatever runs in it is stopped at the end."""
    directory = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KFLOOP_STATE", str(directory))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield directory
    for service in local_state.services_directory(directory).glob("*"):
        local_state.stop(service)


@pytest.fixture(scope="session")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation as evaluate_model writes it, as far as deployment reads it."""
    path = tmp_path_factory.mktemp("evaluation") / "evaluation.json"
    undefined = {"value": None, "low": None, "high": None, "why": "one class only"}
    metrics = {"auc": {"value": 0.8, "low": 0.7, "high": 0.9}, "recall": undefined}
    path.write_text(json.dumps({"task": "binary", "rows": 100, "metrics": metrics}))
    return path
