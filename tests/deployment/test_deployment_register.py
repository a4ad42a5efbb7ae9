from pathlib import Path

import pytest
from mlflow import MlflowClient

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import Feature, ModelPackage, write_model_json
from kfloop.components.deployment.register import register_model


def published(directory: Path, version: str) -> str:
    package = ModelPackage(
        "m",
        "binary",
        "y",
        [Feature("a", "float")],
        version=version,
        dataset_fingerprint="d" * 64,
        feature_service="fs",
        git_commit="abc",
        training_window={"since": "2013-01-01", "until": "2013-06-01", "rows": 10},
        hyperparameters={"layers": [4, 2], "epochs": 3},
    )
    path = directory / "m" / version
    path.mkdir(parents=True)
    write_model_json(package, path)
    return str(path)


def test_a_version_is_registered_once_with_metrics_lineage_and_alias(
    state: Path, evaluation: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = published(tmp_path, "1"), published(tmp_path, "2")
    assert register_model(first, evaluation, alias="champion", run_id="run-7") == "m/1"
    # Nothing but our own line: neither migrations nor MLflow's hints.
    assert capfd.readouterr().out.count("\n") == 1
    assert register_model(first, evaluation, alias="champion") == "m/1"
    assert register_model(second, evaluation) == "m/2"

    client = MlflowClient(f"sqlite:///{state / 'mlflow.db'}")
    assert len(client.search_model_versions("name = 'm'")) == 2
    version = client.get_model_version_by_alias("m", "champion")
    assert (version.version, version.source) in {("1", first), (1, first)}
    assert version.tags["kfloop.dataset_fingerprint"] == "d" * 64
    assert version.tags["kfloop.pipeline_run"] == "run-7"
    assert "kfloop.schema_fingerprint" not in version.tags
    run = client.get_run(version.run_id)
    assert run.data.metrics == {"auc": 0.8, "auc.low": 0.7, "auc.high": 0.9}
    assert run.data.params["epochs"] == "3"
    assert run.data.tags["kfloop.git_commit"] == "abc"

    register_model(second, evaluation, alias="champion")
    assert client.get_model_version_by_alias("m", "champion").source == second


def test_a_registry_that_is_off_says_so(evaluation: Path, tmp_path: Path, capsys) -> None:
    assert register_model(published(tmp_path, "1"), evaluation, "none") == "none"
    assert "off" in capsys.readouterr().out


def test_no_registry_at_all_is_an_error(evaluation: Path, tmp_path: Path, monkeypatch) -> None:
    for variable in ("KFLOOP_STATE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(InputError, match="give an MLflow tracking URI"):
        register_model(published(tmp_path, "1"), evaluation)


def test_a_registry_that_cannot_be_had_is_one_sentence(evaluation: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not be registered in nonsense"):
        register_model(published(tmp_path, "1"), evaluation, "nonsense://x")
