# SPDX-License-Identifier: Apache-2.0
"""The package as ONNX: the same raw values in, the same predictions out."""

import json
import shutil
from dataclasses import replace

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import tf2onnx
from test_training_train import ROLES, Workspace, binary_table, toy_table, without

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_io import model_inputs
from kfloop.components.contracts.model_package import (
    GOLDEN,
    ONNX,
    ONNX_ABOUT,
    REFERENCE,
    read_model_json,
)
from kfloop.components.training import onnx_export
from kfloop.components.training.columns import Roles
from kfloop.components.training.onnx_export import export_onnx

MODULE = """
import keras
def build_model(schema, hyperparameters):
    inputs = schema.inputs()
    x = keras.layers.Dense(8, activation="{activation}")(inputs["numeric"])
    return keras.Model(inputs, keras.layers.Dense(schema.outputs)({wrap}))
"""


LABELS = {"binary": "label", "multiclass": "kind", "regression": "amount"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("onnx"))
    for task, label in LABELS.items():
        table = without(toy_table(), "old", *(set(LABELS.values()) - {label}))
        workspace.train(table, task, replace(ROLES, label=label), task=task, epochs=1, onnx=True)
    return workspace


@pytest.mark.parametrize("task", LABELS)
def test_the_whole_graph_predicts_the_same_from_raw_values(workspace, task):
    """Text and integer categories, missing numbers, booleans: as the package takes them."""
    package = read_model_json(workspace.root / task)
    told = json.loads((workspace.root / task / ONNX_ABOUT).read_text())
    assert told["rows_compared"] == 102
    assert 0 <= told["largest_difference"] <= 1e-5

    session = onnxruntime.InferenceSession(workspace.root / task / ONNX)
    assert {given.name for given in session.get_inputs()} == set(package.feature_names)
    golden = pq.read_table(workspace.root / task / GOLDEN)
    (predicted,) = session.run(None, model_inputs(golden, package.features))
    if task == "multiclass":
        assert [package.classes[i] for i in predicted.argmax(1)] == golden["prediction"].to_pylist()
    else:
        expected = golden["prediction"].to_numpy()
        np.testing.assert_allclose(predicted, expected, rtol=1e-5, atol=1e-5)


def test_what_is_asked_for_beside_the_graph_does_not_change_the_weights(workspace):
    table = without(toy_table(), "old", "kind", "amount")
    workspace.train(table, "plain", epochs=1)
    assert not (workspace.root / "plain/onnx").exists()
    with_onnx, plain = (pq.read_table(workspace.root / n / REFERENCE) for n in ("binary", "plain"))
    assert with_onnx.equals(plain)


def test_a_model_of_texts_alone_is_exported_too(workspace):
    """Without a number beside them nothing else tells the converter how wide the categories are."""
    table = pa.table({"label": binary_table()["label"], "colour": binary_table()["colour"]})
    table = table.append_column("grade", [pa.array(["a", "b"] * 1000)])
    workspace.train(table, "texts", Roles("label"), epochs=1, onnx=True)
    assert (workspace.root / "texts" / ONNX).is_file()


@pytest.mark.parametrize(("factor", "kind"), [(1e7, pa.float64()), (1e15, pa.int64())])
def test_a_regression_of_huge_values_around_zero_is_exported_too(workspace, factor, kind):
    """Near zero a float32 of a label of billions is off by hundreds, and that is nothing."""
    table = without(toy_table(), "old", "kind", "label")
    amounts = pc.multiply(pc.subtract(table["amount"], 1000.0), factor)
    amounts = pc.add(pc.cast(amounts, kind, safe=False), pa.scalar(1, kind))
    table = table.set_column(table.column_names.index("amount"), "amount", amounts)
    roles, more = replace(ROLES, label="amount"), {"reference_rows": 2000, "epochs": 1}
    workspace.train(table, "huge", roles, task="regression", onnx=True, **more)
    assert (workspace.root / "huge" / ONNX).is_file()


def test_a_package_that_was_trained_before_is_exported_beside_it(workspace):
    told = export_onnx(workspace.root / "binary", workspace.root / "beside")
    assert told == json.loads((workspace.root / "binary" / ONNX_ABOUT).read_text())
    assert (workspace.root / "beside/model.onnx").is_file()


def test_a_network_of_the_users_is_exported_too(workspace):
    module = workspace.root / "module.py"
    module.write_text(MODULE.format(activation="gelu", wrap="x"))
    workspace.train(binary_table(rows=400), "own", module_uri=str(module), epochs=1)
    assert export_onnx(workspace.root / "own", workspace.root / "own-onnx")["output"]


def test_an_operation_that_onnx_lacks_is_named_and_the_model_is_trained_without(workspace, capsys):
    module = workspace.root / "erfinv.py"
    module.write_text(MODULE.format(activation="tanh", wrap="keras.ops.erfinv(0.1 * x)"))
    workspace.train(binary_table(rows=400), "erfinv", module_uri=str(module), epochs=1, onnx=True)
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.startswith("The package holds no ONNX, only the SavedModel. The model 'toy' uses")
    assert read_model_json(workspace.root / "erfinv")
    assert sorted(path.name for path in (workspace.root / "erfinv").iterdir()) == [
        *("1", "model.json", "reference")
    ]
    with pytest.raises(InputError, match="uses Erfinv, which ONNX has no counterpart for"):
        export_onnx(workspace.root / "erfinv", workspace.root / "erfinv-onnx")
    assert not (workspace.root / "erfinv-onnx").exists()


def test_a_graph_that_predicts_something_else_is_refused(workspace, monkeypatch):
    """With the converter's own rule a missing number makes the prediction NaN."""
    own = tf2onnx.onnx_opset.controlflow.Select.version_9
    monkeypatch.setattr(
        onnx_export, "_select", lambda context, node, name, arguments: own(context, node)
    )
    with pytest.raises(InputError, match="predicts something else than the package"):
        export_onnx(workspace.root / "binary", workspace.root / "strict-onnx")
    assert not (workspace.root / "strict-onnx").exists()


def test_a_graph_that_the_converter_cannot_take_is_one_sentence(workspace):
    damaged = workspace.root / "damaged"
    shutil.copytree(workspace.root / "binary", damaged)
    (damaged / "1/saved_model.pb").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"'toy' cannot be converted to ONNX \(OSError: "):
        export_onnx(damaged, workspace.root / "damaged-onnx")
