# SPDX-License-Identifier: Apache-2.0
"""A TrainJob is submitted once, waited for, and its failure told: on an API server's double."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from doubles import ApiServer
from hypothesis import given
from hypothesis import strategies as st
from kubeflow_trainer_api.models.trainer_v1alpha1_train_job import TrainerV1alpha1TrainJob
from test_training_train import SETTINGS, Workspace, binary_table

from kfloop.components.contracts.dataset import write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import read_model_json
from kfloop.components.training import train_job as train_job_module
from kfloop.components.training.columns import Roles
from kfloop.components.training.settings import TrainSettings
from kfloop.components.training.shared_volume import Volume, job_name
from kfloop.components.training.train import train
from kfloop.components.training.train_job import (
    TrainJobSettings,
    submit_train_job,
    train_job,
)

ROLES = Roles("label", "at", ["machine"])
TRAINING = replace(SETTINGS, epochs=1)
PLURAL = "trainjobs"


@pytest.fixture
def api(tmp_path, monkeypatch):
    with ApiServer() as api:
        api.namespace("ml")
        config = api.kubeconfig(tmp_path / "kubeconfig", namespace="ml")
        monkeypatch.setenv("KUBECONFIG", str(config))
        yield api


class Place:
    """A step's own directory, and the volume it shares with the nodes."""

    def __init__(self, root: Path) -> None:
        self.root, self.volume = root, root / "volume"
        self.volume.mkdir()
        write_dataset(binary_table(rows=300), root / "train")
        (root / "schema.pbtxt").write_text("")

    def submit(self, **changes: Any) -> Any:
        job = TrainJobSettings(
            "kfloop/training-jax:1",
            Volume("shared", str(self.volume)),
            resources={"cpu": 4, "nvidia.com/gpu": 1},
            poll_seconds=0.01,
            timeout_minutes=1,
        )
        return submit_train_job(
            self.root / "train",
            self.root / "schema.pbtxt",
            self.root / "model",
            self.root / "curves.html",
            ROLES,
            TRAINING,
            replace(job, **changes),
        )


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def condition(kind: str, reason: str, message: str = "") -> dict[str, Any]:
    at = "2026-01-01T00:00:00Z"
    return {
        "conditions": [
            {
                "type": kind,
                "status": "True",
                "reason": reason,
                "message": message,
                "lastTransitionTime": at,
            }
        ]
    }


def on_create(api: ApiServer, act: Callable[[dict[str, Any]], None]) -> list[str]:
    """Acts as the controller on every TrainJob; returns the names it has seen, as they come."""
    seen: list[str] = []

    def written(event: str, resource: Any, stored: dict[str, Any]) -> None:
        if event == "ADDED" and stored["kind"] == "TrainJob":
            seen.append(stored["metadata"]["name"])
            threading.Thread(target=act, args=(stored,), daemon=True).start()

    api.on_write(written)
    return seen


def run_nodes(api: ApiServer) -> Callable[[dict[str, Any]], None]:
    """Does what the nodes would: reads the specification that the command names, and trains."""

    def act(stored: dict[str, Any]) -> None:
        trainer = stored["spec"]["trainer"]
        assert trainer["command"] == ["python", "-m", "kfloop.components.training.distributed"]
        assert trainer["env"] == [{"name": "KFLOOP_IMAGE", "value": trainer["image"]}]
        flag, path = trainer["args"]
        spec = json.loads(Path(path).read_text())
        assert flag == "--spec"
        train(
            *(spec[name] for name in ("dataset", "schema", "model", "curves")),
            Roles(**spec["roles"]),
            TrainSettings(**spec["settings"]),
        )
        name = stored["metadata"]["name"]
        api.set_status(PLURAL, name, "ml", condition("Complete", "JobsCompleted"))

    return act


def test_it_brings_the_package_that_the_nodes_wrote_and_submits_once(api, place):
    seen = on_create(api, run_nodes(api))
    package = place.submit()
    assert read_model_json(place.root / "model") == package
    assert package.name == "toy"
    assert (place.root / "curves.html").read_text().startswith("<!doctype html>")

    again = place.submit()  # finds the finished job, and the package on the volume
    assert again == package
    assert len(seen) == 1
    (stored,) = api.list(PLURAL, "ml")
    assert stored["spec"]["activeDeadlineSeconds"] == 60
    assert stored["spec"]["trainer"]["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == "1"


def test_a_lost_answer_and_a_busy_server_make_no_second_job(api, place):
    (place.root / "package").mkdir()
    workspace = Workspace(place.root / "package")
    workspace.train(binary_table(rows=300), epochs=1)

    def act(stored: dict[str, Any]) -> None:
        directory = Path(stored["spec"]["trainer"]["args"][1]).parent
        (workspace.root / "model").rename(directory / "model")
        (directory / "curves.html").write_text("curves")
        api.set_status(PLURAL, stored["metadata"]["name"], "ml", condition("Complete", "Done"))

    seen = on_create(api, act)
    api.faults.next("drop_after", verb="create", resource=PLURAL)
    api.faults.next(503, verb="get", resource=PLURAL, times=2)
    assert place.submit().name == "toy"
    assert len(seen) == 1


def failed_pod(api: ApiServer, name: str) -> None:
    pod = f"{name}-node-0-0"
    manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod,
            "namespace": "ml",
            "labels": {"jobset.sigs.k8s.io/jobset-name": name},
        },
        "spec": {"containers": [{"name": "node", "image": "x"}]},
    }
    api.create(manifest)
    ended = {"exitCode": 137, "reason": "OOMKilled"}
    waits = {"reason": "ImagePullBackOff", "message": "no such image"}
    about = {"ready": False, "restartCount": 0, "image": "x", "imageID": ""}
    statuses = [
        {"name": "node", "state": {"terminated": ended}, **about},
        {"name": "sidecar", "state": {"waiting": waits}, **about},
    ]
    api.set_status("pods", pod, "ml", {"phase": "Failed", "containerStatuses": statuses})
    api.logs["ml", pod] = "Epoch 1/9\nKilled\n"


