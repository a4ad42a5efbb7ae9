# SPDX-License-Identifier: Apache-2.0
"""`roll_out_model` on KServe in both modes, with its smoke test, and a dry run of it."""

from pathlib import Path

import pytest
from kubernetes_bench import MODES, REAL, SERVICE, bench

from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment.backend import connect


@pytest.mark.parametrize("mode", MODES)
def test_a_model_is_rolled_out_shown_first_by_a_dry_run_and_rolled_back(
    mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with bench(mode, tmp_path) as cluster:
        assert cluster.roll_out(1).action == "deployed"
        before = connect().get(SERVICE)
        capsys.readouterr()
        kind = {"Standard": "hpa", "Knative": "kpa"}[mode]
        scaling = {"class": kind, "min_replicas": 1, "max_replicas": 3, "target": 70}
        settings = {"autoscaling": scaling, "resources": {"limits": {"cpu": "1"}}}
        assert cluster.roll_out(2, predictor=settings, dry_run=True).action == "dry_run"
        told = capsys.readouterr().out
        assert "+    maxReplicas: 3" in told
        assert f"storageUri: {cluster.model(2)}" in told
        assert connect().get(SERVICE)["spec"] == before["spec"]

        made = cluster.roll_out(2, predictor=settings)
        assert (made.decision, made.action) == ("pass", "promoted"), made.summary
        assert cluster.answering(10) == {"2": 10}
        assert connect().get(SERVICE)["spec"]["predictor"]["maxReplicas"] == 3
        assert cluster.roll_back() == cluster.model(1)
        assert "maxReplicas" not in connect().get(SERVICE)["spec"]["predictor"]
        assert cluster.answering(10) == {"1": 10}


@pytest.mark.skipif(bool(REAL), reason="it takes the mode of the double")
def test_an_autoscaler_of_the_other_mode_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    with bench("Standard", tmp_path) as cluster:
        with pytest.raises(InputError, match="class kpa is of Knative mode"):
            cluster.roll_out(1, predictor={"autoscaling": {"class": "kpa"}})
        assert connect().get(SERVICE) is None
