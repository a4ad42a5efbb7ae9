# SPDX-License-Identifier: Apache-2.0
"""The label: checked as the rows come by, and turned into what the network learns."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_io import feature_type
from kfloop.components.contracts.model_package import TASKS
from kfloop.components.training.moments import Moments

# Distinct values that are named when a binary label holds something else than 0 and 1.
_NAMED = 5
# Of float32, with room for a prediction beyond the training data.
_LARGEST, _SMALLEST = 1e36, 1e-36


@dataclass
class Label:
    """What the label holds, and how it is learned.

    Attributes:
        name: Its column.
        task: One of `TASKS`.
        values: Multiclass only: the distinct values in order; a class is a position in it.
        counts: Rows learned from per class, as 0 and 1 for binary; empty for regression.
        shift: Regression: mean of the label in the rows learned from, else 0.
        scale: Regression: its standard deviation there, else 1.
    """

    name: str
    task: str
    values: list[Any] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    shift: float = 0.0
    scale: float = 1.0

    @property
    def classes(self) -> list[str]:
        """The classes by position; multiclass only."""
        return [str(value) for value in self.values]

    def read(self, column: pa.ChunkedArray) -> np.ndarray:
        """Returns 0/1 (float32), class positions (int32) or numbers as they are (float64)."""
        if self.task == "multiclass":
            values = _class_values(column)
            positions = pc.index_in(values, pa.array(self.values, values.type))
            return positions.to_numpy().astype(np.int32)
        numbers = _numbers(_decoded(column))
        return numbers.astype(np.float32) if self.task == "binary" else numbers

    def target(self, column: pa.ChunkedArray) -> np.ndarray:
        """Returns what the network learns: as `read`, with a regression's label standardised."""
        values = self.read(column)
        if self.task == "regression":
            return ((values - self.shift) / self.scale).astype(np.float32)
        return values


class LabelReader:
    """Checks a label column that comes in pieces, and gives the label when all were seen."""

    def __init__(self, name: str, task: str) -> None:
        """Starts reading.

        Args:
            name: The label's column.
            task: One of `TASKS`. A binary label is a boolean, or a number that is 0 or 1. Classes
                are strings, integers or booleans. A regression label is a number.

        Raises:
            InputError: If there is no such task.
        """
        if task not in TASKS:
            raise InputError(f"The task is {task!r}; it must be one of {', '.join(TASKS)}.")
        self._name, self._task = name, task
        self._rows = self._nulls = self._unfit = 0
        self._type = pa.null()
        self._distinct: set[Any] = set()

    def update(self, column: pa.ChunkedArray) -> None:
        """Takes in further rows."""
        column = _decoded(column)
        self._type = column.type
        self._rows += len(column)
        self._nulls += column.null_count
        present = column.drop_null()
        kind = feature_type(column.type)
        if self._task == "regression" and kind in ("float", "int"):
            numbers = _numbers(present)
            finite = numbers[np.isfinite(numbers)]
            self._unfit += len(numbers) - len(finite)
            if len(finite):  # two values are enough to see that it varies
                self._distinct |= {float(finite.min()), float(finite.max())}
                self._distinct = {min(self._distinct), max(self._distinct)}
        elif self._task == "multiclass" and _are_classes(present, kind):
            self._distinct.update(pc.unique(_class_values(present)).to_pylist())
        elif self._task == "multiclass":
            self._unfit += len(present)
        elif len(self._distinct) <= _NAMED:
            self._distinct.update(pc.unique(present).to_pylist())

    def label(self) -> Label:
        """Returns the label.

        Raises:
            InputError: If it has nulls, is constant, or does not fit the task.
        """
        if self._nulls:
            raise InputError(
                f"The label {self._name!r} is null in {self._nulls} of {self._rows} rows; "
                "filter those rows out in the query."
            )
        if len(self._distinct) == 1 and not self._unfit:
            raise InputError(
                f"The label {self._name!r} is {next(iter(self._distinct))!r} in all {self._rows} "
                "rows; there is nothing to learn, so check the query that makes it."
            )
        kind = feature_type(self._type)
        if self._task == "binary":
            self._check_binary(kind)
        elif self._task == "regression":
            self._check_numbers(kind)
        else:
            self._check_classes(kind)
            return Label(self._name, self._task, sorted(self._distinct))
        return Label(self._name, self._task)

    def _check_binary(self, kind: str) -> None:
        if kind not in ("float", "int", "bool") or not self._distinct <= {0, 1}:
            shown = ", ".join(repr(value) for value in sorted(self._distinct, key=repr)[:_NAMED])
            raise InputError(
                f"The label {self._name!r} holds {shown}; for the task binary it must be a boolean "
                "or 0 and 1, so compare it with the positive value in the query."
            )

    def _check_classes(self, kind: str) -> None:
        if self._unfit or kind == "":
            raise InputError(
                f"The label {self._name!r} holds {self._type}; for the task multiclass it must be "
                "strings or integers, so cast it in the query, or use the task regression."
            )

    def _check_numbers(self, kind: str) -> None:
        if kind not in ("float", "int"):
            raise InputError(
                f"The label {self._name!r} holds {self._type}; for the task regression it must be "
                "a number."
            )
        if self._unfit:
            raise InputError(
                f"The label {self._name!r} holds NaN or infinity in {self._unfit} of "
                f"{self._rows} rows; filter those rows out in the query."
            )


