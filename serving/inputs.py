"""From request bodies to the model's input arrays, with errors a caller can act on.

An absent feature is an error; an explicit null (NaN in a binary tensor) is a missing value, which
the model imputes. Entity keys, the timestamp and `request` are accepted and not fed to the model.
"""

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from kserve import InferInput

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import ModelPackage
from kfloop.serving.payloads import CONTEXT_KEY, FORMATS, flatten, parse_event_time

MAX_REPORTED = 5
Arrays = dict[str, npt.NDArray[Any]]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < sys.float_info.max


def _is_integer(value: Any) -> bool:
    return _is_number(value) and value == int(value)


def _is_boolean(value: Any) -> bool:
    return type(value) is bool or (_is_number(value) and value in (0, 1))


def _is_text(value: Any) -> bool:
    if type(value) is not str:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        return False
    return True


# What each feature type accepts besides null. Whole floats pass for integers because JSON writers
# turn integer columns with missing values into floats.
CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "float": (_is_number, "a number"),
    "int": (_is_integer, "a whole number"),
    "bool": (_is_boolean, "true or false"),
    "string": (_is_text, "a text"),
}


def from_instances(body: Any, package: ModelPackage) -> Arrays:
    """Returns the model's inputs from a V1 body, `{"instances": [{feature: value, …}, …]}`.

    Raises:
        InputError: If the body cannot be used; says which rows, keys and values are wrong.
    """
    if not isinstance(body, dict) or not isinstance(body.get("instances"), list):
        raise InputError('The body must be {"instances": [{feature: value, …}, …]}.')
    instances = body["instances"]
    if not instances:
        raise InputError("`instances` is empty; send at least one row.")
    problems = []
    accepted = _accepted(package)
    for row, instance in enumerate(instances):
        if not isinstance(instance, dict):
            problems.append(f"row {row} is not an object of feature names and values")
            continue
        if unknown := sorted(map(str, instance.keys() - accepted)):
            problems.append(f"row {row} has the unknown key {_names(unknown)}")
        if absent := [name for name in package.feature_names if name not in instance]:
            problems.append(f"row {row} lacks {_names(absent)} (send null for a missing value)")
    _raise_if_any(problems, package)
    columns = {
        name: [instance.get(name) for instance in instances]
        for name in [*package.feature_names, *_timestamp(package)]
    }
    return _arrays(columns, package)


def from_tensors(inputs: list[InferInput], package: ModelPackage) -> Arrays:
    """Returns the model's inputs from V2 tensors: one per feature, of shape [n] or [n, 1].

    Raises:
        InputError: If they cannot be used; says which tensors, rows and values are wrong.
    """
    names = [tensor.name for tensor in inputs]
    problems = []
    if twice := sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"the tensor {_names(twice)} is given twice")
    if unknown := sorted(set(names) - _accepted(package)):
        problems.append(f"the request has the unknown tensor {_names(unknown)}")
    if absent := [name for name in package.feature_names if name not in names]:
        problems.append(f"the request lacks the tensor {_names(absent)}")
    _raise_if_any(problems, package)
    rows = inputs[0].shape[0] if inputs and inputs[0].shape else 0
    if rows < 1:
        raise InputError("The tensors are empty; send at least one row.")
    types = {feature.name: feature.type for feature in package.features}
    wanted = {*package.feature_names, *_timestamp(package)}
    columns = {
        tensor.name: _values(tensor, rows, types.get(tensor.name, ""))
        for tensor in inputs
        if tensor.name in wanted
    }
    return _arrays(columns, package)


def _values(tensor: InferInput, rows: int, feature_type: str) -> list[Any]:
    if list(tensor.shape) not in ([rows], [rows, 1]):
        raise InputError(
            f"The tensor {tensor.name!r} has shape {list(tensor.shape)}; "
            f"it must be [{rows}] or [{rows}, 1] like the others."
        )
    if feature_type and (tensor.datatype == "BYTES") != (feature_type == "string"):
        raise InputError(
            f"The tensor {tensor.name!r} has datatype {tensor.datatype}; "
            f"it must be {'BYTES' if feature_type == 'string' else 'a numeric one or BOOL'}."
        )
    if tensor.datatype != "BYTES" and tensor.datatype not in FORMATS:
        raise InputError(f"The tensor {tensor.name!r} has the unknown datatype {tensor.datatype}.")
    if tensor._raw_data is not None:  # gRPC sends bytes; KServe has no public way to ask for them
        try:
            values = tensor.as_numpy().reshape(-1).tolist()
        except (ValueError, TypeError) as error:
            raise InputError(f"The tensor {tensor.name!r} cannot be read: {error}.") from error
    else:
        values = flatten(tensor.data)
    if len(values) != rows:
        raise InputError(f"The tensor {tensor.name!r} holds {len(values)} values, not {rows}.")
    if tensor.datatype == "BYTES":
        try:
            return [value.decode() if isinstance(value, bytes) else value for value in values]
        except UnicodeDecodeError as error:
            raise InputError(f"The tensor {tensor.name!r} is not UTF-8 text: {error}.") from error
    return [None if isinstance(value, float) and math.isnan(value) else value for value in values]


def _arrays(columns: dict[str, list[Any]], package: ModelPackage) -> Arrays:
    problems: list[str] = []
    arrays: Arrays = {}
    for feature in package.features:
        is_right, what = CHECKS[feature.type]
        values = columns[feature.name]
        wrong = [
            row for row, value in enumerate(values) if value is not None and not is_right(value)
        ]
        if not wrong and feature.type != "string":
            numbers = np.array([math.nan if value is None else value for value in values], float)
            with np.errstate(over="ignore"):
                arrays[feature.name] = numbers.astype(np.float32)
            wrong = np.flatnonzero(np.isinf(arrays[feature.name])).tolist()
            what = "a number that fits 32-bit floating point"
        elif not wrong:
            texts = ["" if value is None else value for value in values]
            arrays[feature.name] = np.array(texts, dtype=object)
        problems += [
            f"row {row}: {feature.name!r} must be {what} or null, not {values[row]!r:.60}"
            for row in wrong
        ]
    for name in _timestamp(package):
        for row, value in enumerate(columns.get(name, [])):
            try:
                parse_event_time(value)
            except InputError as error:
                problems.append(f"row {row}: {name!r} {error}")
    _raise_if_any(problems, package)
    return arrays


def _accepted(package: ModelPackage) -> set[str]:
    return {*package.feature_names, *package.entities, *_timestamp(package), CONTEXT_KEY}


def _timestamp(package: ModelPackage) -> list[str]:
    is_feature = package.timestamp in package.feature_names
    return [package.timestamp] if package.timestamp and not is_feature else []


def _names(names: list[str]) -> str:
    return ", ".join(map(repr, names[:MAX_REPORTED])) + (" …" if len(names) > MAX_REPORTED else "")


def _raise_if_any(problems: list[str], package: ModelPackage) -> None:
    if not problems:
        return
    more = len(problems) - MAX_REPORTED
    told = "; ".join(problems[:MAX_REPORTED]) + (f"; and {more} more" if more > 0 else "")
    unknown = any("unknown" in problem or "lacks" in problem for problem in problems)
    hint = f" The model takes {', '.join(package.feature_names)}." if unknown else ""
    raise InputError(f"{told[0].upper()}{told[1:]}.{hint}")
