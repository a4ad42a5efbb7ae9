# SPDX-License-Identifier: Apache-2.0
"""Dry runs and single steps, on a service in memory whose proofs are real."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from memory_backend import DataPlane, MemoryBackend, write_package

from kfloop.components.contracts.deployment_record import read_record
from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment import roll_back, rollout
from kfloop.components.deployment.dry_run import as_yaml, diff, preview
from kfloop.components.deployment.manifest import record_of, restoring
from kfloop.components.deployment.roll_back import roll_back_model
from kfloop.components.deployment.rollout import deploy_model, promote_model, shift_traffic

SERVICE = "m"


@pytest.fixture(scope="module")
def data_plane() -> Iterator[DataPlane]:
    made = DataPlane()
    yield made
    made.close()


@pytest.fixture
def backend(
    data_plane: DataPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> MemoryBackend:
    """A service with version 1 live."""
    made = MemoryBackend(data_plane)
    for module in (rollout, roll_back):
        monkeypatch.setattr(module, "connect", lambda _: made)
    deploy_model(write_package(tmp_path, "1"), SERVICE, tmp_path / "record.json")
    return made


def test_a_dry_run_of_each_step_writes_nothing_and_shows_the_change(
    backend: MemoryBackend, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second, record = write_package(tmp_path, "2"), tmp_path / "record.json"
    writes = len(backend.writes)
    assert deploy_model(second, SERVICE, record, 10, dry_run=True) == "dry_run"
    assert deploy_model(second, "other", record, dry_run=True) == "dry_run"
    told = capsys.readouterr().out
    assert "+  canary:" in told
    assert "+  - predictor:" in told
    assert "+    trafficPercent: 10" in told
    assert "resourceVersion" not in told
    assert read_record(record).stable.storage_uri == second
    assert len(backend.writes) == writes

    deploy_model(second, SERVICE, record, 10)
    writes = len(backend.writes)
    capsys.readouterr()
    shift_traffic(SERVICE, 30, record, dry_run=True)
    told = capsys.readouterr().out
    assert "-    trafficPercent: 10\n+    trafficPercent: 30" in told
    promote_model(SERVICE, record, dry_run=True)
    assert "-  canary:" in capsys.readouterr().out
    assert roll_back_model(SERVICE, record, "why", dry_run=True)[1] == "dry_run"
    told = capsys.readouterr().out
    assert "a roll back would be: candidate_removed" in told
    assert "-  canary:" in told
    assert len(backend.writes) == writes


def test_a_manifest_is_shown_without_what_the_server_keeps_and_with_its_record_unfolded(
    backend: MemoryBackend,
) -> None:
    manifest = backend.get(SERVICE)
    shown = yaml.safe_load(as_yaml(manifest))
    assert set(shown["metadata"]) == {"name", "namespace", "labels", "annotations"}
    assert shown["metadata"]["annotations"]["kfloop.org/deployment-record"]["state"] == "deployed"
    assert shown["spec"] == manifest["spec"]
    assert diff(as_yaml(manifest), as_yaml(manifest)) == ""
    assert "# nothing" in preview(backend, manifest, manifest)
    assert "the service would be removed" in preview(backend, manifest, None)


def test_a_manifest_that_the_backend_refuses_is_refused_in_a_dry_run_too(
    backend: MemoryBackend,
) -> None:
    manifest = backend.get(SERVICE)
    manifest["spec"]["canary"] = [
        {"trafficPercent": 150, "predictor": manifest["spec"]["predictor"]}
    ]
    with pytest.raises(InputError, match="from 0 to 100"):
        preview(backend, backend.get(SERVICE), manifest)


def test_a_roll_back_is_in_two_writes_so_that_something_always_serves(
    backend: MemoryBackend, tmp_path: Path
) -> None:
    second, record = write_package(tmp_path, "2"), tmp_path / "record.json"
    deploy_model(second, SERVICE, record, 10)
    promote_model(SERVICE, record, second)
    backend.writes.clear()
    assert roll_back_model(SERVICE, record, "complaints") == (
        record_of(backend.get(SERVICE)).stable.storage_uri,
        "restored",
    )
    assert [record_of(manifest).state for manifest in backend.writes] == [
        "restoring",
        "rolled_back",
    ]
    assert roll_back_model(SERVICE, record)[1] == "already_rolled_back"
    after = read_record(record)
    assert (after.undone, after.reason) == (second, "complaints")


def test_a_roll_back_that_was_killed_is_completed_and_in_between_nothing_else_happens(
    backend: MemoryBackend, tmp_path: Path
) -> None:
    second, record = write_package(tmp_path, "2"), tmp_path / "record.json"
    deploy_model(second, SERVICE, record, 10)
    promote_model(SERVICE, record, second)
    backend.apply(restoring(backend.get(SERVICE), "complaints", "2026-01-01T00:00:00+00:00"))
    third = write_package(tmp_path, "3")
    for act in (
        lambda: deploy_model(third, SERVICE, record),
        lambda: promote_model(SERVICE, record),
        lambda: shift_traffic(SERVICE, 50, record),
    ):
        with pytest.raises(InputError, match="is being rolled back"):
            act()
    live, outcome = roll_back_model(SERVICE, record)
    assert (live.rsplit("/", 1)[-1], outcome) == ("1", "restored")
    assert read_record(record).reason == "complaints"


def test_a_promotion_that_does_not_come_up_is_undone(
    backend: MemoryBackend, tmp_path: Path
) -> None:
    second, record = write_package(tmp_path, "2"), tmp_path / "record.json"
    deploy_model(second, SERVICE, record, 10)
    backend.failing.add(second)
    with pytest.raises(InputError, match="is live again"):
        promote_model(SERVICE, record, second)
    after = record_of(backend.get(SERVICE))
    assert (after.stable.version, after.undone, after.previous) == ("1", second, None)
    assert after.reason.startswith("promotion failed")