class LabelFitter:
    """Learns counts, or mean and deviation, from the rows that are learned from."""

    def __init__(self, label: Label) -> None:
        self._label = label
        self._moments = Moments()
        size = {"binary": 2, "multiclass": len(label.values)}.get(label.task, 0)
        self._counts = np.zeros(size, np.int64)
        self._bounds: tuple[float, float] | None = None

    def update(self, column: pa.ChunkedArray) -> None:
        """Takes in further rows."""
        values = self._label.read(column)
        if not len(values):
            return
        if self._label.task != "regression":
            self._counts += np.bincount(values.astype(np.int64), minlength=len(self._counts))
            return
        self._moments.update(values)
        low, high = self._bounds or (np.inf, -np.inf)
        self._bounds = min(low, float(values.min())), max(high, float(values.max()))

    def finish(self) -> None:
        """Sets the label's counts, or its shift and scale.

        Raises:
            InputError: If all rows seen have the same label.
        """
        label = self._label
        varies = (
            self._bounds is not None and self._bounds[0] < self._bounds[1]
            if label.task == "regression"
            else np.count_nonzero(self._counts) > 1
        )
        if not varies:
            rows = self._moments.rows or int(self._counts.sum())
            raise InputError(
                f"The label {label.name!r} is constant in the {rows} rows before the validation "
                "part; give more rows, or check that they are not sorted by the label."
            )
        label.counts = self._counts.tolist()
        if label.task == "regression":
            label.shift, label.scale = self._moments.mean, self._moments.deviation
            self._check_range()

    def _check_range(self) -> None:
        """Raises InputError if the graph's float32 cannot return to the label's own unit."""
        label, low, high = self._label, *(self._bounds or (0.0, 0.0))
        if max(-low, high) > _LARGEST or label.scale < max(_SMALLEST, 1e-7 * abs(label.shift)):
            raise InputError(
                f"The label {label.name!r} lies between {low:.9g} and {high:.9g}, which 32-bit "
                "floating point cannot tell apart; scale or shift it in the query, or take its "
                "logarithm."
            )


def class_weights(label: Label, wanted: str | dict[str, float]) -> list[float]:
    """Returns the weight of each class by position; an empty list for all alike.

    Args:
        label: With its counts.
        wanted: The hyperparameter `class_weights`: "", "balanced" or class to weight. The classes
            of a binary label are named "0" and "1", or "false" and "true".

    Raises:
        InputError: If the label is a number, or a named class is not one of its classes.
    """
    if not wanted:
        return []
    if label.task == "regression":
        raise InputError("class_weights needs classes; the task regression has none.")
    if isinstance(wanted, str):
        rows, present = sum(label.counts), np.count_nonzero(label.counts)
        # A class that is not learned from has no rows to weigh.
        return [float(rows / (present * count)) if count else 1.0 for count in label.counts]
    names = label.classes or ["0", "1"]
    aliases = {} if label.classes else {"false": "0", "true": "1"}
    given = {aliases.get(name.lower(), name): weight for name, weight in wanted.items()}
    unknown = [name for name in given if name not in names]
    if unknown:
        raise InputError(
            f"class_weights names {', '.join(map(repr, unknown))}, which is no class of the label; "
            f"it has {', '.join(names)}."
        )
    return [given.get(name, 1.0) for name in names]


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    return column


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Returns float64; whole numbers beyond 2**53 become the nearest."""
    return column.cast(pa.float64(), safe=False).to_numpy()


def _are_classes(column: pa.ChunkedArray, kind: str) -> bool:
    if kind in ("float", "int"):
        numbers = _numbers(column)
        whole = np.isfinite(numbers) & (numbers == np.round(numbers))
        return bool((whole & (np.abs(numbers) < 2.0**63)).all())
    return kind in ("string", "bool")


def _class_values(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns strings or int64."""
    kind = feature_type(column.type)
    return _decoded(column).cast(pa.string() if kind == "string" else pa.int64())
