"""Which columns are the model's features, and what the label holds."""

import keyword
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.inference_log import RESERVED
from kfloop.components.contracts.model_io import feature_type
from kfloop.components.contracts.model_package import PREDICTION, TASKS, Feature

# What a SavedModel's signature can name; anything else is renamed or refused by TensorFlow.
_INPUT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


@dataclass
class Roles:
    """What the columns of the training data are for.

    Attributes:
        label: Column to predict.
        timestamp: Event time, or empty.
        entities: Entity keys.
        features: Wanted features; empty for every other column.
    """

    label: str
    timestamp: str = ""
    entities: list[str] = field(default_factory=list)
    features: list[str] = field(default_factory=list)


@dataclass
class SchemaHints:
    """What the data schema says beyond the column types.

    Attributes:
        unavailable: Features that the schema takes out of use or that serving will not have.
        categorical: Integer features declared as categories.
        domains: The declared values of string features.
    """

    unavailable: set[str] = field(default_factory=set)
    categorical: set[str] = field(default_factory=set)
    domains: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Label:
    """The label as the network is trained on it.

    Attributes:
        values: float32 0/1 (binary), int32 class positions (multiclass) or float64 numbers in the
            label's own unit (regression).
        classes: The classes by position; multiclass only.
    """

    values: np.ndarray
    classes: list[str] = field(default_factory=list)


def read_schema_hints(path: str | Path) -> SchemaHints:
    """Reads a TFDV schema (text proto).

    Raises:
        InputError: If the file is not a schema.
    """
    schema = schema_pb2.Schema()
    try:
        text_format.Parse(Path(path).read_text(encoding="utf-8"), schema)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a data schema: {error}.") from error
    shared = {domain.name: list(domain.value) for domain in schema.string_domain}
    hints = SchemaHints()
    in_use = (schema_pb2.UNKNOWN_STAGE, schema_pb2.PRODUCTION, schema_pb2.BETA)
    for feature in schema.feature:
        if feature.lifecycle_stage not in in_use or "SERVING" in feature.not_in_environment:
            hints.unavailable.add(feature.name)
        if feature.int_domain.is_categorical:
            hints.categorical.add(feature.name)
        domain = list(feature.string_domain.value) or shared.get(feature.domain, [])
        if domain:
            hints.domains[feature.name] = domain
    return hints


def choose_features(schema: pa.Schema, roles: Roles, unavailable: set[str]) -> list[Feature]:
    """Returns the model's features with their types, in the order of the data.

    Args:
        schema: Columns of the training data.
        roles: What the columns are for.
        unavailable: Columns to leave out when `roles.features` is empty.

    Raises:
        InputError: If a named column is missing, is the label, or cannot be a feature; or if
            nothing is left.
    """
    for role, names in (
        ("label", [roles.label]),
        ("timestamp", [roles.timestamp] if roles.timestamp else []),
        ("entity", roles.entities),
        ("feature", roles.features),
    ):
        missing = [name for name in names if name not in schema.names]
        if missing:
            raise InputError(
                f"The {role} {', '.join(map(repr, missing))} is not a column of the training "
                f"data; it has {', '.join(schema.names)}."
            )
    if roles.label in roles.features:
        raise InputError(f"The label {roles.label!r} is listed as a feature; take it out.")
    others = {roles.label, roles.timestamp, *roles.entities} | unavailable
    wanted = set(roles.features) or set(schema.names) - others
    if not wanted:
        raise InputError(
            f"No feature is left: the training data has only {', '.join(schema.names)}, "
            "which are the label, the timestamp, the entities, or not available in serving."
        )
    chosen = [
        Feature(name, feature_type(schema.field(name).type))
        for name in schema.names
        if name in wanted
    ]
    _require_supported(chosen, schema)
    _require_loggable([*(item.name for item in chosen), *roles.entities])
    return chosen


def _require_loggable(names: list[str]) -> None:
    taken = sorted(RESERVED.intersection(names))
    if taken:
        raise InputError(
            f"Column {', '.join(map(repr, taken))} has a name that the inference log uses itself; "
            "rename it in the query."
        )


