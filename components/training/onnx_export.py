# SPDX-License-Identifier: Apache-2.0
"""A model package as ONNX: the whole graph, so that raw feature values go in, as in the package.

The SavedModel is converted by tf2onnx, with three of its rules replaced: it turns a choice between
two tensors into a product, where a missing value (NaN) times 0 stays NaN; it looks up strings only,
where categories may be integers; and it knows no erfc. What comes out is run with onnxruntime and
compared.
"""

import json
import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

# As in `train`, before TensorFlow is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tensorflow as tf
import tf2onnx
from onnxruntime.capi import onnxruntime_pybind11_state as refused

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import new_directory, write_json
from kfloop.components.contracts.model_io import model_inputs
from kfloop.components.contracts.model_package import (
    ONNX,
    ONNX_ABOUT,
    REFERENCE,
    SAVED_MODEL,
    ModelPackage,
    read_model_json,
)

# What onnxruntime 1.14 (2023) and later run.
OPSET = 18
TOLERANCE = 1e-5
# Characters of what another library says.
SHOWN = 300

# What tf2onnx, TensorFlow, ONNX and onnxruntime raise on a graph that they cannot take.
REFUSED = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError),
    *(TypeError, ValueError, tf.errors.OpError, onnx.checker.ValidationError),
    *(refused.Fail, refused.InvalidArgument, refused.InvalidGraph, refused.NotImplemented),
    *(refused.InvalidProtobuf, refused.RuntimeException),
)

Arrays = dict[str, np.ndarray]


def export_onnx(package: str | Path, output: str | Path) -> dict[str, Any]:
    """Writes a model package as ONNX, once its predictions are those of the package.

    They are compared on the reference rows, on a row without any value, and on one with values
    never seen.

    Args:
        package: The model package.
        output: Directory to write: `model.onnx` and `onnx.json`, which tells its inputs and output.

    Returns:
        The content of `onnx.json`.

    Raises:
        InputError: If the graph has an operation that ONNX lacks, or predicts something else.
    """
    directory = Path(package)
    about = read_model_json(directory)
    # Of the converter and of what it calls in TensorFlow; what fails is raised, in one sentence.
    for chatty in ("tf2onnx", "tensorflow"):
        logging.getLogger(chatty).setLevel(logging.CRITICAL)
    rows = _rows_to_compare(directory, about)
    try:
        model = _convert(directory / SAVED_MODEL, about)
        found = _run(model, about, rows)
    except InputError:
        raise
    except REFUSED as error:
        raise InputError(
            f"The model {about.name!r} cannot be converted to ONNX ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:SHOWN]}); serve it as a SavedModel."
        ) from error
    unit = _unit(directory, about)
    difference = _compare(found, directory / SAVED_MODEL, about, rows, unit)
    told = {
        "name": about.name,
        "version": about.version,
        "task": about.task,
        "inputs": {feature.name: feature.type for feature in about.features},
        "output": about.output,
        "classes": about.classes,
        "opset": OPSET,
        "rows_compared": len(found),
        "largest_difference": difference,
    }
    model.metadata_props.add(key="kfloop", value=json.dumps(told))
    with new_directory(output) as beside:
        onnx.save(model, str(beside / Path(ONNX).name))
        write_json(beside / Path(ONNX_ABOUT).name, told)
    print(f"On {len(found):,} rows ONNX differs by {difference:.2g} at most.", flush=True)
    return told


def _convert(saved_model: Path, about: ModelPackage) -> Any:
    graph, inputs, outputs, tables, renamed = tf2onnx.tf_loader.from_saved_model(
        str(saved_model),
        None,
        None,
        tag="serve",
        signatures=["serving_default"],
        return_initialized_tables=True,
        return_tensors_to_rename=True,
    )
    model, _ = tf2onnx.convert.from_graph_def(
        graph,
        name=about.name,
        input_names=inputs,
        output_names=outputs,
        tensors_to_rename=renamed,
        opset=OPSET,
        custom_op_handlers={
            "SelectV2": (_select, []),
            "Erfc": (_erfc, []),
            "LookupTableFindV2": (partial(_look_up, tables or {}), []),
        },
    )
    lacking = {
        node.op_type
        for node in model.graph.node
        if not onnx.defs.has(node.op_type, domain=node.domain)
    }
    if lacking:
        raise InputError(
            f"The model {about.name!r} uses {', '.join(sorted(lacking))}, which ONNX has no "
            "counterpart for; build it of other layers, or serve it as a SavedModel."
        )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "rows"
    onnx.checker.check_model(model)
    return model


