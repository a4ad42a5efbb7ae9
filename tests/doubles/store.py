# SPDX-License-Identifier: Apache-2.0
"""What a server keeps: objects, one counter for all writes, and the events that watches read."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from .documents import copied
from .ownership import Owners

Object = dict[str, Any]
Key = tuple[str, str, str]
EVENTS_KEPT = 20_000
FIRST_VERSION = 1000


@dataclass(frozen=True)
class Event:
    """One write.

    Attributes:
        version: The counter after it.
        type: ADDED, MODIFIED or DELETED.
        key: Kind as `plural.group`, namespace, name.
        object: The object after it, or as it last was.
        before: The object before it, or None.
    """

    version: int
    type: str
    key: Key
    object: Object
    before: Object | None


class Store:
    """Objects by kind, namespace and name. Every method expects `lock` to be held by the caller.

    Attributes:
        lock: Held while reading and writing; it is notified of every write.
        clock: Tells the time of creation and deletion stamps.
        oldest: Older resourceVersions are gone: a watch from there is refused.
    """

    def __init__(self) -> None:
        self.lock = threading.Condition(threading.RLock())
        self.clock: Callable[[], datetime] = lambda: datetime.now(UTC)
        self.version = FIRST_VERSION
        self.oldest = FIRST_VERSION
        self.events: deque[Event] = deque()
        self.listeners: list[Callable[[Event], None]] = []
        self._objects: dict[Key, Object] = {}
        self._owners: dict[Key, Owners] = {}

    def now(self) -> str:
        """Returns the time as Kubernetes writes it."""
        return self.clock().strftime("%Y-%m-%dT%H:%M:%SZ")

    def get(self, key: Key) -> Object | None:
        """Returns a copy of an object, or None."""
        found = self._objects.get(key)
        return copied(found) if found is not None else None

    def owners(self, key: Key) -> Owners:
        """Returns who owns the fields of an object."""
        return self._owners.setdefault(key, Owners())

    def set_owners(self, key: Key, owners: Owners) -> None:
        """Replaces what `owners` returns."""
        self._owners[key] = owners

    def items(self, kind: str, namespace: str = "") -> list[Object]:
        """Returns the objects of a kind, of one namespace or all, ordered as a real list is.

        They are the stored ones: do not change them.
        """
        keys = sorted(
            key
            for key in self._objects
            if key[0] == kind and (not namespace or key[1] == namespace)
        )
        return [self._objects[key] for key in keys]

    def everything(self) -> dict[Key, Object]:
        """Returns all stored objects; do not change them."""
        return self._objects

    def put(self, key: Key, document: Object) -> Object:
        """Stores an object under the next version, tells it, and returns a copy."""
        before = self._objects.get(key)
        self._next(document)
        self._objects[key] = copied(document)
        self._tell("MODIFIED" if before is not None else "ADDED", key, document, before)
        return document

    def remove(self, key: Key) -> Object:
        """Removes an object and returns it as it last was."""
        document = self._objects.pop(key)
        self._owners.pop(key, None)
        before = copied(document)
        document = copied(document)
        self._next(document)
        self._tell("DELETED", key, document, before)
        return document

    def compact(self) -> None:
        """Forgets the past: every version before now is gone."""
        self.events.clear()
        self.version += 1
        self.oldest = self.version
        self.lock.notify_all()

    def _next(self, document: Object) -> None:
        self.version += 1
        document["metadata"]["resourceVersion"] = str(self.version)

    def _tell(self, kind: str, key: Key, document: Object, before: Object | None) -> None:
        event = Event(self.version, kind, key, copied(document), before)
        self.events.append(event)
        if len(self.events) > EVENTS_KEPT:
            self.oldest = self.events.popleft().version
        self.lock.notify_all()
        for listener in self.listeners:
            listener(event)
