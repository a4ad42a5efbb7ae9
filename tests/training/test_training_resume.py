# SPDX-License-Identifier: Apache-2.0
"""A killed training goes on from its last whole epoch; devices and precision."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_training_train import ROLES, SETTINGS, Workspace, binary_table, signature

from kfloop.components.contracts.dataset import write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import read_model_json
from kfloop.components.training.checkpoint import identity, locked_directory

SLOW = {"epochs": 6, "batch_size": 16, "hyperparameters": {"patience": 6, "schedule": "cosine"}}
TRAIN = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_training_resume import SLOW, Workspace, binary_table
workspace = Workspace(Path(sys.argv[2]))
workspace.train(binary_table(), "model", checkpoint_uri=sys.argv[3], input=sys.argv[4], **SLOW)
"""


@pytest.mark.parametrize("data", ["memory", "stream"])
def test_killed_in_an_epoch_and_run_again_it_ends_with_the_same_loss(tmp_path, capsys, data):
    checkpoint = tmp_path / "checkpoint"
    here = str(Path(__file__).parent)
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", TRAIN, here, str(tmp_path), str(checkpoint), data],
        stdout=subprocess.PIPE,
        text=True,
        # The tests' own packages, pytest among them, are on the path of this process only.
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    for line in process.stdout:
        if line.startswith("Epoch 2/6"):
            break
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    state = checkpoint / "training-checkpoint.npz"
    assert state.is_file()

    workspace = Workspace(tmp_path)
    again = workspace.train(binary_table(), checkpoint_uri=str(checkpoint), input=data, **SLOW)
    printed = capsys.readouterr().out
    assert "Going on after epoch 2 of the checkpoint." in printed
    assert "Epoch 3/6" in printed
    assert "Epoch 2/6" not in printed
    assert not state.exists()
    assert read_model_json(tmp_path / "model") == again

    whole = workspace.train(binary_table(), "whole", input=data, **SLOW)
    assert again.metrics == whole.metrics


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(tmp_path, capsys, monkeypatch):
    workspace = Workspace(tmp_path)
    module = "kfloop.components.training.train.write_package"
    with monkeypatch.context() as patch:
        patch.setattr(module, lambda *_: 1 / 0)  # dies between the last epoch and the package
        with pytest.raises(ZeroDivisionError):
            workspace.train(binary_table(rows=300), epochs=2, checkpoint_uri=str(tmp_path / "c"))
    assert (tmp_path / "c/training-checkpoint.npz").is_file()
    capsys.readouterr()
    workspace.train(binary_table(rows=300), epochs=1, checkpoint_uri=str(tmp_path / "c"))
    printed = capsys.readouterr().out
    assert "is of other data, settings or code; starting over." in printed
    assert "Epoch 1/1" in printed


def test_two_trainings_cannot_share_a_checkpoint_directory(tmp_path):
    workspace = Workspace(tmp_path)
    with locked_directory(str(tmp_path / "c"), lock=True):
        with pytest.raises(InputError, match="Another training uses the checkpoint directory"):
            workspace.train(binary_table(rows=300), epochs=1, checkpoint_uri=str(tmp_path / "c"))
        assert not (tmp_path / "model").exists()
    workspace.train(binary_table(rows=300), epochs=1, checkpoint_uri=str(tmp_path / "c"))
    assert (tmp_path / "model").exists()


def test_whatever_determines_the_result_is_in_the_identity(tmp_path, monkeypatch):
    schema, module = tmp_path / "schema", tmp_path / "module.py"
    schema.write_text("a")
    module.write_text("a = 1")
    write_dataset(binary_table(rows=50), tmp_path / "data")
    settings = replace(SETTINGS, module_uri=str(module), hyperparameters={"width": 3})

    def of(settings=settings, streamed=False, devices=1):
        return identity(tmp_path / "data", schema, ROLES, settings, streamed, devices)

    first = of()
    same = replace(settings, checkpoint_uri="elsewhere", require_gpu=True, input="memory")
    assert of(same) == first
    found = {first, of(streamed=True), of(devices=2), of(replace(settings, seed=8))}
    found.add(of(replace(settings, hyperparameters={"width": 4})))
    module.write_text("a = 2")
    found.add(of())
    schema.write_text("b")
    found.add(of())
    write_dataset(binary_table(rows=51), tmp_path / "data")
    found.add(of())
    monkeypatch.setattr("kfloop.components.training.checkpoint.VERSION", "9.9.9")
    found.add(of())
    assert len(found) == 9


def test_a_training_that_was_done_only_writes_its_package(tmp_path, capsys, monkeypatch):
    workspace = Workspace(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("kfloop.components.training.train.write_package", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            workspace.train(binary_table(rows=300), epochs=2, checkpoint_uri=str(tmp_path / "c"))
    capsys.readouterr()
    workspace.train(binary_table(rows=300), epochs=2, checkpoint_uri=str(tmp_path / "c"))
    assert "Epoch" not in capsys.readouterr().out
    assert read_model_json(tmp_path / "model").metrics["validation_loss"] > 0


def test_a_missing_gpu_is_said_at_once(tmp_path):
    with pytest.raises(InputError, match=r"no GPU: TensorFlow found CPU \(\d+ cores\); TensorFlow"):
        Workspace(tmp_path).train(binary_table(rows=300), require_gpu=True)


def test_bfloat16_learns_and_answers_in_float32(tmp_path):
    workspace = Workspace(tmp_path)
    package = workspace.train(binary_table(), mixed_precision="bfloat16")
    assert package.metrics["validation_auc"] > 0.9
    assert package.hyperparameters["mixed_precision"] == "bfloat16"
    assert package.framework["trained_on"].startswith("CPU")
    outputs = signature(tmp_path / "model").structured_outputs
    assert outputs["probability"].dtype.name == "float32"
    with pytest.raises(InputError, match="must be 'bfloat16' or empty"):
        workspace.train(binary_table(rows=300), mixed_precision="float16")
