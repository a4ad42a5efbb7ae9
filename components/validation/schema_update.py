# SPDX-License-Identifier: Apache-2.0
"""A proposal for a schema that new data no longer fits, and what exactly it would change.

Nothing is widened by itself: the proposal takes effect when a person has read the changes and gives
the file to `infer_schema` as `schema_uri`.
"""

import difflib
import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from google.protobuf.json_format import MessageToDict
from tensorflow_metadata.proto.v0 import schema_pb2

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import write_json, write_text
from kfloop.components.validation.checks import schema_checks
from kfloop.components.validation.schema import (
    MAX_DOMAIN,
    TRAINING,
    allowed_values,
    check_slack,
    columns_absent_in,
    infer_proto,
    read_schema_file,
    set_presence,
)
from kfloop.components.validation.schema_page import render_changes
from kfloop.components.validation.summary import Summary, of_all_rows, read_statistics, summarize
from kfloop.components.validation.tfdv import tfdv
from kfloop.components.validation.validate import find_anomalies

UNCHANGED, CHANGED = "unchanged", "changed"
NEW, WIDER, DROPPED = "new column", "accepts more", "no longer checked"


@dataclass(frozen=True)
class Change:
    """One field of the schema that the proposal changes.

    Attributes:
        column: The column, or several that share a list of values.
        field: Name of the field in the Schema proto, with dots.
        effect: `new column`, `accepts more` or `no longer checked`.
        before, after: Its values; None where there is none.
        why: What the new data showed.
    """

    column: str
    field: str
    effect: str
    before: Any
    after: Any
    why: str


def update_schema(
    schema: str | Path,
    statistics: str | Path,
    proposed: str | Path,
    changes: str | Path,
    page: str | Path,
    environment: str = TRAINING,
    missing_slack: float = 0.1,
) -> dict[str, Any]:
    """Proposes a schema that new data fits, and says every field that would change.

    Args:
        schema: The schema in use; it is not written to.
        statistics: Statistics of data that is taken as good.
        proposed: File to write: the proposal, as text. It is the schema byte for byte when nothing
            would change.
        changes: File to write: the changes and the text difference, as JSON.
        page: File to write: the same as HTML.
        environment: The data's environment; columns absent from it are left as they are.
        missing_slack: How much the share of missing values may grow over that of the new data,
            for columns whose limit changes; 0 to 1.

    Returns:
        The proposal's metadata: `status` (`unchanged` or `changed`), `changes` (their number),
        `fingerprint` and `replaces` (sha256 of the proposed and of the current text).

    Raises:
        InputError: If a file cannot be read, the schema has no such environment, or there are no
            rows to learn from.
    """
    check_slack(missing_slack)
    current = read_schema_file(schema)
    text = Path(schema).read_text(encoding="utf-8")
    measured = of_all_rows(read_statistics(statistics))
    now = summarize(measured)
    if not now.rows:
        raise InputError(f"The statistics {statistics} are of no rows, so they propose nothing.")
    anomalies = find_anomalies(measured, current, environment)
    evidence: dict[str, list[str]] = {}
    for reason in schema_checks(anomalies, now, current, label=""):
        evidence.setdefault(reason.metric, []).append(reason.why)

    proposal = _propose(current, measured, now, environment, missing_slack)
    found = [
        Change(*each, "; ".join(evidence.get(each[0], ["the new data has it so"])))
        for each in _changes(current, proposal)
    ]
    new_text = text_format.MessageToString(proposal) if found else text
    diff = list(
        difflib.unified_diff(
            text_format.MessageToString(current).splitlines(),
            text_format.MessageToString(proposal).splitlines(),
            "schema in use",
            "proposal",
            n=2,
            lineterm="",
        )
    )
    status = CHANGED if found else UNCHANGED
    write_text(proposed, new_text)
    document = {"status": status, "rows": now.rows, "changes": [asdict(each) for each in found]}
    write_json(changes, document | {"diff": diff})
    write_text(page, render_changes(found, diff, now.rows))
    print(f"schema {status}: {len(found)} changes proposed", flush=True)
    return {
        "status": status,
        "changes": len(found),
        "fingerprint": hashlib.sha256(new_text.encode()).hexdigest(),
        "replaces": hashlib.sha256(text.encode()).hexdigest(),
    }


