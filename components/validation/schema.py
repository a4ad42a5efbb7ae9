# SPDX-License-Identifier: Apache-2.0
"""Schemas: what the data is expected to look like, as TFDV's Schema proto in text form."""

import hashlib
import math
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import write_text
from kfloop.components.validation.summary import (
    Column,
    Summary,
    of_all_rows,
    read_statistics,
    summarize,
)
from kfloop.components.validation.tfdv import tfdv

TRAINING, SERVING = "TRAINING", "SERVING"
# A string column with more values than this, or with fewer rows per value, has no list of allowed
# values: it is a name or an identifier, and tomorrow's rows bring new ones.
MAX_DOMAIN, MIN_ROWS_PER_VALUE = 50, 10
# A listed column may bring this share of unlisted values (a new store, a new airport) before it
# fails: more is a changed encoding.
NEW_VALUES_ALLOWED = 0.1
# What TFDV counts all texts of more than 1,024 bytes as, and those that are not UTF-8.
NOT_COUNTED = {"__LARGE_BYTES__", "__BYTES_VALUE__"}


def infer_schema(
    statistics: str | Path,
    schema: str | Path,
    label: str = "",
    schema_uri: str = "",
    missing_slack: float = 0.1,
) -> dict[str, Any]:
    """Infers a schema from statistics, or takes the one a person wrote.

    Beyond what TFDV infers: each column's minimum presence is that of the baseline less a slack;
    the label is expected in the TRAINING environment and absent in SERVING; only columns of few
    values get a list of allowed values; a numeric column without infinities forbids them.

    Args:
        statistics: File written by `compute_statistics`.
        schema: File to write: TFDV's schema as text.
        label: Label column; empty when there is none.
        schema_uri: Path or URI of a schema text file that is used as it is instead.
        missing_slack: How much the share of missing values may grow, 0 to 1.

    Returns:
        The artifact's metadata: `fingerprint` (sha256 of the file), `features` (their number),
        `label` and `source` (`inferred` or the URI).

    Raises:
        InputError: If the label is not in the data or the schema, or the given schema cannot be
            read.
    """
    check_slack(missing_slack)
    if schema_uri:
        text = _read_text(schema_uri)
        proto = parse_schema(text, schema_uri)
    else:
        proto = infer_proto(of_all_rows(read_statistics(statistics)), label, missing_slack)
        text = text_format.MessageToString(proto)
    names = [feature.name for feature in proto.feature]
    if label and label not in names:
        where = f"schema {schema_uri}" if schema_uri else "data"
        raise InputError(f"Label {label!r} is not in the {where}; it has {', '.join(names)}.")
    write_text(schema, text)
    return {
        "fingerprint": hashlib.sha256(text.encode()).hexdigest(),
        "features": len(names),
        "label": label,
        "source": schema_uri or "inferred",
    }


def read_schema_file(path: str | Path) -> Any:
    """Reads a schema text file.

    Raises:
        InputError: If there is none or it is not a schema.
    """
    return parse_schema(_read_text(str(path)), str(path))


def parse_schema(text: str, source: str) -> Any:
    """Parses a schema and refuses what TFDV would silently not check.

    Raises:
        InputError: If it is not a schema, has no feature, or compares a numeric column by
            L-infinity, which TFDV computes as 0 whatever the data.
    """
    try:
        proto = text_format.Parse(text, schema_pb2.Schema())
    except text_format.ParseError as error:
        raise InputError(f"The schema {source} cannot be read: {error}.") from error
    if not proto.feature:
        raise InputError(f"The schema {source} describes no feature.")
    for feature in proto.feature:
        comparators = (feature.drift_comparator, feature.skew_comparator)
        if feature.type != schema_pb2.BYTES and any(
            comparator.HasField("infinity_norm") for comparator in comparators
        ):
            raise InputError(
                f"The schema {source} compares the numeric column {feature.name!r} by "
                "infinity_norm, which TFDV always finds to be 0; use jensen_shannon_divergence, "
                "or leave it to validate_data's own distance."
            )
    return proto


