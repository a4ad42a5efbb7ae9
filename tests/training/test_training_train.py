# SPDX-License-Identifier: Apache-2.0
"""Training end to end on small data: the package, its graph, and what it refuses."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kfloop.components.contracts.dataset import write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import GOLDEN, REFERENCE, read_model_json
from kfloop.components.training.train import (  # imported before TensorFlow: it quietens the log
    Roles,
    TrainSettings,
    train,
)

import tensorflow as tf  # isort: skip

ROLES = Roles(label="label", timestamp="at", entities=["machine"])
SETTINGS = TrainSettings(
    name="toy", task="binary", epochs=6, batch_size=128, learning_rate=0.01, reference_rows=100
)
SCHEMA = """
feature { name: "colour" type: BYTES domain: "colours" }
feature { name: "grade" type: INT int_domain { is_categorical: true } }
feature { name: "old" type: FLOAT lifecycle_stage: DEPRECATED }
string_domain { name: "colours" value: "red" value: "green" value: "blue" }
"""


def toy_table(rows: int = 2000, seed: int = 0) -> pa.Table:
    """Rows whose score depends on every kind of feature, missing values included."""
    random = np.random.default_rng(seed)
    weight = random.normal(50, 10, rows)
    weight_known = random.random(rows) > 0.2
    count = random.integers(0, 100, rows)
    colour = random.choice(["red", "green", "blue"], rows)
    grade = random.integers(0, 4, rows)
    loud = random.random(rows) < 0.4
    score = (
        np.where(weight_known, (weight - 50) / 10, 1.5)
        + (count - 50) / 40
        + np.where(colour == "red", 1.5, -0.5)
        + np.array([1.0, -1.0, 1.0, -1.0])[grade]
        + loud
    )
    return pa.table(
        {
            "at": pa.array(np.arange(rows) * 60_000_000, pa.timestamp("us", tz="UTC")),
            "machine": [f"m{index % 7}" for index in range(rows)],
            "weight": pa.array(weight, mask=~weight_known),
            "count": count,
            "colour": colour,
            "grade": grade,
            "loud": loud,
            "old": score,
            "label": score + random.normal(0, 0.5, rows) > 0.5,
            "amount": 1000 + 200 * score + random.normal(0, 20, rows),
            "kind": np.array(["low", "mid", "high"])[np.digitize(score, [0, 1.5])],
        }
    )


class Workspace:
    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "schema.pbtxt").write_text(SCHEMA)

    def train(self, table: pa.Table, name: str = "model", roles: Roles = ROLES, **changes: object):
        write_dataset(table, self.root / "train")
        return train(
            self.root / "train",
            self.root / "schema.pbtxt",
            self.root / name,
            self.root / f"{name}.html",
            roles,
            replace(SETTINGS, **changes),
        )


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


def without(table: pa.Table, *columns: str) -> pa.Table:
    return table.drop_columns(list(columns))


def binary_table(**arguments) -> pa.Table:
    return without(toy_table(**arguments), "amount", "kind")


IMAGE = "registry.example.com/training@sha256:" + "1" * 64


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("binary"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KFLOOP_IMAGE", IMAGE)
        return workspace, workspace.train(binary_table())


def signature(directory: Path):
    module = tf.saved_model.load(str(directory / "1"))
    function = module.signatures["serving_default"]
    function.kept = module
    return function


def one_row(**changes):
    row = {"weight": 50.0, "count": 10.0, "colour": "red", "grade": 1.0, "loud": 1.0} | changes
    return {name: tf.constant([value]) for name, value in row.items()}


def test_the_model_learns_and_the_package_says_everything(binary):
    workspace, package = binary
    written = read_model_json(workspace.root / "model")
    assert written == package
    assert package.metrics["validation_auc"] > 0.9
    assert [(item.name, item.type) for item in package.features] == [
        ("weight", "float"),
        ("count", "int"),
        ("colour", "string"),
        ("grade", "int"),
        ("loud", "bool"),
    ]
    assert package.training_window["rows"] == 2000
    assert package.training_window["since"] == "1970-01-01T00:00:00+00:00"
    assert len(package.dataset_fingerprint) == len(package.schema_fingerprint) == 64
    assert package.image == IMAGE
    assert package.framework["tensorflow"] == tf.__version__
    assert package.hyperparameters["hidden"] == [128, 64]
    assert package.hyperparameters["best_epoch"] >= 1


def test_the_signature_is_one_dimensional_and_named_after_the_features(binary):
    workspace, package = binary
    function = signature(workspace.root / "model")
    inputs = function.structured_input_signature[1]
    assert set(inputs) == set(package.feature_names)
    assert all(spec.shape.as_list() == [None] for spec in inputs.values())
    assert {name for name, spec in inputs.items() if spec.dtype == tf.string} == {"colour"}
    assert function.structured_outputs["probability"].shape.as_list() == [None]


@pytest.mark.parametrize(
    "changes",
    [
        {
            "weight": float("nan"),
            "count": float("nan"),
            "grade": float("nan"),
            "loud": float("nan"),
        },
        {"weight": float("inf"), "grade": float("-inf")},
        {"weight": 3e38, "count": -3e38, "grade": 3e38},
        {"colour": ""},
        {"colour": "a colour never seen ☂"},
        {"grade": 77.0},
        {"grade": 1.5},
    ],
)
def test_missing_unknown_and_absurd_values_give_a_probability(binary, changes):
    workspace, _ = binary
    result = signature(workspace.root / "model")(**one_row(**changes))["probability"].numpy()
    assert result.shape == (1,)
    assert 0 <= result[0] <= 1


def test_a_missing_and_an_unseen_category_are_the_same_to_the_model(binary):
    workspace, _ = binary
    function = signature(workspace.root / "model")
    results = [
        function(**one_row(colour=colour))["probability"].numpy()[0] for colour in ("", "mauve")
    ]
    assert results[0] == results[1]


def test_a_missing_number_is_not_simply_the_mean(binary):
    """Missing weights mean a high score in the toy data; only the indicator can tell."""
    workspace, _ = binary
    function = signature(workspace.root / "model")
    missing = function(**one_row(weight=float("nan"), grade=1.0, colour="blue"))
    mean = function(**one_row(weight=50.0, grade=1.0, colour="blue"))
    assert missing["probability"].numpy()[0] > mean["probability"].numpy()[0] + 0.05


def test_reference_and_golden_hold_the_exported_models_predictions(binary):
    workspace, package = binary
    function = signature(workspace.root / "model")
    for file, rows in ((REFERENCE, 100), (GOLDEN, 32)):
        table = pq.read_table(workspace.root / "model" / file)
        assert table.num_rows == rows
        assert {"at", "machine", "label", *package.feature_names} < set(table.column_names)
        inputs = one_row()
        for name, spec in inputs.items():
            values = table[name].to_pylist()
            if spec.dtype == tf.string:
                inputs[name] = tf.constant(values)
            else:
                numbers = [float("nan") if value is None else float(value) for value in values]
                inputs[name] = tf.constant(numbers, tf.float32)
        expected = function(**inputs)["probability"].numpy()
        np.testing.assert_allclose(table["prediction"].to_numpy(), expected, atol=1e-6)


def test_same_seed_and_data_give_bit_identical_weights(workspace):
    table = binary_table(rows=600)
    for name in ("first", "second"):
        workspace.train(table, name, epochs=1)
    variables = [
        tf.train.load_checkpoint(str(workspace.root / name / "1/variables/variables"))
        for name in ("first", "second")
    ]
    names = [
        name
        for name, shape in variables[0].get_variable_to_shape_map().items()
        if shape and name.startswith("variables/")  # Keras keeps a second list, in no order
    ]
    assert names
    for name in names:
        left, right = (checkpoint.get_tensor(name) for checkpoint in variables)
        assert left.tobytes() == right.tobytes()
    golden = [pq.read_table(workspace.root / name / GOLDEN) for name in ("first", "second")]
    assert golden[0].equals(golden[1])


def test_another_seed_gives_other_weights(workspace):
    table = binary_table(rows=600)
    predictions = []
    for seed in (1, 2):
        workspace.train(table, f"seed{seed}", epochs=1, seed=seed)
        function = signature(workspace.root / f"seed{seed}")
        predictions.append(function(**one_row())["probability"].numpy()[0])
    assert predictions[0] != predictions[1]


def test_a_regression_is_answered_in_the_labels_unit(workspace):
    table = without(toy_table(), "label", "kind", "old")
    package = workspace.train(table, roles=replace(ROLES, label="amount"), task="regression")
    spread = float(np.std(table["amount"].to_numpy()))
    assert package.metrics["validation_rmse"] < spread / 2
    golden = pq.read_table(workspace.root / "model" / GOLDEN)
    error = golden["prediction"].to_numpy() - golden["amount"].to_numpy()
    assert np.sqrt(np.mean(error**2)) < spread / 2
    assert signature(workspace.root / "model").structured_outputs["value"].shape.as_list() == [None]


@pytest.mark.parametrize("as_integer", [False, True])
def test_multiclass_outputs_follow_the_classes(workspace, as_integer):
    table = without(toy_table(), "label", "amount", "old")
    if as_integer:
        codes = {"low": 10, "mid": 2, "high": 30}
        kinds = pa.array([codes[kind] for kind in table["kind"].to_pylist()])
        table = table.set_column(table.column_names.index("kind"), "kind", kinds)
    package = workspace.train(
        table, roles=replace(ROLES, label="kind"), task="multiclass", epochs=4
    )
    assert package.classes == (["2", "10", "30"] if as_integer else ["high", "low", "mid"])
    assert package.metrics["validation_accuracy"] > 0.6
    golden = pq.read_table(workspace.root / "model" / GOLDEN)
    assert golden["prediction"].type == pa.string()
    labels = [str(value) for value in golden["kind"].to_pylist()]
    hits = np.mean([a == b for a, b in zip(golden["prediction"].to_pylist(), labels, strict=True)])
    assert hits > 0.6
    outputs = signature(workspace.root / "model")(**one_row())["probabilities"].numpy()
    assert outputs.shape == (1, 3)
    assert outputs.sum() == pytest.approx(1)


def test_training_without_timestamp_entities_or_schema_content(workspace):
    (workspace.root / "schema.pbtxt").write_text("")
    table = without(binary_table(rows=500), "at", "machine", "old")
    package = workspace.train(table, roles=Roles("label"), epochs=1)
    assert package.training_window == {"rows": 500}


def test_the_users_own_module_builds_the_network(workspace):
    module = workspace.root / "my_model.py"
    module.write_text(
        "import keras\n"
        "def build_model(schema, hyperparameters):\n"
        "    inputs = schema.inputs()\n"
        "    position = list(schema.categorical).index('colour')\n"
        "    size = schema.categorical['colour']\n"
        "    colour = keras.layers.Embedding(size, 3)(inputs['categorical'][:, position])\n"
        "    x = keras.layers.Concatenate()([inputs['numeric'], colour])\n"
        "    x = keras.layers.Dense(int(hyperparameters['width']), activation='tanh')(x)\n"
        "    return keras.Model(inputs, keras.layers.Dense(schema.outputs)(x))\n"
    )
    package = workspace.train(
        binary_table(), module_uri=module.as_uri(), hyperparameters={"width": 16.0}
    )
    assert package.metrics["validation_auc"] > 0.8
    assert package.hyperparameters["width"] == 16.0
    assert len(package.hyperparameters["module_sha256"]) == 64


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\n", "has no function build_model"),
        ("def build_model(schema, hyperparameters): return 5\n", "returned int"),
        (
            "import keras\ndef build_model(schema, hyperparameters):\n    i = schema.inputs()\n"
            "    return keras.Model(i, keras.layers.Dense(3)(i['numeric']))\n",
            r"must be \(None, 1\)",
        ),
    ],
)
def test_a_wrong_module_is_named(workspace, source, message):
    module = workspace.root / "wrong.py"
    module.write_text(source)
    with pytest.raises(InputError, match=message):
        workspace.train(binary_table(rows=100), module_uri=str(module))


def test_the_training_curves_are_self_contained_and_progress_is_printed(workspace, capsys):
    workspace.train(binary_table(rows=600), epochs=2)
    page = (workspace.root / "model.html").read_text()
    assert page.count("<svg") == 2
    assert page.count(" (kept)") == 1
    assert "2 epochs in " in page
    assert "with tensorflow\non CPU (" in page
    assert "http" not in page
    printed = capsys.readouterr().out
    assert re.search(r"Epoch 1/2: .* examples/s; the best so far; at most \d+ s left\.", printed)
    assert re.search(r"Epoch 2/2: .* examples/s; the best (so far|is epoch 1); done\.", printed)
    assert "backend tensorflow; trained on CPU (" in printed


def test_a_second_run_replaces_the_first(workspace):
    workspace.train(binary_table(rows=300), epochs=1)
    (workspace.root / "model" / "stale").write_text("")
    workspace.train(binary_table(rows=300), epochs=1)
    assert sorted(entry.name for entry in (workspace.root / "model").iterdir()) == [
        "1",
        "model.json",
        "reference",
    ]
    json.loads((workspace.root / "model/model.json").read_text())


def constant(table: pa.Table, value: object) -> pa.Table:
    index = table.column_names.index("label")
    return table.set_column(index, "label", pa.array([value] * table.num_rows))


def with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.append_column(name, values)


TABLE = binary_table(rows=200)
TWO_ROWS = TABLE.take([TABLE["label"].index(value).as_py() for value in (True, False)])
NULL_LABEL = TABLE.set_column(
    TABLE.column_names.index("label"), "label", pa.array([None, True, False, True] * 50)
)


@pytest.mark.parametrize(
    ("table", "roles", "changes", "message"),
    [
        (constant(TABLE, True), ROLES, {}, "label 'label' is True in all 200 rows"),
        (NULL_LABEL, ROLES, {}, "null in 50 of 200 rows"),
        (constant(TABLE, 0.0), ROLES, {"task": "regression"}, "is 0.0 in all"),
        (TABLE, replace(ROLES, label="late"), {}, "label 'late' is not a column"),
        (TABLE, replace(ROLES, features=["weight", "speed"]), {}, "'speed' is not a column"),
        (TABLE, replace(ROLES, features=["label"]), {}, "label 'label' is listed as a feature"),
        (TABLE, replace(ROLES, entities=["plane"]), {}, "entity 'plane' is not a column"),
        (TABLE, replace(ROLES, timestamp="when"), {}, "timestamp 'when' is not a column"),
        (TABLE.drop_columns("at"), replace(ROLES, timestamp="count"), {}, "'count' holds int64"),
        (TABLE.select(["at", "machine", "label"]), ROLES, {}, "No feature is left"),
        (TABLE, replace(ROLES, features=["at"]), {}, r"'at' \(timestamp\[us, tz=UTC\]\)"),
        (
            with_column(TABLE, "tags", pa.array([["a"]] * 200)),
            ROLES,
            {},
            r"'tags' \(list<.*string>\) cannot be a feature",
        ),
        (
            with_column(TABLE, "status", pa.array([1.0] * 200)),
            ROLES,
            {},
            "'status' has a name that the inference log uses",
        ),
        (with_column(TABLE, "a b", pa.array([1.0] * 200)), ROLES, {}, "'a b' cannot name an input"),
        (with_column(TABLE, "self", pa.array([1.0] * 200)), ROLES, {}, "'self' cannot name"),
        (with_column(TABLE, "Count", pa.array([1.0] * 200)), ROLES, {}, "differ only in case"),
        (TABLE.slice(0, 0), ROLES, {}, "has no rows"),
        (TWO_ROWS, ROLES, {}, "cannot be split"),
        (TABLE, replace(ROLES, label="weight"), {}, "null in"),
        (TABLE, replace(ROLES, label="count"), {}, "must be a boolean or 0 and 1"),
        (TABLE, replace(ROLES, label="colour"), {"task": "regression"}, "must be a number"),
        (TABLE, ROLES, {"task": "ranking"}, "must be one of binary, multiclass, regression"),
        (TABLE, ROLES, {"epochs": 0}, "epochs is 0"),
        (TABLE, ROLES, {"validation_fraction": 1.0}, "validation_fraction is 1.0"),
        (TABLE, ROLES, {"hyperparameters": {"layers": 3}}, "Unknown hyperparameter 'layers'"),
        (TABLE, ROLES, {"hyperparameters": {"hidden": "64"}}, "must be a list"),
        (TABLE, ROLES, {"hyperparameters": {"dropout": 1.0}}, "dropout is 1.0"),
        (TABLE, ROLES, {"hyperparameters": {"hidden": [1.5]}}, "whole number"),
        (TABLE, ROLES, {"hyperparameters": {"categorical": ["weight"]}}, "not an integer feature"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on_is_said_in_a_sentence(workspace, table, roles, changes, message):
    with pytest.raises(InputError, match=message):
        workspace.train(table, roles=roles, **changes)
    assert not (workspace.root / "model").exists()


def test_a_damaged_schema_is_named(workspace):
    (workspace.root / "schema.pbtxt").write_text("feature { nam")
    with pytest.raises(InputError, match="is not a data schema"):
        workspace.train(TABLE)


def test_labels_sorted_in_time_are_refused(workspace):
    index = TABLE.column_names.index("label")
    late = TABLE.set_column(index, "label", pa.array([False] * 190 + [True] * 10))
    with pytest.raises(InputError, match="before the validation part"):
        workspace.train(late)
