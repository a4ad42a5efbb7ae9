# SPDX-License-Identifier: Apache-2.0
"""`kfloop run`: parameters that come from the command line."""

import pytest

from kfloop.components.contracts.errors import InputError
from kfloop.pipelines.catalogue import compile_pipelines
from kfloop.pipelines.local.pipeline_spec import load_pipeline, resolve_arguments
from kfloop.scripts.run import rollback_arguments


def test_a_roll_back_needs_the_name_of_the_service_and_nothing_else(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    here = rollback_arguments("rollback", "flights", "", cluster=False)
    there = rollback_arguments("rollback", "flights", "ml", cluster=True)
    assert here == {"service": "flights", "namespace": ""}
    # A cluster's registry is known by its address only.
    assert there == {"service": "flights", "namespace": "ml", "registry": "none"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow")
    assert "registry" not in rollback_arguments("rollback", "flights", "ml", cluster=True)
    path = next(p for p in compile_pipelines(tmp_path) if p.name == "rollback.yaml")
    resolve_arguments(load_pipeline(path), here)


@pytest.mark.parametrize(("pipeline", "service"), [("training", "flights"), ("rollback", "")])
def test_a_service_is_named_for_a_roll_back_alone(pipeline: str, service: str) -> None:
    with pytest.raises(InputError, match="kfloop run rollback --service NAME"):
        rollback_arguments(pipeline, service, "ml", cluster=False)
