# SPDX-License-Identifier: Apache-2.0
"""The Kubeflow Model Registry as the registry, over HTTP; and which model is the champion.

KFLOOP_TEST_MODEL_REGISTRY, a registry's URL, has what does not look into the double run there too;
the models that the tests register stay, archived by nobody.
"""

import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from model_registry_server import model_registry
from test_deployment_register import published

from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment.champion import find_champion
from kfloop.components.deployment.register import register_model
from kfloop.components.deployment.registry import open_registry


def test_a_version_is_registered_once_with_metrics_and_lineage(
    evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KFLOOP_STATE", raising=False)
    first, second = published(tmp_path, "1"), published(tmp_path, "2")
    with model_registry() as (url, store):
        uri = f"kubeflow+{url}"
        assert find_champion("m", "m", uri) == ""
        for _ in range(2):
            assert register_model(first, evaluation, uri, "run-7") == "m/1"
        assert register_model(second, evaluation, uri) == "m/2"
        assert find_champion("m", "m", uri) == ""
        registry = open_registry(uri)
        for at, version in ((first, "m/1"), (second, "m/2")):
            assert registry.set_alias("m", "champion", at) == version
            assert find_champion("m", "m", uri) == at

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
        assert properties["kfloop.image"]["string_value"].startswith("registry.example.com/")
        assert [each["uri"] for each in store.entities["artifacts"]] == [first, second]


@pytest.fixture(params=["double", "real"])
def registry_uri(request: pytest.FixtureRequest) -> Iterator[str]:
    """A registry: the double, and the one that the environment names."""
    if request.param == "double":
        with model_registry() as (url, _):
            yield f"kubeflow+{url}"
    elif url := os.environ.get("KFLOOP_TEST_MODEL_REGISTRY"):
        yield f"kubeflow+{url}"
    else:
        pytest.skip("KFLOOP_TEST_MODEL_REGISTRY names no registry")


def test_versions_are_registered_found_and_made_champion(
    registry_uri: str, evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KFLOOP_STATE", raising=False)
    name = f"kfloop-test-{uuid.uuid4().hex[:12]}"
    packages = [published(tmp_path, str(number), name) for number in range(1, 40)]
    assert find_champion(name, name, registry_uri) == ""
    with ThreadPoolExecutor(4) as pool:
        made = pool.map(lambda _: register_model(packages[0], evaluation, registry_uri), range(4))
        assert list(made) == [f"{name}/1"] * 4
    for number, package in enumerate(packages, 1):
        assert register_model(package, evaluation, registry_uri) == f"{name}/{number}"
    registry = open_registry(registry_uri)
    for number in (1, 39, 20):
        at = packages[number - 1]
        assert registry.set_alias(name, "champion", at) == f"{name}/{number}"
        assert find_champion(name, name, registry_uri) == at


def test_a_registration_that_was_cut_short_is_finished(evaluation: Path, tmp_path: Path) -> None:
    first = published(tmp_path, "1")
    with model_registry() as (url, store):
        register_model(first, evaluation, f"kubeflow+{url}")
        store.entities["artifacts"].clear()
        register_model(first, evaluation, f"kubeflow+{url}")
        assert [each["uri"] for each in store.entities["artifacts"]] == [first]


def test_the_version_of_a_package_is_found_on_any_page(evaluation: Path, tmp_path: Path) -> None:
    with model_registry() as (url, store):
        for version in range(1, 120):
            uri = published(tmp_path, str(version))
            register_model(uri, evaluation, f"kubeflow+{url}")
        registry = open_registry(f"kubeflow+{url}")
        assert registry.set_alias("m", "champion", uri) == "m/119"
        assert registry.set_alias("m", "other", str(tmp_path)) == ""
        assert registry.find("m", "champion") == uri
        assert store.requests.count("GET /registered_models/1/versions") == 4


def test_two_that_register_at_once_make_one_version(evaluation: Path, tmp_path: Path) -> None:
    """Both look before either makes it: the later one is refused, and takes the other's."""
    first = published(tmp_path, "1")
    with model_registry() as (url, store):
        uri = f"kubeflow+{url}"
        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(lambda _: register_model(first, evaluation, uri), range(4)))
        assert made == ["m/1"] * 4
        assert len(store.entities["registered_models"]) == 1
        assert len(store.entities["model_versions"]) == 1


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


def test_a_server_that_is_no_registry_is_told_before_there_is_no_champion() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        uri = f"kubeflow+http://127.0.0.1:{server.server_port}"
        with pytest.raises(InputError, match="with 404: it is not a Kubeflow Model Registry"):
            find_champion("m", "m", uri)
        server.shutdown()


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
    open_registry(uri).set_alias("m", "champion", first)
    register_model(second, evaluation, uri)
    assert find_champion("m", "m", uri) == first
    assert find_champion("other", "m", uri) == ""
    assert find_champion("m", "m", "none") == ""
