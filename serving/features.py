# SPDX-License-Identifier: Apache-2.0
"""Features from the online store, looked up in the model server's own process.

Feast's `get_online_features` works out again for every call what to read, and answers with a value
however old it is. Here the plan is made once, each view is read once for a whole batch (all of them
in one statement where the store is SQLite), and a value older than its view's ttl at the row's own
moment is missing, as in training. A store that fails or does not answer in time is left alone for a
while (`breaker`).
"""

import sqlite3
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from feast import ValueType
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.provider import get_provider
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import feast_value_type_to_python_type

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import ModelPackage
from kfloop.serving.breaker import Breaker
from kfloop.serving.feature_plan import Computed, Plan, View, make_plan
from kfloop.serving.online_reads import Answer, Reader, feast_reader, sqlite_reader

TIMEOUT_SECONDS = 0.5
# Calls to a store that cannot be told to give up: so many may hang before the next ones wait.
STORE_THREADS = 4
FOUND, ABSENT, EXPIRED, NO_KEY = "found", "absent", "expired", "no key"
VALUE_FIELDS = {
    ValueType.STRING: "string_val",
    ValueType.INT32: "int32_val",
    ValueType.INT64: "int64_val",
    ValueType.BOOL: "bool_val",
}
PLAIN = {"double_val", "float_val", *VALUE_FIELDS.values()}
LARGEST = {ValueType.INT32: 2**31, ValueType.INT64: 2**63}
EPOCH = datetime.fromtimestamp(0, UTC)

Columns = Mapping[str, Sequence[Any]]
Key = tuple[Any, ...]


class FeaturesUnavailableError(RuntimeError):
    """The online store does not answer; try again later."""


class OnDemandError(RuntimeError):
    """The function of an on-demand view failed."""


@dataclass
class Found:
    """What a look-up gave.

    Attributes:
        columns: A value or None for each row, by feature.
        outcomes: `FOUND`, `ABSENT` (the store has nothing for the key), `EXPIRED` or `NO_KEY`
            (the key is null) for each row, by view.
    """

    columns: dict[str, list[Any]] = field(default_factory=dict)
    outcomes: dict[str, list[str]] = field(default_factory=dict)


class OnlineFeatures:
    """Looks up the features that one model takes; safe to use from several threads.

    Attributes:
        features: Names of the model's features that it finds.
        needs: Columns that rows must carry for it, with their type: join keys, and what on-demand
            views ask of a request.
        breaker: Whether the store is asked at all.
    """

    def __init__(
        self, repo: str | Path, package: ModelPackage, timeout: float = TIMEOUT_SECONDS
    ) -> None:
        """Reads the registry and asks the store once.

        Args:
            repo: An applied Feast repository.
            package: The model.
            timeout: Seconds after which the store counts as failed.

        Raises:
            InputError: If the repository does not fit the model, or its SQLite store is not there.
        """
        self._plan: Plan = make_plan(repo, package)
        self.features = self._plan.features
        self.needs = self._plan.keys | self._plan.inputs
        self.breaker = Breaker()
        self._timeout = timeout
        self._local = threading.local()
        config = self._plan.config.online_store
        self._kind = config.type
        if self._kind == "sqlite":
            self._file = Path(repo) / config.path
            _require_file(self._file)
        elif self._kind == "redis":
            config.connection_string = _with_timeouts(config.connection_string, timeout)
        bounded = self._kind in ("sqlite", "redis")
        self._threads = None if bounded else ThreadPoolExecutor(STORE_THREADS, "online-store")

    def look_up(self, rows: Columns, moments: Sequence[datetime]) -> Found:
        """Returns the features of rows.

        Args:
            rows: The columns that `needs` names: values of those types, or None.
            moments: For each row, when it is served: values older than their view's ttl then are
                missing.

        Raises:
            FeaturesUnavailableError: If the store fails, or failed so often that it is left alone.
            OnDemandError: If an on-demand view cannot be computed.
        """
        if not self.breaker.allow():
            raise FeaturesUnavailableError(
                "The online feature store failed repeatedly and is left alone for a few seconds; "
                "try again."
            )
        try:
            if self._threads is None:
                found = self._read(rows, moments)
            else:
                found = self._threads.submit(self._read, rows, moments).result(self._timeout)
        except Exception as error:  # a store raises whatever its client raises
            self.breaker.failed()
            told = f"{type(error).__name__}: {error}".rstrip(": ")
            raise FeaturesUnavailableError(
                f"The online feature store ({self._kind}) does not answer: {told[:300]}."
            ) from error
        self.breaker.succeeded()
        self._compute(rows, found)
        return found

    def _read(self, rows: Columns, moments: Sequence[datetime]) -> Found:
        found = Found()
        views = self._plan.views
        keys = [_keys(view, rows, len(moments)) for view in views]
        places = [_places(view, one) for view, one in zip(views, keys, strict=True)]
        entities = [_entity_keys(view, list(one)) for view, one in zip(views, places, strict=True)]
        answers = self._reader()(entities)
        for view, listed, place, answer in zip(views, keys, places, answers, strict=True):
            columns, outcomes = _filled(view, listed, place, answer, moments)
            found.columns |= columns
            found.outcomes[view.name] = outcomes
        return found

    def _reader(self) -> Reader:
        """Returns this thread's way to the store: SQLite connections are better not shared."""
        if not hasattr(self._local, "read"):
            self._local.read = self._open()
        read: Reader = self._local.read
        return read

    def _open(self) -> Reader:
        config = self._plan.config
        views = [(view.table, view.features) for view in self._plan.views]
        if self._kind == "sqlite":
            return sqlite_reader(self._file, config, views, self._timeout)
        store = get_provider(config).online_store
        if self._kind == "redis":
            from redis.backoff import NoBackoff
            from redis.retry import Retry

            # By default its client tries again for seconds; the breaker does that better.
            store._get_client(config.online_store).set_retry(Retry(NoBackoff(), 0))
        return feast_reader(store, config, views)

    def _compute(self, rows: Columns, found: Found) -> None:
        known = {**rows, **found.columns}
        for view in self._plan.computed:
            inputs = {name: known[name] for name in view.inputs}
            inputs |= {name: rows[name] for name in self._plan.keys}
            try:
                computed = _transform(view, inputs)
            except Exception as error:  # the function is the user's
                raise OnDemandError(
                    f"The on-demand view {view.name!r} failed: {type(error).__name__}: {error}."
                ) from error
            found.columns |= {name: _plain(computed[name]) for name in view.features}


