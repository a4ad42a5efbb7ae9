# SPDX-License-Identifier: Apache-2.0
"""The same training with Keras on JAX, in one process and in two, and what it exports."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from test_training_train import ROLES, SETTINGS, Workspace, signature, without

from kfloop.components.contracts.dataset import read_dataset, write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import GOLDEN, read_model_json
from kfloop.components.evaluation.evaluate import EvaluateSettings, evaluate
from kfloop.components.training.distributed import train_together

from test_training_train import toy_table  # isort: skip

JAX = os.environ.get("KFLOOP_JAX_PYTHON", "")
ENTRY = ["-m", "kfloop.components.training.distributed", "--spec"]
CHANGES = {"epochs": 4, "hyperparameters": {"dropout": 0.0, "schedule": "cosine"}}
# What the network said in training, beside what the package says that it makes of the same rows.
COMPARE = """
import json, os, sys
os.environ["KERAS_BACKEND"] = "jax"
import keras, numpy as np, pyarrow.parquet as pq
from kfloop.components.contracts.model_io import model_inputs
from kfloop.components.contracts.model_package import GOLDEN
from kfloop.components.training.train import Roles, TrainSettings, learn
from kfloop.components.training.encoder import encode_pieces
from kfloop.components.training.package import write_package
from kfloop.components.training.record import describe_training
from pathlib import Path
spec = json.load(open(sys.argv[1]))
roles, settings = Roles(**spec["roles"]), TrainSettings(**spec["settings"])
learned = learn(spec["dataset"], spec["schema"], roles, settings)
package = describe_training(spec["dataset"], spec["schema"], roles, settings, learned.own,
                            learned.data, learned.devices, learned.result)
directory = Path(spec["model"])
directory.mkdir()
write_package(directory, package, learned.data, learned.network)
golden = pq.read_table(directory / GOLDEN)
encoded = next(encode_pieces(learned.data.encoder, [model_inputs(golden, package.features)]))
said = np.asarray(keras.ops.sigmoid(learned.network(encoded, training=False)))[:, 0]
print("difference", np.abs(said - golden["prediction"].to_numpy()).max())
"""


class Nodes:
    """Starts processes of one training in the environment with JAX."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.workspace = Workspace(root)
        self.table = without(toy_table(), "amount", "kind")
        write_dataset(self.table, root / "train")
        self.processes: list[subprocess.Popen[str]] = []

    def spec(self, name: str, **changes: object) -> Path:
        settings = replace(SETTINGS, **(CHANGES | changes))
        paths = {"dataset": "train", "schema": "schema.pbtxt", "model": name, "curves": f"{name}.h"}
        spec = {key: str(self.root / value) for key, value in paths.items()}
        spec |= {"roles": asdict(ROLES), "settings": asdict(settings)}
        path = self.root / f"{name}.json"
        path.write_text(json.dumps(spec))
        return path

    def start(self, arguments: list[str], **variables: str) -> subprocess.Popen[str]:
        assert JAX, "KFLOOP_JAX_PYTHON is not set; tests/run.py sets it"
        process = subprocess.Popen(
            [JAX, *arguments], text=True, env=os.environ | variables,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    nodes = Nodes(tmp_path_factory.mktemp("jax"))
    yield nodes
    nodes.end()


@pytest.fixture(scope="module")
def printed(nodes):
    """Trains with one process and with two, at the same time; returns what each printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    checkpoint = str(nodes.root / "checkpoint")
    pair = [*ENTRY, str(nodes.spec("pair", checkpoint_uri=checkpoint, onnx=True))]
    started = {
        "alone": nodes.start(["-c", COMPARE, str(nodes.spec("alone"))]),
        "first": nodes.start(pair, JAX_PROCESS_ID="0", **together),
        "second": nodes.start(pair, JAX_PROCESS_ID="1", **together),
    }
    output = {name: process.communicate()[0] for name, process in started.items()}
    for name, process in started.items():
        assert process.returncode == 0, output[name]
    return output


def test_jax_learns_what_tensorflow_learns(nodes, printed, tmp_path):
    package = read_model_json(nodes.root / "alone")
    assert package.framework["backend"] == "jax"
    assert "backend jax; trained on CPU" in printed["alone"]
    ours = Workspace(tmp_path).train(nodes.table, **CHANGES)
    loss = [each.metrics["validation_loss"] for each in (package, ours)]
    # The backends draw other initial weights from the same seed.
    assert loss[0] == pytest.approx(loss[1], abs=0.03)


def test_the_exported_graph_predicts_as_the_training_did(printed):
    assert float(printed["alone"].split("difference ")[1].split()[0]) < 1e-5


def test_the_package_needs_no_jax(nodes, printed, tmp_path):
    assert "jax" not in sys.modules
    model = nodes.root / "alone"
    inputs = signature(model).structured_input_signature[1]
    assert set(inputs) == set(read_model_json(model).feature_names)
    golden = pq.read_table(model / GOLDEN)
    write_dataset(golden.drop_columns("prediction"), tmp_path / "golden")
    evaluate(
        model, tmp_path / "golden", tmp_path / "evaluation", tmp_path / "report",
        tmp_path / "predictions", EvaluateSettings(resamples=10),
    )  # fmt: skip
    again = read_dataset(tmp_path / "predictions")["prediction"].to_pylist()
    assert again == pytest.approx(golden["prediction"].to_pylist(), abs=1e-6)


def test_two_processes_train_as_one_and_the_first_writes(nodes, printed):
    alone, pair = (read_model_json(nodes.root / name) for name in ("alone", "pair"))
    assert pair.metrics == pytest.approx(alone.metrics, rel=1e-3)
    assert pair.framework["devices"] == "2"
    assert pair.framework["trained_on"].startswith("2 devices in 2 processes")
    assert "Wrote the model package" in printed["first"]
    assert "Wrote the model package" not in printed["second"]
    assert "Epoch 4/4" in printed["second"]
    assert "holds no ONNX, only the SavedModel. Keras on JAX" in printed["first"]
    assert not (nodes.root / "checkpoint/training-checkpoint.npz").exists()
    probability = signature(nodes.root / "pair").structured_outputs["probability"]
    assert probability.shape.as_list() == [None]


@pytest.mark.parametrize(
    ("variables", "changes", "message"),
    [
        ({"KERAS_BACKEND": "tensorflow"}, {}, "KERAS_BACKEND is 'tensorflow'"),
        ({"KERAS_BACKEND": "jax", "JAX_PROCESS_ID": "1"}, {}, "JAX_NUM_PROCESSES is not set"),
        ({}, {"epochs": 3}, "beyond what it may, epochs"),
    ],
)
def test_what_cannot_be_trained_together_is_said(nodes, monkeypatch, variables, changes, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    spec = json.loads(nodes.spec("wrong").read_text()) | changes
    with pytest.raises(InputError, match=message):
        train_together(spec)
