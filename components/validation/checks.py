# SPDX-License-Identifier: Apache-2.0
"""Checks of one set of statistics: rows, label, schema and rules."""

from typing import Any

from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2

from kfloop.components.contracts.decision import Reason
from kfloop.components.validation.findings import Limits, failed, reported
from kfloop.components.validation.rules import Rule
from kfloop.components.validation.schema import allowed_values, columns_absent_in
from kfloop.components.validation.summary import Column, Summary

_Type = anomalies_pb2.AnomalyInfo.Type


def row_check(now: Summary, limits: Limits) -> Reason:
    """Checks that there are enough rows."""
    enough = now.rows >= limits.minimum_rows
    why = f"the data has {now.rows:,} rows"
    if not enough:
        why += f", fewer than the {limits.minimum_rows:,} that are needed"
    return Reason("rows", "rows", now.rows, limits.minimum_rows, enough, why)


def label_checks(now: Summary, schema: Any, label: str, environment: str) -> list[Reason]:
    """Checks that the label is there and varies, where the environment expects it."""
    if not label or label in columns_absent_in(schema, environment):
        return []
    column = now.columns.get(label)
    if column is None:
        why = f"label {label!r} is missing; the data has {', '.join(now.columns)}"
        return [Reason("label", label, None, None, False, why)]
    if not column.count:
        why = f"label {label!r} is empty in all {now.rows:,} rows"
        return [Reason("label", label, None, None, False, why)]
    if column.is_constant:
        value = f"{column.min:g}" if column.is_number else column.values[0][0]
        why = (
            f"label {label!r} has a single value ({value}) in all {column.count:,} rows that have "
            "one, so there is nothing to learn"
        )
        return [Reason("label", label, value, None, False, why)]
    return [Reason("label", label, column.count, None, True, f"label {label!r} varies")]


def schema_checks(found: Any, now: Summary, schema: Any, label: str) -> list[Reason]:
    """Returns a reason for each of TFDV's anomalies and for the few unknown values it lets pass."""
    reasons = []
    for name, info in sorted(found.anomaly_info.items()):
        name = name or "the dataset"
        if name == label and _told_by_label_check(info):
            continue
        for anomaly in info.reason:
            reasons.append(_judge(name, anomaly, now, schema, info.severity))
    flagged = set(found.anomaly_info)
    for feature in schema.feature:
        column = now.columns.get(feature.name)
        if column is not None and feature.name not in flagged and column.values:
            reasons += _few_unknown_values(column, allowed_values(schema, feature.name))
    if not flagged:
        why = f"all {len(now.columns)} columns are as the schema expects"
        reasons.insert(0, Reason("schema", "columns", len(now.columns), None, True, why))
    return reasons


def _told_by_label_check(info: Any) -> bool:
    absent = (_Type.SCHEMA_MISSING_COLUMN, _Type.FEATURE_TYPE_NOT_PRESENT)
    return all(anomaly.type in absent for anomaly in info.reason)


def _judge(name: str, anomaly: Any, now: Summary, schema: Any, severity: int) -> Reason:
    """Turns one of TFDV's anomalies into a reason, in words where TFDV's are not plain."""
    column = now.columns.get(name)
    kind = anomaly.type
    if kind == _Type.SCHEMA_MISSING_COLUMN:
        return failed("column", name, None, f"column {name!r} is missing")
    if kind == _Type.SCHEMA_NEW_COLUMN:
        return reported("column", name, None, f"column {name!r} is not in the schema")
    if column is not None and kind == _Type.FEATURE_TYPE_NOT_PRESENT:
        return failed("missing", name, 1.0, f"column {name!r} is empty in all {now.rows:,} rows")
    if column is not None and kind == _Type.FEATURE_TYPE_LOW_FRACTION_PRESENT:
        allowed = 1 - _feature(schema, name).presence.min_fraction
        why = (
            f"column {name!r} is missing in {column.missing:.1%} of the rows, "
            f"the schema allows {allowed:.1%}"
        )
        return failed("missing", name, column.missing, why, round(allowed, 4))
    if column is not None and kind == _Type.UNEXPECTED_DATA_TYPE:
        return _judge_type(column, _feature(schema, name))
    why = f"column {name!r}: {anomaly.short_description.lower()}: {anomaly.description.strip()}"
    if severity == anomalies_pb2.AnomalyInfo.WARNING:
        return reported("schema", name, None, why)
    return failed("schema", name, None, why.rstrip("."))


def _judge_type(column: Column, feature: Any) -> Reason:
    tag = next(iter(feature.annotation.tag), "")
    expected = tag or schema_pb2.FeatureType.Name(feature.type).lower()
    why = f"column {column.name!r} holds {column.kind}, the schema expects {expected}"
    if not column.count:
        why = f"column {column.name!r} is empty, the schema expects {expected}"
        return reported("type", column.name, "empty", why, expected)
    if tag == "empty":
        why = f"column {column.name!r} holds {column.kind}, it was empty in the schema's data"
        return reported("type", column.name, column.kind, why, "empty")
    both_numbers = column.is_number and feature.type in (schema_pb2.INT, schema_pb2.FLOAT)
    if both_numbers and not column.is_time and tag not in ("date", "timestamp"):
        return reported("type", column.name, column.kind, why, expected)
    return failed("type", column.name, column.kind, why, expected)


def _few_unknown_values(column: Column, allowed: set[str]) -> list[Reason]:
    """Reports unlisted values that are too few for TFDV to call an anomaly."""
    unknown = {value: count for value, count in column.values if value not in allowed}
    if not allowed or not unknown:
        return []
    share = sum(unknown.values()) / column.count
    named = ", ".join(list(unknown)[:5]) + (", …" if len(unknown) > 5 else "")
    why = f"column {column.name!r} has new values in {share:.2%} of the rows: {named}"
    return [reported("values", column.name, share, why)]


def rule_checks(rules: list[Rule], now: Summary) -> list[Reason]:
    """Checks each rule; one that cannot be measured does not hold."""
    reasons = []
    for rule in rules:
        value = rule.value(now)
        if value is None:
            problem = (
                f"the data has no column {rule.column!r}"
                if rule.column not in now.columns
                else f"a {now.columns[rule.column].kind} column has no {rule.statistic}, or it is "
                "empty"
            )
            why = f"rule '{rule.text}' cannot be checked: {problem}"
            reasons.append(Reason("rule", rule.text, None, rule.number, False, why))
            continue
        holds = rule.holds(value)
        why = f"rule '{rule.text}' {'holds' if holds else 'is broken'}: it is {value:.6g}"
        reasons.append(Reason("rule", rule.text, value, rule.number, holds, why))
    return reasons


def _feature(schema: Any, name: str) -> Any:
    return next(feature for feature in schema.feature if feature.name == name)
