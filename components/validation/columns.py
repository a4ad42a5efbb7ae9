# SPDX-License-Identifier: Apache-2.0
"""What TFDV can measure: every Arrow type is turned into one that it reads, or refused by name."""

import pyarrow as pa
import pyarrow.compute as pc

from kfloop.components.contracts.errors import InputError

# What a column holds, as people say it. It goes into the statistics beside TFDV's own type, which
# knows only integers, floats and strings.
KINDS = ("bool", "int", "float", "string", "bytes", "date", "timestamp", "time", "list", "empty")


def kind_of(name: str, arrow_type: pa.DataType) -> str:
    """Returns the kind of a column, one of `KINDS`.

    Raises:
        InputError: If the type cannot be measured, for example a struct.
    """
    types = pa.types
    if types.is_dictionary(arrow_type):
        return kind_of(name, arrow_type.value_type)
    if isinstance(arrow_type, pa.BaseExtensionType):
        return kind_of(name, arrow_type.storage_type)
    if types.is_boolean(arrow_type):
        return "bool"
    if types.is_integer(arrow_type):
        return "int"
    if types.is_floating(arrow_type) or types.is_decimal(arrow_type):
        return "float"
    if _is_text(arrow_type):
        return "string"
    if _is_binary(arrow_type):
        return "bytes"
    if types.is_date(arrow_type):
        return "date"
    if types.is_timestamp(arrow_type):
        return "timestamp"
    if types.is_time(arrow_type) or types.is_duration(arrow_type):
        return "time"
    if types.is_null(arrow_type):
        return "empty"
    if _is_list(arrow_type) and kind_of(name, arrow_type.value_type) in (
        "bool",
        "int",
        "float",
        "string",
        "bytes",
    ):
        return "list"
    raise InputError(
        f"Column {name!r} is of type {arrow_type}, which cannot be measured; "
        "turn it into plain columns in the query."
    )


def clean(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the batch with every column in a type that TFDV measures; none is dropped.

    Booleans become 0 and 1, decimals floats, dictionaries their values, dates and timestamps
    seconds since 1970 UTC, times of day and durations seconds. NaN becomes missing.

    Raises:
        InputError: If a column cannot be measured.
    """
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        kind_of(name, column.type)
        columns.append(_clean(column))
    return pa.RecordBatch.from_arrays(columns, batch.schema.names)


def _clean(column: pa.Array) -> pa.Array:
    types, arrow_type = pa.types, column.type
    if types.is_dictionary(arrow_type):
        return _clean(column.dictionary_decode())
    if isinstance(column, pa.ExtensionArray):
        return _clean(column.storage)
    if types.is_uint64(arrow_type) or types.is_decimal(arrow_type):
        # They may not fit into 64-bit integers; the digits beyond a float's do not matter here.
        return column.cast(pa.float64(), safe=False)
    if types.is_boolean(arrow_type) or types.is_integer(arrow_type):
        return column.cast(pa.int64())
    if types.is_float16(arrow_type):
        return _without_nan(column.cast(pa.float32()))
    if types.is_floating(arrow_type):
        return _without_nan(column)
    if _is_text(arrow_type):
        return column.cast(pa.string())
    if _is_binary(arrow_type):
        return column.cast(pa.binary())
    if types.is_date(arrow_type):
        return column.cast(pa.timestamp("s")).cast(pa.int64())
    if types.is_timestamp(arrow_type):
        return column.cast(pa.timestamp("s", tz=arrow_type.tz), safe=False).cast(pa.int64())
    if types.is_time(arrow_type) or types.is_duration(arrow_type):
        return _seconds(column)
    if _is_list(arrow_type):
        item = _clean(pa.array([], arrow_type.value_type)).type
        return column.cast(pa.large_list(item))
    return column  # null: nothing is known about it yet


def _without_nan(column: pa.Array) -> pa.Array:
    return pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)


def _seconds(column: pa.Array) -> pa.Array:
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[column.type.unit]
    whole = pa.int32() if column.type.bit_width == 32 else pa.int64()
    return pc.divide(column.cast(whole).cast(pa.float64()), float(per_second))


def _is_text(arrow_type: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_string(arrow_type)
        or types.is_large_string(arrow_type)
        or types.is_string_view(arrow_type)
    )


def _is_binary(arrow_type: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_binary(arrow_type)
        or types.is_large_binary(arrow_type)
        or types.is_binary_view(arrow_type)
        or types.is_fixed_size_binary(arrow_type)
    )


def _is_list(arrow_type: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_list(arrow_type)
        or types.is_large_list(arrow_type)
        or types.is_fixed_size_list(arrow_type)
    )
