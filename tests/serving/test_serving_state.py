# SPDX-License-Identifier: Apache-2.0
"""The manifest and the directory of a local service, without a service."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving_helpers import manifest

from kfloop.components.contracts.errors import InputError
from kfloop.serving import local_state


def test_generation_grows_with_the_spec_only(tmp_path: Path) -> None:
    document = manifest("toy", Path("/m/v1"))
    first = local_state.apply_manifest(tmp_path, document)
    same = local_state.apply_manifest(tmp_path, document)
    document["metadata"]["annotations"]["note"] = "x"
    noted = local_state.apply_manifest(tmp_path, document)
    changed = local_state.apply_manifest(tmp_path, manifest("toy", Path("/m/v2")))
    versions = [
        (m["metadata"]["generation"], m["metadata"]["resourceVersion"])
        for m in (first, same, noted, changed)
    ]
    assert versions == [(1, "1"), (1, "1"), (1, "2"), (2, "3")]
    assert local_state.read_manifest(tmp_path) == changed


def test_a_change_made_from_an_old_version_is_refused(tmp_path: Path) -> None:
    local_state.apply_manifest(tmp_path, manifest("toy", Path("/m/v1")))
    local_state.apply_manifest(tmp_path, manifest("toy", Path("/m/v2")), "1")
    with pytest.raises(local_state.ConflictError):
        local_state.apply_manifest(tmp_path, manifest("toy", Path("/m/v3")), "1")


def test_concurrent_writers_never_lose_a_generation(tmp_path: Path) -> None:
    documents = [manifest("toy", Path(f"/m/v{number}")) for number in range(20)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda document: local_state.apply_manifest(tmp_path, document), documents))
    stored = local_state.read_manifest(tmp_path)
    assert stored and stored["metadata"]["generation"] == 20


@pytest.mark.parametrize("percent", [150, -1, "10", 10.5, True])
def test_traffic_percent_is_checked(tmp_path: Path, percent: Any) -> None:
    with pytest.raises(InputError, match="trafficPercent"):
        local_state.apply_manifest(tmp_path, manifest("toy", Path("/m/v1"), Path("/m/v2"), percent))
    assert local_state.read_manifest(tmp_path) is None


def test_predictor_names_must_differ(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="different"):
        local_state.apply_manifest(tmp_path, manifest("toy", Path("/a/v1"), Path("/b/v1")))


def test_a_manifest_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="storageUri"):
        local_state.apply_manifest(tmp_path, {"spec": {"predictor": {}}})


@pytest.mark.parametrize("name", ["", "../x", "Upper", "a/b", "x" * 64])
def test_unusable_service_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="cannot name a service"):
        local_state.service_directory("/state", name)


def test_stale_files_do_not_look_alive(tmp_path: Path) -> None:
    local_state.apply_manifest(tmp_path, manifest("toy", Path("/m/v1")))
    (tmp_path / "lock").write_text("1")
    (tmp_path / "status.json").write_text(
        '{"pid": 1, "observedGeneration": 1, "predictors": {"v1": {"ready": true}}}'
    )
    status = local_state.read_status(tmp_path)
    assert (status["running"], status["predictors"]) == (False, {})
    assert status["conditions"][0]["reason"] == "NotRunning"
    assert not local_state.stop(tmp_path)
    with pytest.raises(InputError, match="does not run"):
        local_state.wait_ready(tmp_path, timeout=5)


def test_a_service_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"manifest\.json"):
        local_state.start(tmp_path, "python3", tmp_path)
    local_state.apply_manifest(tmp_path, manifest("toy", Path("/m/v1")))
    # Empty, and found before a kfloop that is installed beside the interpreter.
    empty = tmp_path / "no-code" / "kfloop"
    empty.mkdir(parents=True)
    (empty / "__init__.py").touch()
    with pytest.raises(InputError, match=r"ended with code 1.*kfloop"):
        local_state.start(tmp_path, "python3", empty.parent)
