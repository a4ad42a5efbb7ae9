# SPDX-License-Identifier: Apache-2.0
"""The quickstart notebook, executed by Jupyter's own machinery in a directory of its own."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from doubles.kfp_api import KfpApi

from kfloop.pipelines.local import environments
from kfloop.serving.local_state import list_services, stop

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def api():
    with KfpApi() as server:
        yield server


@pytest.fixture(scope="module")
def cells(tmp_path_factory, api) -> list[dict]:
    """The code cells after the notebook was executed."""
    packages = environments.describe(
        "notebook", (ROOT / "notebooks" / "requirements.txt",), overlay=True
    )
    environments.make_ready([packages])
    directory = tmp_path_factory.mktemp("quickstart")
    program = Path(__file__).parent / "execute_notebook.py"
    result = directory / "executed.ipynb"
    try:
        done = subprocess.run(
            [sys.executable, program, packages.path, NOTEBOOK, result],
            cwd=directory,
            env={**os.environ, "KF_PIPELINES_ENDPOINT": api.url},
            capture_output=True,
            text=True,
            check=False,
        )
        left = [each["name"] for each in list_services(directory / "state") if each["running"]]
    finally:
        for service in list_services(directory / "state"):
            stop(service["directory"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert not left
    return [cell for cell in json.loads(result.read_text())["cells"] if cell["cell_type"] == "code"]


def output_of(cells: list[dict], code: str, kind: str) -> str:
    """Returns what the cell with this code showed."""
    (cell,) = [cell for cell in cells if code in "".join(cell["source"])]
    shown = [output["data"] for output in cell["outputs"] if "data" in output]
    return "".join(shown[-1][kind])


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ('page(run, "validate-data")', ("rain_mm", "distance_km")),
        ('page(run, "train-model"', ("loss", "svg")),
        ('page(run, "evaluate-model"', ("rmse", "hill", "harbour")),
        ('page(run, "gate-model"', ("rmse", "pass")),
        ('page(autumn, "detect-drift")', ("rain_mm", "fail")),
        ("report(run)", ("train-model", "deploy-model")),
    ],
)
def test_pages_are_shown_inline(cells, code, words):
    shown = output_of(cells, code, "text/html")
    assert shown.startswith("<iframe srcdoc=")
    assert [word for word in words if word not in shown] == []


def test_the_model_learned_what_the_trips_were_made_of(cells):
    metrics = ast.literal_eval(output_of(cells, 'metadata(run, "evaluate-model"', "text/plain"))
    assert metrics["rmse_low"] < metrics["rmse"] < metrics["rmse_high"] < 4
    # The noise alone has a deviation of 1.5 minutes.
    assert metrics["rmse"] > 1.2
    answer = ast.literal_eval(output_of(cells, "requests.post", "text/plain"))
    hill, harbour = (prediction["value"] for prediction in answer["predictions"])
    assert 3 < hill - harbour < 12


def test_the_same_pipeline_is_submitted(cells, api):
    (run,) = api.runs()
    assert run["pipeline_spec"]["pipelineInfo"]["name"] == "bikes"
    assert run["runtime_config"]["parameters"]["models"] == "gs://your-bucket/models"


def test_the_notebook_is_kept_without_outputs():
    document = json.loads(NOTEBOOK.read_text())
    code = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    assert [cell for cell in code if cell["outputs"] or cell["execution_count"]] == []
    assert all(cell["source"] for cell in document["cells"])