def _propose(
    current: Any, statistics: Any, now: Summary, environment: str, missing_slack: float
) -> Any:
    """Returns the schema as TFDV updates it, less what TFDV does without asking."""
    proposal = tfdv().update_schema(current, statistics, max_string_domain_size=MAX_DOMAIN)
    inferred = infer_proto(statistics, "", missing_slack)
    fresh = {feature.name: feature for feature in inferred.feature}
    old = {feature.name: feature for feature in current.feature}
    absent = columns_absent_in(current, environment)
    for feature in proposal.feature:
        before, column = old.get(feature.name), now.columns.get(feature.name)
        if column is None:
            if before is not None and feature.name in absent:
                feature.CopyFrom(before)
            continue  # TFDV marks it as deprecated
        if before is None:
            _take(proposal, feature, fresh[feature.name], inferred)
            continue
        if feature.lifecycle_stage != before.lifecycle_stage:
            # TFDV stops checking a column whose type changed.
            feature.CopyFrom(before)
            if column.count and not _fits(fresh[feature.name].type, before.type):
                _take(proposal, feature, fresh[feature.name], inferred)
        elif feature.presence != before.presence:
            set_presence(feature, column, missing_slack)
        _list_new_values(proposal, feature, {value for value, _ in column.values})
    return proposal


def _fits(measured: int, expected: int) -> bool:
    """Whole numbers fit where fractions are expected; else a type fits only itself."""
    both = (measured, expected)
    return measured == expected or both == (schema_pb2.INT, schema_pb2.FLOAT)


def _take(proposal: Any, feature: Any, fresh: Any, inferred: Any) -> None:
    """Describes a column as if it were seen for the first time; its environments stay."""
    environments = list(feature.not_in_environment)
    feature.CopyFrom(fresh)
    feature.not_in_environment.extend(environments)
    if feature.domain and feature.domain not in {each.name for each in proposal.string_domain}:
        domain = next(each for each in inferred.string_domain if each.name == feature.domain)
        proposal.string_domain.add().CopyFrom(domain)


def _list_new_values(proposal: Any, feature: Any, seen: set[str]) -> None:
    """Lists the few new values too that TFDV tolerates, as long as the list stays short."""
    allowed = allowed_values(proposal, feature.name)
    if not allowed or seen <= allowed or len(seen | allowed) > MAX_DOMAIN:
        return
    domains = [each for each in proposal.string_domain if each.name == feature.domain]
    domain = feature.string_domain if feature.HasField("string_domain") else domains[0]
    domain.value.extend(sorted(seen - allowed))


def _changes(current: Any, proposal: Any) -> Iterator[tuple[str, str, str, Any, Any]]:
    """Yields column, field, effect and the two values of every field that differs."""
    old = {feature.name: feature for feature in current.feature}
    for feature in proposal.feature:
        if feature.name not in old:
            yield feature.name, "feature", NEW, None, _plain(feature)
            continue
        before, after = _flat(_plain(old[feature.name])), _flat(_plain(feature))
        effect = DROPPED if "lifecycle_stage" in after.keys() - before.keys() else WIDER
        for field in sorted(before.keys() | after.keys()):
            if before.get(field) != after.get(field):
                yield feature.name, field, effect, before.get(field), after.get(field)
    lists = {domain.name: list(domain.value) for domain in current.string_domain}
    for domain in proposal.string_domain:
        users = [each.name for each in proposal.feature if each.domain == domain.name]
        is_new = not any(name in old for name in users)
        if not is_new and lists.get(domain.name) != list(domain.value):
            field = f"string_domain.{domain.name}"
            before_list = lists.get(domain.name)
            yield ", ".join(users), field, WIDER, before_list, list(domain.value)


def _plain(message: Any) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(_flat(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return flat
