# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
from mlflow import MlflowClient
from model_registry_server import model_registry

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import Feature, ModelPackage, write_model_json
from kfloop.components.contracts.package_storage import read_package
from kfloop.components.deployment.champion import update_champion
from kfloop.components.deployment.manifest import (
    Manifest,
    new_service,
    promoted,
    restored,
    with_canary,
)
from kfloop.components.deployment.register import register_model
from kfloop.components.deployment.registry import find_registered
from kfloop.components.deployment.targets import target_of
from kfloop.serving import local_state


def published(directory: Path, version: str, name: str = "m") -> str:
    package = ModelPackage(
        name,
        "binary",
        "y",
        [Feature("a", "float")],
        version=version,
        dataset_fingerprint="d" * 64,
        feature_service="fs",
        git_commit="abc",
        image="registry.example.com/training@sha256:" + "1" * 64,
        training_window={"since": "2013-01-01", "until": "2013-06-01", "rows": 10},
        hyperparameters={"layers": [4, 2], "epochs": 3},
    )
    path = directory / name / version
    path.mkdir(parents=True)
    write_model_json(package, path)
    return str(path)


def test_a_version_is_registered_once_with_metrics_lineage_and_files(
    state: Path, evaluation: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = published(tmp_path, "1"), published(tmp_path, "2")
    assert register_model(first, evaluation, run_id="run-7") == "m/1"
    # Nothing but our own line: neither migrations nor MLflow's hints.
    assert capfd.readouterr().out.count("\n") == 1
    assert register_model(first, evaluation) == "m/1"
    assert register_model(second, evaluation) == "m/2"

    client = MlflowClient(f"sqlite:///{state / 'mlflow.db'}")
    assert len(client.search_model_versions("name = 'm'")) == 2
    version = client.get_model_version("m", "1")
    assert version.source == first
    assert version.tags["kfloop.dataset_fingerprint"] == "d" * 64
    assert version.tags["kfloop.version"] == "1"
    assert version.tags["kfloop.pipeline_run"] == "run-7"
    assert version.tags["kfloop.image"] == "registry.example.com/training@sha256:" + "1" * 64
    assert "kfloop.schema_fingerprint" not in version.tags
    run = client.get_run(version.run_id)
    assert run.data.metrics == {"auc": 0.8, "auc.low": 0.7, "auc.high": 0.9}
    assert run.data.params["epochs"] == "3"
    assert run.data.tags["kfloop.git_commit"] == "abc"
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("training data", "d" * 36)
    files = {each.path for each in client.list_artifacts(version.run_id)}
    assert files == {"evaluation.json", "model.json"}


class Service:
    """A service's manifest on the laptop, changed as rollouts change it, without processes."""

    def __init__(self, state: Path, name: str) -> None:
        self.directory = local_state.services_directory(state) / name
        self.name = name

    def write(self, manifest: Manifest) -> None:
        local_state.apply_manifest(self.directory, manifest)

    def start(self, uri: str) -> None:
        self.write(new_service(self.name, "local", target_of(read_package(uri), uri), {}, "now"))

    def promote(self, uri: str) -> None:
        target = target_of(read_package(uri), uri)
        self.write(promoted(with_canary(self.manifest, target, 20, "now"), "now"))

    def roll_back(self) -> None:
        self.write(restored(self.manifest, "complaints", "now"))

    def remove(self) -> None:
        (self.directory / "manifest.json").unlink()

    @property
    def manifest(self) -> Manifest:
        found = local_state.read_manifest(self.directory)
        assert found
        return found


@pytest.mark.parametrize("kind", ["mlflow", "kubeflow"])
def test_the_champion_is_what_is_live_after_promotions_and_roll_backs(
    kind: str, evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFLOOP_STATE", str(tmp_path / "state"))
    first, second, third = (published(tmp_path, version) for version in "123")
    with model_registry() as (url, _):
        uri = f"kubeflow+{url}" if kind == "kubeflow" else f"sqlite:///{tmp_path / 'r.db'}"
        service = Service(tmp_path / "state", "m")
        service.start(first)
        assert update_champion("m", uri) == ""  # nothing is registered yet
        for each in (first, second):
            register_model(each, evaluation, uri)
        for _ in range(2):
            assert update_champion("m", uri) == "m/1"
        service.promote(second)
        assert update_champion("m", uri) == "m/2"
        service.roll_back()
        assert update_champion("m", uri) == "m/1"
        assert find_registered(uri, "m", "champion") == first
        # What is live and was never registered leaves nobody, rather than somebody else.
        service.promote(third)
        assert update_champion("m", uri) == ""
        assert find_registered(uri, "m", "champion") == ""
        register_model(third, evaluation, uri)
        assert update_champion("m", uri) == "m/3"
        service.remove()
        assert update_champion("m", uri, name="m") == ""
        assert find_registered(uri, "m", "champion") == ""
    assert update_champion("m", "none") == "none"


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


def test_a_registry_that_cannot_be_written_is_told_at_once(
    evaluation: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no directory")
    (tmp_path / "directory").mkdir()
    package = published(tmp_path, "1")
    for place in ("file/mlflow.db", "directory"):
        registry = f"sqlite:///{tmp_path / place}"
        with pytest.raises(InputError, match=f"The registry {tmp_path / place} cannot be written"):
            register_model(package, evaluation, registry)