def _select(context: Any, node: Any, name: str, arguments: list[Any]) -> None:
    """Keeps a choice a choice; tf2onnx calls it for every `SelectV2`."""
    node.type = "Where"


def _erfc(context: Any, node: Any, name: str, arguments: list[Any]) -> None:
    """Writes 1 - erf, which ONNX has; Keras's GELU is made of erfc."""
    shape, dtype = context.get_shape(node.output[0]), context.get_dtype(node.output[0])
    inputs, outputs = node.input, node.output
    context.remove_node(node.name)
    erf = context.make_node("Erf", inputs, shapes=[shape], dtypes=[dtype])
    one = context.make_const(tf2onnx.utils.make_name(node.name), np.array(1, np.float32))
    context.make_node(
        "Sub",
        [one.output[0], erf.output[0]],
        name=node.name,
        outputs=outputs,
        shapes=[shape],
        dtypes=[dtype],
    )


def _look_up(
    tables: dict[bytes, Any], context: Any, node: Any, name: str, arguments: list[Any]
) -> None:
    """Turns a lookup of strings or integers into a `LabelEncoder`."""
    table = node.inputs[0]
    while table.type == "Identity":
        table = table.inputs[0]
    keys, positions = tables[table.get_attr_value("shared_name")]
    # The encoder's tables go from a key to its position, and to 0 for any other.
    of_text = context.get_dtype(node.input[1]) == onnx.TensorProto.STRING
    attributes = {
        "keys_strings" if of_text else "keys_int64s": list(keys),
        "values_int64s": list(positions),
        "default_int64": 0,
    }
    shape, inputs, outputs = context.get_shape(node.input[1]), node.input, node.output
    context.remove_node(node.name)
    context.make_node(
        "LabelEncoder",
        [inputs[1]],
        domain="ai.onnx.ml",
        name=node.name,
        outputs=outputs,
        attr=attributes,
        shapes=[shape],
        dtypes=[onnx.TensorProto.INT64],
    )


def _rows_to_compare(directory: Path, about: ModelPackage) -> Arrays:
    rows = model_inputs(pq.read_table(directory / REFERENCE), about.features)
    awkward = {"string": ["", "\N{SNOWMAN} never seen"]}
    return {
        feature.name: np.concatenate(
            [
                rows[feature.name],
                np.array(awkward.get(feature.type, [np.nan, 3e38]), rows[feature.name].dtype),
            ]
        )
        for feature in about.features
    }


def _run(model: Any, about: ModelPackage, rows: Arrays) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run([about.output], rows)
    return found


def _unit(directory: Path, about: ModelPackage) -> float:
    """Returns what a difference is small beside: 1 for probabilities, else the label's spread.

    A regression answers in the label's own unit, and its float32 near 0 is as exact as the
    spread allows and no more.
    """
    if about.task != "regression":
        return 1.0
    label = pq.read_table(directory / REFERENCE, columns=[about.label])[about.label]
    # Whole numbers beyond 2**53 are rounded, as in training.
    return float(pc.stddev(label.cast(pa.float64(), safe=False)).as_py()) or 1.0


def _compare(
    found: np.ndarray, saved_model: Path, about: ModelPackage, rows: Arrays, unit: float
) -> float:
    # What is served runs on a CPU; a GPU multiplies with fewer digits.
    with tf.device("CPU"):
        module = tf.saved_model.load(str(saved_model))
        given = {name: tf.constant(values) for name, values in rows.items()}
        expected = module.signatures["serving_default"](**given)[about.output].numpy()
    apart = np.abs(found - expected) / np.maximum(unit, np.abs(expected))
    if found.shape != expected.shape or not (apart <= TOLERANCE).all():
        raise InputError(
            f"The ONNX model of {about.name!r} predicts something else than the package, by "
            f"{np.nanmax(apart):.2g} on {len(expected):,} rows; serve it as a SavedModel."
        )
    return float(apart.max())
