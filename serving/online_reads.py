# SPDX-License-Identifier: Apache-2.0
"""Reads of the online store: Feast's own, view by view, or one SQLite statement for all views.

Feast reads SQLite once per view and converts the time of every value; for a row of six views that
is most of what a request takes. A single statement takes the file's locks once. The layout it
reads is that of Feast's SQLite store: a table per view with `entity_key`, `feature_name`, `value`
(a serialized `Value`) and `event_ts` (the clock time in UTC, as if it were local, in seconds since
1970).
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from feast import FeatureView
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import compute_table_id
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import RepoConfig

# One entity of a view: when its values were known (None: the store has none), and the values.
Answer = tuple[datetime | None, dict[str, Value] | None]
# The answers of each view, in the order of its keys.
Reader = Callable[[Sequence[Sequence[EntityKey]]], list[list[Answer]]]
# SQLite takes 32,766 parameters (since 3.32).
KEYS_AT_ONCE = 16_384
NOTHING: Answer = (None, None)


def feast_reader(
    store: OnlineStore, config: RepoConfig, views: Sequence[tuple[FeatureView, Sequence[str]]]
) -> Reader:
    """Returns a reader of any online store, by Feast's `online_read`.

    Args:
        store: The store.
        config: Of the repository.
        views: What to read: a view and the names of its features.
    """
    reads = [partial(_online_read, store, config, view, list(names)) for view, names in views]

    def read(keys: Sequence[Sequence[EntityKey]]) -> list[list[Answer]]:
        return [one(wanted) for one, wanted in zip(reads, keys, strict=True)]

    return read


def _online_read(
    store: OnlineStore,
    config: RepoConfig,
    view: FeatureView,
    names: list[str],
    keys: Sequence[EntityKey],
) -> list[Answer]:
    answers: list[Answer] = store.online_read(config, view, list(keys), names) if keys else []
    return answers


def sqlite_reader(
    path: Path,
    config: RepoConfig,
    views: Sequence[tuple[FeatureView, Sequence[str]]],
    timeout: float,
) -> Reader:
    """Returns a reader of Feast's SQLite store; for one thread.

    Args:
        path: The store's file.
        config: Of the repository.
        views: What to read: a view and the names of its features.
        timeout: Seconds after which a writer that holds the file's lock counts as a failed store.
    """
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", timeout, uri=True)
    version = config.entity_key_serialization_version
    selects = [_select(config, number, view) for number, (view, _) in enumerate(views)]
    asked = [frozenset(names) for _, names in views]

    def read(keys: Sequence[Sequence[EntityKey]]) -> list[list[Answer]]:
        known = [[serialize_entity_key(key, version) for key in wanted] for wanted in keys]
        found: list[dict[bytes, tuple[int, dict[str, Value]]]] = [{} for _ in views]
        for statement, parameters in _statements(selects, known):
            for number, key, name, value, at in connection.execute(statement, parameters):
                values = found[number].setdefault(key, (at, {}))[1]
                if name in asked[number]:
                    values[name] = Value.FromString(value)
        return [
            [_answer(entities.get(key)) for key in wanted]
            for entities, wanted in zip(found, known, strict=True)
        ]

    return read


def _select(config: RepoConfig, number: int, view: FeatureView) -> str:
    versioned = config.registry.enable_online_feature_view_versioning
    table = compute_table_id(config.project, view, versioned).replace('"', '""')
    columns = "entity_key, feature_name, value, event_ts"
    return f'SELECT {number}, {columns} FROM "{table}" WHERE entity_key IN '


def _statements(
    selects: list[str], keys: list[list[bytes]]
) -> Iterator[tuple[str, list[bytes | None]]]:
    """Yields SQL with its parameters: one statement, unless there are very many keys."""
    largest = max(map(len, keys), default=0)
    step = KEYS_AT_ONCE // len(selects) if selects else 1
    for start in range(0, largest, step):
        parts, parameters = [], []
        for select, wanted in zip(selects, keys, strict=True):
            piece: list[bytes | None] = list(wanted[start : start + step])
            if piece:
                # Few different statements, so that SQLite has them compiled; NULL matches nothing.
                piece += [None] * ((1 << (len(piece) - 1).bit_length()) - len(piece))
                parts.append(f"{select}({','.join('?' * len(piece))})")
                parameters += piece
        yield " UNION ALL ".join(parts), parameters


def _answer(entity: tuple[int, dict[str, Value]] | None) -> Answer:
    if entity is None:
        return NOTHING
    # As Feast reads it: it writes a naive datetime's timestamp, which Python takes for local time.
    return datetime.fromtimestamp(entity[0]).replace(tzinfo=UTC), entity[1]
