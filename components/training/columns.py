# SPDX-License-Identifier: Apache-2.0
"""Which columns are the model's features."""

import keyword
import re
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.inference_log import RESERVED
from kfloop.components.contracts.model_io import feature_type
from kfloop.components.contracts.model_package import PREDICTION, Feature

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


def categorical_features(
    features: list[Feature], wanted: tuple[str, ...], declared: set[str]
) -> set[str]:
    """Returns the integer features that are treated as categories.

    Args:
        features: The model's features.
        wanted: The hyperparameter `categorical`.
        declared: Those that the data schema declares.

    Raises:
        InputError: If `wanted` names something that cannot be a category.
    """
    integers = {feature.name for feature in features if feature.type == "int"}
    strings = {feature.name for feature in features if feature.type == "string"}
    wrong = [name for name in wanted if name not in integers | strings]
    if wrong:
        raise InputError(
            f"The hyperparameter categorical names {', '.join(map(repr, wrong))}, which is not an "
            f"integer feature; those are {', '.join(sorted(integers)) or 'none'}."
        )
    return (set(wanted) | declared) & integers
