"""The Kubeflow Model Registry as the registry, over HTTP; and which model is the champion."""

from pathlib import Path

import pytest
from model_registry_server import model_registry
from test_deployment_register import published

from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment.champion import find_champion
from kfloop.components.deployment.register import register_model


def test_a_version_is_registered_once_with_metrics_lineage_and_alias(
    evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KFLOOP_STATE", raising=False)
    first, second = published(tmp_path, "1"), published(tmp_path, "2")
    with model_registry() as (url, store):
        uri = f"kubeflow+{url}"
        assert find_champion("m", "m", uri) == ""
        for _ in range(2):
            assert register_model(first, evaluation, uri, "champion", "run-7") == "m/1"
        assert register_model(second, evaluation, uri) == "m/2"
        assert find_champion("m", "m", uri) == first
        register_model(second, evaluation, uri, "champion")
        assert find_champion("m", "m", uri) == second

        assert [each["name"] for each in store.entities["registered_models"]] == ["m"]
        versions = store.entities["model_versions"]
        assert [each["name"] for each in versions] == ["1", "2"]
        properties = versions[0]["customProperties"]
        assert properties["auc"]["double_value"] == 0.8
        assert properties["auc.low"]["double_value"] == 0.7
        assert properties["epochs"]["string_value"] == "3"
        lineage = {
            "dataset_fingerprint": "d" * 64,
            "feature_service": "fs",
            "git_commit": "abc",
            "pipeline_run": "run-7",
        }
        for key, value in lineage.items():
            assert properties[f"kfloop.{key}"]["string_value"] == value
        assert properties["kfloop.image"]["string_value"].startswith("kfloop/training:")
        assert [each["uri"] for each in store.entities["artifacts"]] == [first, second]


def test_a_registration_that_was_cut_short_is_finished(evaluation: Path, tmp_path: Path) -> None:
    first = published(tmp_path, "1")
    with model_registry() as (url, store):
        register_model(first, evaluation, f"kubeflow+{url}")
        store.entities["artifacts"].clear()
        register_model(first, evaluation, f"kubeflow+{url}")
        assert [each["uri"] for each in store.entities["artifacts"]] == [first]


def test_the_token_of_the_environment_is_sent(
    evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = published(tmp_path, "1")
    with model_registry("secret") as (url, _):
        with pytest.raises(InputError, match=r"answered GET .*registered_model with 401"):
            register_model(first, evaluation, f"kubeflow+{url}")
        monkeypatch.setenv("KF_REGISTRY_TOKEN", "secret")
        assert register_model(first, evaluation, f"kubeflow+{url}") == "m/1"


def test_a_registry_that_cannot_be_reached_is_one_sentence(
    evaluation: Path, tmp_path: Path
) -> None:
    with model_registry() as (url, _):
        pass
    with pytest.raises(InputError, match="cannot be reached"):
        register_model(published(tmp_path, "1"), evaluation, f"kubeflow+{url}")


def test_the_champion_of_an_mlflow_registry_moves_with_the_alias(
    evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KFLOOP_STATE", raising=False)
    uri = f"sqlite:///{tmp_path / 'registry.db'}"
    assert find_champion("m", "m", uri) == ""
    assert not (tmp_path / "registry.db").exists()
    first, second = published(tmp_path, "1"), published(tmp_path, "2")
    register_model(first, evaluation, uri)
    assert find_champion("m", "m", uri) == ""
    register_model(first, evaluation, uri, "champion")
    register_model(second, evaluation, uri)
    assert find_champion("m", "m", uri) == first
    assert find_champion("other", "m", uri) == ""
    assert find_champion("m", "m", "none") == ""
