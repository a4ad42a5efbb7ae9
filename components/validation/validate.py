# SPDX-License-Identifier: Apache-2.0
"""Validation: statistics held against a schema, a baseline and rules; every finding has a reason.

What fails, by default: no rows or too few, a column of the schema that is missing or empty, a
wrong type, more missing values than before, a label that is missing or constant or has a new
value, more than a tenth of unknown values in a listed column, infinite values, a rule.

What is only reported: a new column, a few unknown values in a listed column, whole numbers where
there were fractions or the reverse, and drift from the baseline or skew to what is served (see the
parameters `drift` and `skew`), since the next month is allowed to be another season.
"""

import copy
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import anomalies_pb2

from kfloop.components.contracts.decision import (
    NO_DATA,
    Decision,
    Reason,
    outcome_of,
    write_decision,
)
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import write_text
from kfloop.components.validation.checks import (
    label_checks,
    row_check,
    rule_checks,
    schema_checks,
)
from kfloop.components.validation.comparison import baseline_checks, skew_checks
from kfloop.components.validation.findings import REPORTED, Limits
from kfloop.components.validation.page import render_page
from kfloop.components.validation.rules import parse_rule
from kfloop.components.validation.schema import SERVING, columns_absent_in, read_schema_file
from kfloop.components.validation.summary import of_all_rows, read_statistics, summarize
from kfloop.components.validation.tfdv import tfdv

GATE = "data validation"


def validate_data(
    statistics: str | Path,
    schema: str | Path,
    anomalies: str | Path,
    decision: str | Path,
    page: str | Path,
    label: str = "",
    environment: str = "TRAINING",
    baseline: str | Path = "",
    rules: list[str] | None = None,
    ignore: list[str] | None = None,
    limits: Limits | None = None,
    serving: str | Path = "",
) -> Decision:
    """Validates statistics and writes the anomalies, the decision and a page.

    Args:
        statistics: File written by `compute_statistics`: the data to judge.
        schema: File written by `infer_schema`.
        anomalies: File to write: TFDV's anomalies as text.
        decision: File to write: the decision as JSON.
        page: File to write: HTML with every column.
        label: Label column; judged where the environment expects it.
        environment: The schema's environment: TRAINING (with the label) or SERVING (without).
        baseline: Statistics to compare with, slice by slice where both have slices; empty for
            none, as are the same statistics once more.
        rules: Rules over the statistics, see rules.py.
        ignore: Columns that are not judged.
        limits: What is tolerated; the defaults of `Limits` when absent.
        serving: Statistics of what a live service received, to find training/serving skew; empty
            for none.

    Returns:
        The decision: `pass`, `fail`, or `no_data` when the statistics are of no rows.

    Raises:
        InputError: If a file cannot be read, a rule cannot be parsed or the schema has no such
            environment.
    """
    limits = limits or Limits()
    parsed_rules = [parse_rule(rule) for rule in rules or []]
    current = _without(read_statistics(statistics), ignore or [])
    expected = _schema_without(read_schema_file(schema), ignore or [])
    # Where the training data has no end yet it is its own baseline: nothing to compare.
    own = bool(baseline) and Path(baseline).read_bytes() == Path(statistics).read_bytes()
    before = _without(read_statistics(baseline), ignore or []) if baseline and not own else None
    served = _without(read_statistics(serving), ignore or []) if serving else None
    now = summarize(current)

    found = find_anomalies(current, expected, environment, before, served)
    write_text(anomalies, text_format.MessageToString(found))
    if found.data_missing or not now.rows:
        why = "the data has no rows, so there is nothing to validate"
        reasons = [Reason("rows", "rows", 0, limits.minimum_rows, False, why)]
        outcome = Decision(GATE, NO_DATA, reasons)
    else:
        reasons = [
            row_check(now, limits),
            *label_checks(now, expected, label, environment),
            *schema_checks(found, now, expected, label),
            *rule_checks(parsed_rules, now),
        ]
        if before is not None:
            reasons += baseline_checks(now, summarize(before), found, limits)
        if served is not None:
            unserved = {label, *columns_absent_in(expected, SERVING)}
            reasons += skew_checks(now, summarize(served), unserved, limits)
        outcome = Decision(GATE, outcome_of(reasons), _noteworthy_first(reasons))
    beside, name = (before, "the baseline") if before is not None else (served, "the serving data")
    shown = summarize(beside) if beside is not None else None
    if shown is not None:
        outcome.baseline = f"{name}'s statistics of {shown.rows:,} rows"
    write_decision(outcome, decision)
    write_text(page, render_page(outcome, now, shown, name))
    return outcome


def find_anomalies(
    statistics: Any, schema: Any, environment: str, baseline: Any = None, serving: Any = None
) -> Any:
    """Returns TFDV's anomalies; the others serve the comparators of a hand-written schema.

    Raises:
        InputError: If the schema has environments and not this one.
    """
    environments = list(schema.default_environment)
    if environments and environment not in environments:
        raise InputError(
            f"The schema has no environment {environment!r}; it has {', '.join(environments)}."
        )
    whole = of_all_rows(statistics)
    if not whole.datasets[0].num_examples:
        return anomalies_pb2.Anomalies(data_missing=True)
    return tfdv().validate_statistics(
        whole,
        schema,
        environment=environment if environments else None,
        previous_statistics=of_all_rows(baseline) if baseline is not None else None,
        serving_statistics=of_all_rows(serving) if serving is not None else None,
    )


def _noteworthy_first(reasons: list[Reason]) -> list[Reason]:
    """The decision's summary tells the first few: the rows, then what was only reported."""
    reported = [reason for reason in reasons[1:] if reason.check.endswith(REPORTED)]
    others = [reason for reason in reasons[1:] if not reason.check.endswith(REPORTED)]
    return [reasons[0], *reported, *others]


def _without(statistics: Any, names: list[str]) -> Any:
    """Returns the statistics without some columns."""
    for dataset in statistics.datasets:
        kept = [each for each in dataset.features if each.path.step[0] not in names]
        kept = [copy.deepcopy(each) for each in kept]
        del dataset.features[:]
        dataset.features.extend(kept)
    return statistics


def _schema_without(schema: Any, names: list[str]) -> Any:
    kept = [copy.deepcopy(each) for each in schema.feature if each.name not in names]
    del schema.feature[:]
    schema.feature.extend(kept)
    return schema
