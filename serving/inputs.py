# SPDX-License-Identifier: Apache-2.0
"""From request bodies to the model's input arrays, with errors a caller can act on.

An absent feature is an error, unless it is one that the model server looks up; an explicit null
(NaN in a binary tensor) is a missing value, which the model imputes. Entity keys, the timestamp and
`request` are accepted and not fed to the model.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from kserve import InferInput, InferRequest
from kserve.errors import InferenceError

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import ModelPackage
from kfloop.serving.payloads import CONTEXT_KEY, FORMATS, flatten, parse_event_time

MAX_REPORTED = 5
# Names of the model's inputs that an error lists.
MAX_NAMES = 40
# From here on a number is infinite as the 32-bit floating point that the model takes.
LARGEST = 2.0**128 - 2.0**103
# What a row holds of a feature that it leaves to the look-up.
NOT_SENT = object()


@dataclass(frozen=True)
class Wanted:
    """What a request may and must carry for a model.

    Attributes:
        package: The model.
        found: Features that are looked up where a row leaves them out.
        needs: Columns, with their type, that such a row must carry for that.
    """

    package: ModelPackage
    found: frozenset[str] = frozenset()
    needs: Mapping[str, str] = field(default_factory=dict)
    types: dict[str, str] = field(init=False)
    required: frozenset[str] = field(init=False)
    accepted: frozenset[str] = field(init=False)
    timestamp: str = field(init=False)

    def __post_init__(self) -> None:
        package = self.package
        names = frozenset(package.feature_names)
        is_column = bool(package.timestamp) and package.timestamp not in names
        types = dict(self.needs) | {feature.name: feature.type for feature in package.features}
        timestamp = package.timestamp if is_column else ""
        unread = {*package.entities, CONTEXT_KEY, *([timestamp] if timestamp else [])}
        for name, value in (
            ("types", types),
            ("required", names - self.found),
            ("accepted", frozenset({*types, *unread})),
            ("timestamp", timestamp),
        ):
            object.__setattr__(self, name, value)


@dataclass
class Rows:
    """Checked rows of a request.

    Attributes:
        columns: A value, None or `NOT_SENT` for each row, by column.
        moments: The rows' own time, or None.
        gaps: Rows that leave something to the look-up.
    """

    columns: dict[str, list[Any]]
    moments: list[datetime | None]
    gaps: list[int]

    def __len__(self) -> int:
        return len(self.moments)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < LARGEST


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
    "float": (_is_number, "a number that fits 32-bit floating point"),
    "int": (_is_integer, "a whole number"),
    "bool": (_is_boolean, "true or false"),
    "string": (_is_text, "a text"),
}
# What a look-up is given: join keys and the inputs of on-demand views have their own type.
EXACT: dict[str, Callable[[Any], Any]] = {"float": float, "int": int, "bool": bool, "string": str}
LARGEST_INTEGER = 2**63


def from_instances(body: Any, wanted: Wanted) -> Rows:
    """Returns the rows of a V1 body, `{"instances": [{feature: value, …}, …]}`.

    Raises:
        InputError: If the body cannot be used; says which rows, keys and values are wrong.
    """
    if not isinstance(body, dict) or not isinstance(body.get("instances"), list):
        raise InputError('The body must be {"instances": [{feature: value, …}, …]}.')
    instances = body["instances"]
    if not instances:
        raise InputError("`instances` is empty; send at least one row.")
    problems = []
    gaps = []
    for row, instance in enumerate(instances):
        if not isinstance(instance, dict):
            problems.append(f"row {row} is not an object of feature names and values")
            continue
        sent = instance.keys()
        if unknown := sent - wanted.accepted:
            problems.append(f"row {row} has the unknown key {_names(sorted(map(str, unknown)))}")
        if absent := wanted.required - sent:
            problems.append(
                f"row {row} lacks {_ordered(absent, wanted)} (send null for a missing value)"
            )
        if wanted.found - sent:
            gaps.append(row)
            if keys := wanted.needs.keys() - wanted.required - sent:
                problems.append(f"row {row} lacks {_names(sorted(keys))} to look features up with")
    _raise_if_any(problems, wanted)
    columns = {
        name: [instance.get(name, NOT_SENT) for instance in instances] for name in wanted.types
    }
    times = [instance.get(wanted.timestamp) for instance in instances] if wanted.timestamp else []
    return _checked(columns, times, gaps, len(instances), wanted)


def require_form(request: InferRequest) -> None:
    """Checks what nobody has checked of a request that came with binary tensors.

    Raises:
        InputError: If an id, name, datatype or shape is not of its type.
    """
    if not isinstance(request.id, str | None):
        raise InputError(f"The request's id must be a text, not {request.id!r:.60}.")
    for place, tensor in enumerate(request.inputs):
        if not isinstance(tensor.name, str) or not isinstance(tensor.datatype, str):
            raise InputError(f"The name and the datatype of tensor {place} must be texts.")
        # gRPC has its own kind of list.
        is_list = isinstance(tensor.shape, Sequence) and not isinstance(tensor.shape, str)
        if not is_list or not all(type(size) is int for size in tensor.shape):
            raise InputError(f"The shape of tensor {place} must be a list of whole numbers.")


def from_tensors(inputs: list[InferInput], wanted: Wanted) -> Rows:
    """Returns the rows of V2 tensors: one per feature, of shape [n] or [n, 1].

    Raises:
        InputError: If they cannot be used; says which tensors, rows and values are wrong.
    """
    names = [tensor.name for tensor in inputs]
    sent = set(names)
    problems = []
    if twice := sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"the tensor {_names(twice)} is given twice")
    if unknown := sorted(sent - wanted.accepted):
        problems.append(f"the request has the unknown tensor {_names(unknown)}")
    if absent := wanted.required - sent:
        problems.append(f"the request lacks the tensor {_ordered(absent, wanted)}")
    has_gaps = bool(wanted.found - sent)
    if has_gaps and (keys := wanted.needs.keys() - wanted.required - sent):
        problems.append(f"the request lacks {_names(sorted(keys))} to look features up with")
    _raise_if_any(problems, wanted)
    rows = inputs[0].shape[0] if inputs and inputs[0].shape else 0
    if rows < 1:
        raise InputError("The tensors are empty; send at least one row.")
    read = {
        tensor.name: _values(tensor, rows, wanted.types.get(tensor.name, ""))
        for tensor in inputs
        if tensor.name in wanted.types or tensor.name == wanted.timestamp
    }
    times = read.pop(wanted.timestamp, [])
    columns = {name: read.get(name) or [NOT_SENT] * rows for name in wanted.types}
    return _checked(columns, times, list(range(rows)) if has_gaps else [], rows, wanted)


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
        except (ValueError, TypeError, InferenceError) as error:
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


def _checked(
    columns: dict[str, list[Any]], times: list[Any], gaps: list[int], rows: int, wanted: Wanted
) -> Rows:
    problems: list[str] = []
    for name, kind in wanted.types.items():
        is_right, what = CHECKS[kind]
        values = columns[name]
        wrong = [
            row
            for row, value in enumerate(values)
            if value is not None and value is not NOT_SENT and not is_right(value)
        ]
        if not wrong and name in wanted.needs:
            what = "a 64-bit whole number" if wanted.needs[name] == "int" else what
            columns[name], wrong = _exactly(values, wanted.needs[name])
        problems += [
            f"row {row}: {name!r} must be {what} or null, not {values[row]!r:.60}" for row in wrong
        ]
    moments: list[datetime | None] = [None] * rows
    for row, value in enumerate(times):
        try:
            moments[row] = parse_event_time(value)
        except InputError as error:
            problems.append(f"row {row}: {wanted.timestamp!r} {error}")
    _raise_if_any(problems, wanted)
    return Rows(columns, moments, gaps)


def _exactly(values: list[Any], kind: str) -> tuple[list[Any], list[int]]:
    """Returns values as a look-up takes them, and the rows where that is not possible."""
    exact, wrong = [], []
    for row, value in enumerate(values):
        if value is None or value is NOT_SENT:
            exact.append(value)
        elif CHECKS[kind][0](value) and (kind != "int" or abs(value) < LARGEST_INTEGER):
            exact.append(EXACT[kind](value))
        else:
            wrong.append(row)
    return exact, wrong


def numbers_of(columns: list[list[Any]]) -> npt.NDArray[np.float32]:
    """Returns columns of numbers and None as one float32 array [columns, rows]; None is NaN."""
    listed = [[math.nan if value is None else value for value in values] for values in columns]
    return np.array(listed, np.float64).astype(np.float32)


def texts_of(columns: list[list[Any]]) -> npt.NDArray[np.object_]:
    """Returns columns of texts and None as one array [columns, rows]; None is empty."""
    return np.array([[value or "" for value in values] for values in columns], dtype=object)


def _ordered(names: frozenset[str], wanted: Wanted) -> str:
    return _names([name for name in wanted.package.feature_names if name in names])


def _names(names: list[str]) -> str:
    return ", ".join(map(repr, names[:MAX_REPORTED])) + (" …" if len(names) > MAX_REPORTED else "")


def _raise_if_any(problems: list[str], wanted: Wanted) -> None:
    if not problems:
        return
    more = len(problems) - MAX_REPORTED
    told = "; ".join(problems[:MAX_REPORTED]) + (f"; and {more} more" if more > 0 else "")
    hint = ""
    if any("unknown" in problem or "lacks" in problem for problem in problems):
        names = wanted.package.feature_names
        others = f" and {len(names) - MAX_NAMES} others" if len(names) > MAX_NAMES else ""
        hint = f" The model takes {', '.join(names[:MAX_NAMES])}{others}."
        if wanted.found:
            keys = ", ".join(sorted(wanted.needs))
            hint += f" It looks up {', '.join(n for n in names if n in wanted.found)} with {keys}."
    raise InputError(f"{told[0].upper()}{told[1:]}.{hint}")