def _keys(view: View, rows: Columns, count: int) -> list[Key]:
    """Returns the view's key of each row."""
    columns = [rows[key.column] for key in view.keys]
    return list(zip(*columns, strict=True)) if columns else [()] * count


def _places(view: View, keys: list[Key]) -> dict[Key, int]:
    """Returns the keys that the store is asked for, once each, with their place."""
    places: dict[Key, int] = {}
    limits = [LARGEST.get(key.type) for key in view.keys]
    for key in keys:
        # A number that the store's type cannot hold is no entity of the store.
        if None not in key and all(
            limit is None or -limit <= value < limit
            for limit, value in zip(limits, key, strict=True)
        ):
            places.setdefault(key, len(places))
    return places


def _filled(
    view: View,
    keys: list[Key],
    places: dict[Key, int],
    answers: Sequence[Answer],
    moments: Sequence[datetime],
) -> tuple[dict[str, list[Any]], list[str]]:
    """Returns the view's features of each row by name, and what became of each row."""
    stored = [_stored(view, *answer) for answer in answers]
    nothing = (None,) * len(view.features)
    values, outcomes = [], []
    for key, moment in zip(keys, moments, strict=True):
        known, given = stored[places[key]] if key in places else (None, nothing)
        if known is None:
            outcome = NO_KEY if None in key else ABSENT
        else:
            outcome = EXPIRED if view.ttl and known + view.ttl < moment else FOUND
        outcomes.append(outcome)
        values.append(given if outcome == FOUND else nothing)
    by_feature = zip(*values, strict=True)
    return dict(zip(view.features, map(list, by_feature), strict=True)), outcomes


def _entity_keys(view: View, keys: list[Key]) -> list[EntityKey]:
    if keys and not view.keys:
        dummy = Value(string_val=DUMMY_ENTITY_VAL)
        return [EntityKey(join_keys=[DUMMY_ENTITY_ID], entity_values=[dummy])]
    names = [key.name for key in view.keys]
    fields = [VALUE_FIELDS[key.type] for key in view.keys]
    return [
        EntityKey(
            join_keys=names,
            entity_values=[
                Value(**{field: value}) for field, value in zip(fields, key, strict=True)
            ],
        )
        for key in keys
    ]


def _stored(
    view: View, known: datetime | None, values: dict[str, Value] | None
) -> tuple[datetime | None, tuple[Any, ...]]:
    # Redis says 1970 of a key that it does not have.
    if known is None or values is None or known <= EPOCH:
        return None, ()
    return known, tuple(_python(values.get(name)) for name in view.features)


def _python(value: Value | None) -> Any:
    kind = None if value is None else value.WhichOneof("val")
    if kind is None:
        return None
    # Feast's own conversion looks for lists, maps and times first.
    found = getattr(value, kind) if kind in PLAIN else feast_value_type_to_python_type(value)
    return None if found != found else found  # NaN counts as missing, as in training


def _transform(view: Computed, inputs: dict[str, Sequence[Any]]) -> Any:
    """Calls an on-demand view as Feast does when it serves."""
    definition = view.definition
    if definition.mode != "python":
        return definition.transform_arrow(pa.table({k: list(v) for k, v in inputs.items()}))
    if not definition.singleton:
        return definition.transform_dict({name: list(values) for name, values in inputs.items()})
    rows = [
        definition.transform_dict({name: [value] for name, value in zip(inputs, row, strict=True)})
        for row in zip(*inputs.values(), strict=True)
    ]
    return {name: [row[name] for row in rows] for name in view.features}


def _plain(values: Any) -> list[Any]:
    listed = values.to_pylist() if isinstance(values, pa.ChunkedArray | pa.Array) else list(values)
    return [None if value != value else value for value in listed]


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(
            f"The online store {path} is not there; give the repository that "
            "materialize_features wrote."
        )
    with sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True) as connection:
        try:
            connection.execute("SELECT name FROM sqlite_master LIMIT 1")
        except sqlite3.DatabaseError as error:
            raise InputError(f"The online store {path} cannot be read: {error}.") from error


def _with_timeouts(connection: str, seconds: float) -> str:
    """Adds to a Redis address what it does not say itself of how long to wait."""
    for name in ("socket_timeout", "socket_connect_timeout"):
        if f"{name}=" not in connection:
            connection += f",{name}={seconds}"
    return connection