def test_a_failure_tells_what_the_pods_say_and_the_next_run_starts_anew(api, place, capsys):
    def act(stored: dict[str, Any]) -> None:
        name = stored["metadata"]["name"]
        failed_pod(api, name)
        api.set_status(PLURAL, name, "ml", condition("Failed", "JobsFailed", "jobset failed."))

    seen = on_create(api, act)
    told = (
        r"TrainJob ml/toy-\w{10} failed: JobsFailed: jobset failed; pod toy-\w{10}-node-0-0: "
        "OOMKilled, exit status 137: Epoch 1/9 / Killed; .*ImagePullBackOff: no such image"
    )
    with pytest.raises(InputError, match=told):
        place.submit()
    assert not (place.root / "model").exists()
    api.delete("pods", f"{seen[0]}-node-0-0", "ml")
    with pytest.raises(InputError, match="failed: JobsFailed"):
        place.submit()
    assert len(seen) == 2
    assert "has failed before; it is replaced" in capsys.readouterr().out


def test_a_job_that_takes_too_long_is_deleted_and_one_that_vanishes_is_missed(
    api, place, monkeypatch
):
    monkeypatch.setattr(train_job_module, "GRACE_SECONDS", 0.0)
    with pytest.raises(InputError, match=r"was not done after .* minutes and is deleted"):
        place.submit(timeout_minutes=0.001)
    assert api.list(PLURAL, "ml") == []

    on_create(api, lambda stored: api.delete(PLURAL, stored["metadata"]["name"], "ml"))
    with pytest.raises(InputError, match="was deleted by somebody else"):
        place.submit()


def test_what_the_cluster_lacks_or_refuses_is_said(api, place):
    api.allow("token", user="someone", rules=[])
    config = api.kubeconfig(place.root / "kubeconfig", namespace="ml", token="token")
    with pytest.raises(InputError, match=r"answers 403 .* give this account a Role"):
        place.submit()
    rules = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
    api.allow("token", user="someone", rules=rules)
    api.unregister("trainjobs.trainer.kubeflow.org")
    with pytest.raises(InputError, match=r"knows no TrainJob; install Kubeflow Trainer 2.3"):
        place.submit()
    config.unlink()
    with pytest.raises(InputError, match="There is no cluster to run on"):
        place.submit()


def test_a_dry_run_prints_the_manifest_and_touches_nothing(place, capsys, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(place.root / "nowhere"))
    with pytest.raises(InputError, match="was not submitted"):
        place.submit(dry_run=True)
    assert json.loads(capsys.readouterr().out)["kind"] == "TrainJob"
    assert not list(place.volume.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": ""}, "has no image"),
        ({"volume": Volume("", "/mnt")}, "has no volume claim"),
        ({"volume": Volume("shared", "mnt")}, "must be an absolute path"),
        ({"volume": Volume("shared", "/nowhere")}, "mount the claim 'shared' there"),
        ({"nodes": 0}, "nodes is 0"),
        ({"timeout_minutes": 0}, "timeout_minutes is 0"),
    ],
)
def test_a_wrong_setting_is_named(place, changes, message):
    with pytest.raises(InputError, match=message):
        place.submit(**changes)


@given(
    st.integers(1, 64),
    st.dictionaries(st.sampled_from(["cpu", "memory", "nvidia.com/gpu"]), st.integers(1, 9)),
    st.floats(0.01, 1e5),
)
def test_the_manifest_is_one_of_kubeflow_trainers_own(nodes, resources, minutes):
    settings = TrainJobSettings("i:1", Volume("c", "/mnt"), nodes, resources)
    manifest = train_job("a-1", replace(settings, timeout_minutes=minutes))
    # A field that the models do not know would be missing from what they give back.
    read = TrainerV1alpha1TrainJob.from_dict(manifest)
    assert read is not None
    assert json.loads(read.to_json()) == manifest


@given(st.text(min_size=1, max_size=80))
def test_any_model_name_makes_a_dns_label(name):
    import re

    from kfloop.components.training import shared_volume

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_volume, "fingerprint", lambda path: "f")
        made = job_name(name, {}, "data")
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", made)
    assert len(made) <= 63