def _require_supported(features: list[Feature], schema: pa.Schema) -> None:
    unsupported = [
        f"{item.name!r} ({schema.field(item.name).type})" for item in features if not item.type
    ]
    if unsupported:
        raise InputError(
            f"Column {', '.join(unsupported)} cannot be a feature: a feature is a number, a "
            "boolean or a string; cast it in the query, or list the `features` without it."
        )
    lowered = [item.name.lower() for item in features]
    for item in features:
        if (
            not _INPUT_NAME.fullmatch(item.name)
            or keyword.iskeyword(item.name)
            or item.name in ("self", PREDICTION)
            or lowered.count(item.name.lower()) > 1
        ):
            raise InputError(
                f"Feature {item.name!r} cannot name an input of the exported model; rename it in "
                "the query (letters, digits and _, a letter first, no Python keyword, not 'self' "
                f"or {PREDICTION!r}, and no two names that differ only in case)."
            )


def read_label(column: pa.ChunkedArray, name: str, task: str) -> Label:
    """Checks a label column and returns its values for training.

    Args:
        column: The label of every row.
        name: Its column name, for the errors.
        task: One of `TASKS`. A binary label is a boolean, or a number that is 0 or 1. Classes are
            strings, integers or booleans. A regression label is a number.

    Raises:
        InputError: If the task is unknown, or the label has nulls, is constant, or does not fit
            the task.
    """
    if task not in TASKS:
        raise InputError(f"The task is {task!r}; it must be one of {', '.join(TASKS)}.")
    if column.null_count:
        raise InputError(
            f"The label {name!r} is null in {column.null_count} of {len(column)} rows; "
            "filter those rows out in the query."
        )
    distinct = pc.unique(column)
    if len(distinct) < 2:
        raise InputError(
            f"The label {name!r} is {distinct[0].as_py()!r} in all {len(column)} rows; "
            "there is nothing to learn, so check the query that makes it."
        )
    read = {"binary": _binary, "multiclass": _classes, "regression": _numbers}[task]
    return read(column, name)


def _binary(column: pa.ChunkedArray, name: str) -> Label:
    kind = feature_type(column.type)
    values = column.cast(pa.float64()).to_numpy() if kind in ("float", "int", "bool") else None
    if values is None or not np.isin(values, (0.0, 1.0)).all():
        shown = ", ".join(repr(value) for value in pc.unique(column)[:5].to_pylist())
        raise InputError(
            f"The label {name!r} holds {shown}; for the task binary it must be a boolean or 0 and "
            "1, so compare it with the positive value in the query."
        )
    return Label(values.astype(np.float32))


def _classes(column: pa.ChunkedArray, name: str) -> Label:
    kind = feature_type(column.type)
    if kind == "float":
        numbers = column.cast(pa.float64()).to_numpy()
        if np.isfinite(numbers).all() and (numbers == np.round(numbers)).all():
            column, kind = column.cast(pa.int64()), "int"
    if kind not in ("string", "int", "bool"):
        raise InputError(
            f"The label {name!r} holds {column.type}; for the task multiclass it must be strings "
            "or integers, so cast it in the query, or use the task regression."
        )
    values = column.cast(pa.int64() if kind != "string" else pa.string())
    distinct = sorted(pc.unique(values).to_pylist())
    positions = pc.index_in(values, pa.array(distinct, values.type)).to_numpy()
    return Label(positions.astype(np.int32), [str(value) for value in distinct])


def _numbers(column: pa.ChunkedArray, name: str) -> Label:
    if feature_type(column.type) not in ("float", "int"):
        raise InputError(
            f"The label {name!r} holds {column.type}; for the task regression it must be a number."
        )
    values = column.cast(pa.float64()).to_numpy()
    if not np.isfinite(values).all():
        raise InputError(
            f"The label {name!r} holds NaN or infinity in {int((~np.isfinite(values)).sum())} of "
            f"{len(values)} rows; filter those rows out in the query."
        )
    return Label(values)


def class_weights(label: Label, wanted: str | dict[str, float], rows: np.ndarray) -> list[float]:
    """Returns the weight of each class by position; an empty list for all alike.

    Args:
        label: As `read_label` returns it.
        wanted: The hyperparameter `class_weights`: "", "balanced" or class to weight. The classes
            of a binary label are named "0" and "1", or "false" and "true".
        rows: Row numbers that are learned from, which "balanced" counts.

    Raises:
        InputError: If the label is a number, or a named class is not one of its classes.
    """
    if not wanted:
        return []
    if label.values.dtype == np.float64:
        raise InputError("class_weights needs classes; the task regression has none.")
    if isinstance(wanted, str):
        counts = np.bincount(label.values[rows].astype(np.int64), minlength=len(label.classes))
        present = np.count_nonzero(counts)
        # A class that is not learned from has no rows to weigh.
        return [float(len(rows) / (present * count)) if count else 1.0 for count in counts]
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
