# SPDX-License-Identifier: Apache-2.0
"""feature_store.yaml: what is left open comes from the environment, and secrets stay there."""

from pathlib import Path

import pytest
import yaml
from feature_repos import write_repo, write_tables

from kfloop.components.contracts.errors import InputError
from kfloop.components.features.repository import apply, open_store


def user_repo(path: Path, config: str) -> Path:
    repo = write_repo(path)
    (repo / "feature_store.yaml").write_text(config)
    return repo


def test_the_environment_fills_in_and_the_artifact_keeps_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = write_tables(tmp_path / "tables")
    user = user_repo(tmp_path / "user", "registry: ${REGISTRY}/registry.db\nonline_store: null\n")
    monkeypatch.setenv("REGISTRY", str(tmp_path / "here"))
    apply(tables, tmp_path / "out", str(user))
    assert (tmp_path / "here" / "registry.db").is_file()
    config = yaml.safe_load((tmp_path / "out" / "feature_store.yaml").read_text())
    assert config["registry"] == "${REGISTRY}/registry.db"
    monkeypatch.delenv("REGISTRY")
    with pytest.raises(InputError, match=r"asks the environment for REGISTRY \(for registry\)"):
        open_store(tmp_path / "out")


@pytest.mark.parametrize(
    ("config", "where"),
    [
        ("registry: {registry_type: sql, path: 'postgresql://me:pw@db/x'}", "registry.path"),
        ("online_store: {type: redis, connection_string: 'r:6379,password=pw'}", "connection_str"),
        ("offline_store: {type: snowflake.offline, password: pw}", "offline_store.password"),
        ("online_store: {type: x, hosts: [{auth_token: pw}]}", "online_store.hosts.0.auth_token"),
    ],
)
def test_a_secret_in_the_file_is_refused(tmp_path: Path, config: str, where: str) -> None:
    user = user_repo(tmp_path / "user", config)
    with pytest.raises(InputError, match=rf"a secret at .*{where}") as error:
        apply(write_tables(tmp_path / "tables"), tmp_path / "out", str(user))
    assert "pw" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("config", ["- a\n- list", "{broken"])
def test_what_is_no_configuration_gets_one_sentence(tmp_path: Path, config: str) -> None:
    user = user_repo(tmp_path / "user", config)
    with pytest.raises(InputError, match=r"feature_store\.yaml") as error:
        apply(write_tables(tmp_path / "tables"), tmp_path / "out", str(user))
    assert "\n" not in str(error.value)


def test_another_offline_store_is_one_line_and_left_alone(tmp_path: Path) -> None:
    tables = write_tables(tmp_path / "tables")
    user = user_repo(tmp_path / "user", "offline_store: {type: duckdb}\n")
    apply(tables, tmp_path / "out", str(user))
    assert open_store(tmp_path / "out").config.offline_store.type == "duckdb"
