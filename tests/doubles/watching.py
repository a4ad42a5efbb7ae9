# SPDX-License-Identifier: Apache-2.0
"""Lists in pages, and watches."""

import base64
import json
import time
from collections.abc import Callable
from typing import Any

from .documents import copied
from .errors import ApiError
from .faults import Faults
from .resources import Resource
from .routes import Route
from .selectors import Selector
from .store import Event, Object, Store

BOOKMARK_SECONDS = 1.0
WATCH_SECONDS = 1800.0
Send = Callable[[dict[str, Any]], None]


class Lists:
    """Answers lists; the pages of one list all show the moment of its first page."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pages: dict[str, tuple[int, list[Object]]] = {}

    def page(self, kind: Resource, route: Route) -> Object:
        """Returns one page, the whole list when no limit is asked for.

        Raises:
            ApiError: 400 for a bad selector, 410 when the continue token is too old.
        """
        limit = int(route.query.get("limit") or 0)
        token = route.query.get("continue", "")
        with self._store.lock:
            if token:
                version, items = self._continued(token)
            else:
                version, items = self._store.version, self._selected(kind, route)
            metadata: dict[str, Any] = {"resourceVersion": str(version)}
            if limit and len(items) > limit:
                metadata["continue"] = self._keep(version, items[limit:])
                metadata["remainingItemCount"] = len(items) - limit
                items = items[:limit]
            items = copied(items)
            if not kind.custom:
                # The real server leaves both out in the lists of its own kinds.
                for item in items:
                    del item["apiVersion"], item["kind"]
            return {
                "kind": f"{kind.kind}List",
                "apiVersion": kind.api_version,
                "metadata": metadata,
                "items": items,
            }

    def _selected(self, kind: Resource, route: Route) -> list[Object]:
        selector = _selector(kind, route)
        items = self._store.items(kind.name, route.namespace)
        return [copied(item) for item in items if selector.matches(item)]

    def _keep(self, version: int, items: list[Object]) -> str:
        name = str(len(self._pages))
        self._pages[name] = (version, items)
        document = {"v": "meta.k8s.io/v1", "rv": version, "start": name}
        return base64.urlsafe_b64encode(json.dumps(document).encode()).decode()

    def _continued(self, token: str) -> tuple[int, list[Object]]:
        try:
            document = json.loads(base64.urlsafe_b64decode(token))
            version, items = self._pages[document["start"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ApiError(400, f"continue key is not valid: {error}") from error
        if version < self._store.oldest:
            raise ApiError(
                410,
                "The provided continue parameter is too old to display a consistent list result. "
                "You must start a new list without the continue parameter.",
            )
        return version, items


class Watch:
    """One watch: everything of a kind, since a version, until its time is over."""

    def __init__(self, store: Store, faults: Faults, kind: Resource, route: Route) -> None:
        self._store, self._faults, self._kind, self._route = store, faults, kind, route
        self._selector = _selector(kind, route)
        self._cut = faults.watches_cut
        seconds = float(route.query.get("timeoutSeconds") or WATCH_SECONDS)
        self._end = time.monotonic() + seconds
        self._bookmarks = route.asked("allowWatchBookmarks")

    def run(self, send: Send, stopped: Callable[[], bool]) -> bool:
        """Sends events until time is up; returns False when it was cut on purpose.

        Args:
            send: Sends one event.
            stopped: Whether the server ends.
        """
        sent = int(self._route.query.get("resourceVersion") or 0)
        if sent == 0 or self._route.asked("sendInitialEvents"):
            sent = self._initial(send)
        told = time.monotonic()
        while not stopped():
            with self._store.lock:
                if sent < self._store.oldest:
                    send({"type": "ERROR", "object": _expired(sent, self._store.oldest).status()})
                    return True
                if self._store.version == sent:
                    left = self._end - time.monotonic()
                    self._store.lock.wait(max(0.0, min(0.05, left)))
                events = [event for event in self._new(sent)]
                newest = self._store.version
            for event in events:
                change = self._seen(event)
                if change:
                    send({"type": change, "object": event.object})
            advanced, sent = newest > sent, newest
            if self._faults.watches_cut != self._cut:
                return False
            over = time.monotonic() >= self._end
            due = time.monotonic() - told >= BOOKMARK_SECONDS
            if self._bookmarks and (over or (due and (advanced or not events))):
                send({"type": "BOOKMARK", "object": self._bookmark(sent)})
                told = time.monotonic()
            if over:
                break
        return True

    def _initial(self, send: Send) -> int:
        with self._store.lock:
            items = self._store.items(self._kind.name, self._route.namespace)
            shown = [copied(item) for item in items if self._selector.matches(item)]
            version = self._store.version
        for item in shown:
            send({"type": "ADDED", "object": item})
        if self._bookmarks and self._route.asked("sendInitialEvents"):
            bookmark = self._bookmark(version)
            bookmark["metadata"]["annotations"] = {"k8s.io/initial-events-end": "true"}
            send({"type": "BOOKMARK", "object": bookmark})
        return version

    def _new(self, since: int) -> list[Event]:
        found: list[Event] = []
        for event in reversed(self._store.events):
            if event.version <= since:
                break
            named = self._route.name in ("", event.key[2])
            here = self._route.namespace in ("", event.key[1])
            if event.key[0] == self._kind.name and here and named:
                found.append(event)
        return found[::-1]

    def _seen(self, event: Event) -> str:
        """How the watcher sees a write: an object may enter or leave what is selected."""
        now = event.type != "DELETED" and self._selector.matches(event.object)
        before = event.before is not None and self._selector.matches(event.before)
        if now:
            return "MODIFIED" if before else "ADDED"
        return "DELETED" if before else ""

    def _bookmark(self, version: int) -> Object:
        about = {"kind": self._kind.kind, "apiVersion": self._kind.api_version}
        return {**about, "metadata": {"resourceVersion": str(version)}}


def _selector(kind: Resource, route: Route) -> Selector:
    labels, fields = route.query.get("labelSelector", ""), route.query.get("fieldSelector", "")
    return Selector(labels, fields, kind.custom)


def _expired(version: int, oldest: int) -> ApiError:
    return ApiError(410, f"too old resource version: {version} ({oldest})")
