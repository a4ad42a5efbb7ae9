# SPDX-License-Identifier: Apache-2.0
"""Several devices of one machine: two logical CPUs train as one does."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_training_train import Workspace, binary_table

from kfloop.components.contracts.model_package import read_model_json

# Dropout draws other numbers on every device.
CHANGES = {"epochs": 3, "hyperparameters": {"dropout": 0.0, "class_weights": "balanced"}}
TWO_DEVICES = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_training_devices import CHANGES, interrupted
from test_training_train import Workspace, binary_table
import tensorflow as tf
cpu, = tf.config.list_physical_devices("CPU")
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, two)
workspace = Workspace(Path(sys.argv[2]))
workspace.train(binary_table(rows=1001), "stream", input="stream", **CHANGES)
interrupted(workspace, "memory", sys.argv[2] + "/checkpoint")
"""


def interrupted(workspace: Workspace, name: str, checkpoint: str) -> None:
    """Trains until the second epoch is done, dies, and goes on."""
    from test_training_train import ROLES, SETTINGS

    from kfloop.components.training.train import learn

    def die(epoch, _):
        if epoch == 1:
            raise KeyboardInterrupt

    settings = replace(SETTINGS, checkpoint_uri=checkpoint, input="memory", **CHANGES)
    root = workspace.root
    with pytest.raises(KeyboardInterrupt):
        learn(root / "train", root / "schema.pbtxt", ROLES, settings, die)
    workspace.train(binary_table(rows=1001), name, checkpoint_uri=checkpoint, **CHANGES)


def test_two_devices_share_every_batch_and_end_where_one_does(tmp_path):
    here = str(Path(__file__).parent)
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES, here, str(tmp_path)],
        env=variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = "2 devices, each batch shared by MirroredStrategy: CPU ("
    assert done.stdout.count(f"trained on {said}") == 3
    assert "Going on after epoch 2 of the checkpoint." in done.stdout
    two = {name: read_model_json(tmp_path / name) for name in ("memory", "stream")}
    assert two["memory"].framework["devices"] == "2"
    assert two["memory"].framework["trained_on"].startswith(said)

    (tmp_path / "one").mkdir()
    alone = Workspace(tmp_path / "one")
    for data in ("memory", "stream"):
        one = alone.train(binary_table(rows=1001), data, input=data, **CHANGES)
        assert one.framework["devices"] == "1"
        assert one.metrics == pytest.approx(two[data].metrics, rel=1e-4), json.dumps(one.metrics)