def check_slack(missing_slack: float) -> None:
    """Raises InputError unless the slack is a share."""
    if not 0 <= missing_slack <= 1:
        raise InputError(f"missing_slack is {missing_slack}; it is a share between 0 and 1.")


def allowed_values(schema: Any, name: str) -> set[str]:
    """Returns the values the schema lists for a string column; empty when it lists none."""
    feature = next(each for each in schema.feature if each.name == name)
    if feature.HasField("string_domain"):
        return set(feature.string_domain.value)
    domains = (each for each in schema.string_domain if each.name == feature.domain)
    return {value for domain in domains for value in domain.value}


def columns_absent_in(schema: Any, environment: str) -> list[str]:
    """Returns the columns that data of an environment need not have."""
    return [each.name for each in schema.feature if environment in each.not_in_environment]


def _read_text(uri: str) -> str:
    try:
        if "://" not in uri:
            return Path(uri).read_text(encoding="utf-8")
        from pyarrow import fs

        filesystem, path = fs.FileSystem.from_uri(uri)
        with filesystem.open_input_stream(path) as stream:
            return str(stream.read().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"The schema {uri} is not a text file.") from error
    except (OSError, ValueError) as error:  # ValueError: Arrow does not know the URI's scheme
        raise InputError(
            f"The schema {uri} cannot be opened ({error}); check schema_uri."
        ) from error


def infer_proto(statistics: Any, label: str, missing_slack: float) -> Any:
    """Infers a schema as `infer_schema` does, from statistics of all rows."""
    summary: Summary = summarize(statistics)
    schema = tfdv().infer_schema(
        statistics, infer_feature_shape=False, max_string_domain_size=MAX_DOMAIN
    )
    schema.default_environment.extend([TRAINING, SERVING])
    for feature in schema.feature:
        column = summary.columns[feature.name]
        is_label = feature.name == label
        feature.annotation.tag.append(column.kind)
        set_presence(feature, column, missing_slack)
        _set_domain(schema, feature, column, is_label)
        if is_label:
            feature.not_in_environment.append(SERVING)
    used = {feature.domain for feature in schema.feature}
    kept = [domain for domain in schema.string_domain if domain.name in used]
    del schema.string_domain[:]
    schema.string_domain.extend(kept)
    return schema


def set_presence(feature: Any, column: Column, missing_slack: float) -> None:
    """Demands as many values as the column has, less a slack.

    TFDV demands every value of a column that was complete, and nothing of any other.
    """
    feature.presence.Clear()
    present = round(max(0.0, 1 - column.missing - missing_slack), 4)
    feature.presence.min_fraction = present
    feature.presence.min_count = 1 if present else 0


def _set_domain(schema: Any, feature: Any, column: Column, is_label: bool) -> None:
    if feature.type == schema_pb2.FLOAT:
        bounds = (column.min or 0.0, column.max or 0.0)
        feature.float_domain.disallow_inf = all(math.isfinite(bound) for bound in bounds)
    elif feature.HasField("bool_domain") and not is_label and column.kind != "bool":
        # A count that happened to be 0 or 1 so far.
        feature.ClearField("bool_domain")
    elif feature.type == schema_pb2.BYTES and is_label:
        if not feature.domain and len(column.values) == column.unique:
            feature.domain = feature.name
            schema.string_domain.add(
                name=feature.name, value=sorted(value for value, _ in column.values)
            )
    elif feature.domain:
        hidden = any(value in NOT_COUNTED for value, _ in column.values)
        if hidden or (column.unique or 0) * MIN_ROWS_PER_VALUE > column.count:
            feature.ClearField("domain")
        else:
            feature.distribution_constraints.min_domain_mass = 1 - NEW_VALUES_ALLOWED
