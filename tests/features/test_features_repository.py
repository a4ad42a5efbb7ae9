# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from feature_repos import DEFINITIONS, write_repo, write_tables

from kfloop.components.contracts.errors import InputError
from kfloop.components.features import steps
from kfloop.components.features.materialize import materialize
from kfloop.components.features.offline_store import STORE
from kfloop.components.features.repository import apply, at_home, open_store


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    return write_tables(tmp_path / "tables")


def test_a_repository_becomes_an_artifact_with_tables_and_registry(
    tables: Path, tmp_path: Path
) -> None:
    user = write_repo(tmp_path / "my-repo")
    metadata = apply(tables, tmp_path / "repo", str(user), "plain")
    assert metadata["project"] == "my_repo"
    assert metadata["feature_services"] == ["computed", "plain"]
    assert metadata["feature_views"] == ["facts", "remaining", "sales"]
    assert metadata["entities"] == ["shop_id"]
    assert metadata["tables"] == {"facts": 2, "sales": 3}
    found = {
        path.relative_to(tmp_path / "repo").as_posix() for path in (tmp_path / "repo").rglob("*")
    }
    assert {"definitions.py", "data/registry.db", "data/sales/part-00000.parquet"} <= found
    assert not any("old" in name or "__pycache__" in name for name in found)
    assert list((user / "__pycache__").iterdir()) == [user / "__pycache__" / "old"]
    config = yaml.safe_load((tmp_path / "repo" / "feature_store.yaml").read_text())
    assert config["registry"] == "data/registry.db"
    assert config["offline_store"] == {"type": STORE}
    assert config["entity_key_serialization_version"] == 3


def test_what_the_user_configured_is_kept_except_a_store_that_loses_rows(
    tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    user = write_repo(tmp_path / "user")
    (user / "feature_store.yaml").write_text(
        "project: mine\nprovider: local\nregistry: reg.db\noffline_store: {type: file}\n"
    )
    assert apply(tables, tmp_path / "repo", str(user))["project"] == "mine"
    assert (tmp_path / "repo" / "reg.db").is_file()
    assert "AsOfOfflineStore in place of file" in capsys.readouterr().out


def test_the_fingerprint_is_about_definitions_and_data(tables: Path, tmp_path: Path) -> None:
    user = write_repo(tmp_path / "user")
    first = apply(tables, tmp_path / "repo", str(user))["fingerprint"]
    assert apply(tables, tmp_path / "repo", str(user))["fingerprint"] == first
    write_repo(user, DEFINITIONS.replace("hours=2", "hours=3"))
    assert apply(tables, tmp_path / "repo", str(user))["fingerprint"] != first


def test_repositories_with_modules_of_one_name_do_not_mix(tables: Path, tmp_path: Path) -> None:
    for number in ("one", "two"):
        changed = DEFINITIONS.replace('name="plain"', f'name="{number}"')
        user = write_repo(tmp_path / number, changed)
        assert number in apply(tables, tmp_path / "repo", str(user))["feature_services"]
    assert "definitions" not in sys.modules


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('name="plain"', 'name="pain"', "'plain' does not exist.*computed, pain"),
        ('source("facts")', 'source("fact")', "'facts' reads data/fact, .* facts, sales"),
        ('name="size"', 'name="sise"', "'facts' needs the column sise.*shop_id, known_at, size"),
        ('"known_at"', '"seen_at"', "needs the column seen_at"),
        ("entities=[shop]", "entities=[shap]", "NameError: name 'shap'"),
        ("import timedelta", "import timedelda", "ImportError"),
        ("shop = Entity(", "shop = Entity((", "SyntaxError"),
        ("features=[sales, facts]", "features=[sales, 7]", "cannot be applied"),
    ],
)
def test_a_mistake_in_the_definitions_gets_one_sentence(
    tables: Path, tmp_path: Path, old: str, new: str, told: str
) -> None:
    user = write_repo(tmp_path / "user", DEFINITIONS.replace(old, new))
    with pytest.raises(InputError, match=told) as error:
        apply(tables, tmp_path / "repo", str(user), "plain")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "repo").exists()


def test_a_place_without_definitions_is_told(tables: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no definitions"):
        apply(tables, tmp_path / "repo", str(tmp_path))


def test_a_loop_without_features_says_so(tmp_path: Path) -> None:
    metadata = steps.apply(tmp_path / "none", tmp_path / "repo")
    assert metadata["feature_service"] == ""
    assert not steps.is_repo(tmp_path / "repo")
    assert steps.materialize(tmp_path / "repo", tmp_path / "online")["feature_views"] == []
    assert not steps.is_repo(tmp_path / "online")
    with pytest.raises(InputError, match="needs a feature repository"):
        steps.apply(tmp_path / "none", tmp_path / "repo", feature_service="plain")


def test_a_loop_without_features_imports_no_feast(tables: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from kfloop.components.features import steps; tables, out = sys.argv[1:];"
        "steps.apply(tables, out + '/repo'); steps.materialize(out + '/repo', out + '/online');"
        "steps.retrieve(tables + '/sales', out + '/repo', out + '/set', '');"
        "assert 'feast' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tables), str(tmp_path)], check=True)


def online(repo: Path, shop: str) -> dict[str, object]:
    with at_home(repo):
        store = open_store(repo)
        answer = store.get_online_features(
            features=store.get_feature_service("computed"),
            entity_rows=[{"shop_id": shop, "asked": 1}],
        ).to_dict()
    return {name: values[0] for name, values in answer.items()}


def test_the_newest_values_are_served_online(tables: Path, tmp_path: Path) -> None:
    apply(tables, tmp_path / "repo", str(write_repo(tmp_path / "user")))
    before = (tmp_path / "repo" / "data" / "registry.db").read_bytes()
    metadata = materialize(tmp_path / "repo", tmp_path / "online")
    assert metadata["until"] == "2024-01-01T13:00:00+00:00"
    assert online(tmp_path / "online", "a") == {
        "shop_id": "a",
        "size": 5.0,
        "left": 1.0,
    }
    assert online(tmp_path / "online", "nobody")["left"] is None
    assert (tmp_path / "repo" / "data" / "registry.db").read_bytes() == before


def test_the_end_of_the_window_is_not_materialized(tables: Path, tmp_path: Path) -> None:
    apply(tables, tmp_path / "repo", str(write_repo(tmp_path / "user")))
    materialize(tmp_path / "repo", tmp_path / "online", until="2024-01-01T13:00:00")
    assert online(tmp_path / "online", "a")["left"] == 0.0
    with pytest.raises(InputError, match="Nothing lies between"):
        materialize(tmp_path / "repo", tmp_path / "online", since="2024-01-02", until="2024-01-01")
