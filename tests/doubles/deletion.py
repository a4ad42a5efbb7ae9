# SPDX-License-Identifier: Apache-2.0
"""Deletion: finalizers, propagation to what an object owns, garbage collection."""

from .documents import copied
from .resources import Resource
from .store import Key, Object, Store

FOREGROUND = "foregroundDeletion"


class Deletion:
    """Deletes objects of a store, as the API server and its garbage collector do together."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def delete(self, kind: Resource, old: Object, policy: str) -> None:
        """Deletes an object: at once, or by its finalizers when it has any."""
        metadata = old["metadata"]
        key = (kind.name, metadata.get("namespace", ""), metadata["name"])
        if policy == "Foreground" and FOREGROUND not in metadata.get("finalizers", []):
            metadata.setdefault("finalizers", []).append(FOREGROUND)
        if metadata.get("finalizers"):
            if not metadata.get("deletionTimestamp"):
                metadata["deletionTimestamp"] = self.store.now()
                metadata["deletionGracePeriodSeconds"] = 0
                if kind.counts_generations:
                    metadata["generation"] += 1
            self.store.put(key, old)
        else:
            self.store.remove(key)
        if policy == "Orphan":
            self._orphan(metadata["uid"])
        if kind.name == "namespaces":
            for other in [k for k in self.store.everything() if k[1] == metadata["name"]]:
                self.store.remove(other)
        self.collect_garbage()

    def _orphan(self, owner: str) -> None:
        for key, item in list(self.store.everything().items()):
            references = item["metadata"].get("ownerReferences") or []
            if any(reference["uid"] == owner for reference in references):
                freed = copied(item)
                kept = [reference for reference in references if reference["uid"] != owner]
                freed["metadata"]["ownerReferences"] = kept
                self.store.put(key, freed)

    def collect_garbage(self) -> None:
        """Deletes what only owners that are gone owned, and ends foreground deletions."""
        with self.store.lock:
            everything = self.store.everything()
            alive = {
                item["metadata"]["uid"]
                for item in everything.values()
                if FOREGROUND not in item["metadata"].get("finalizers", [])
                or not item["metadata"].get("deletionTimestamp")
            }
            for key, item in list(everything.items()):
                references = item["metadata"].get("ownerReferences") or []
                if references and not any(entry["uid"] in alive for entry in references):
                    if item["metadata"].get("finalizers"):
                        if not item["metadata"].get("deletionTimestamp"):
                            self._mark(key, item)
                    elif key in everything:
                        self.store.remove(key)
                        return self.collect_garbage()
            for key, item in list(everything.items()):
                metadata = item["metadata"]
                if FOREGROUND in metadata.get("finalizers", []) and not self._owned(
                    metadata["uid"]
                ):
                    freed = copied(item)
                    freed["metadata"]["finalizers"].remove(FOREGROUND)
                    self.finish(key, freed)

    def _mark(self, key: Key, item: Object) -> None:
        marked = copied(item)
        marked["metadata"]["deletionTimestamp"] = self.store.now()
        self.store.put(key, marked)

    def _owned(self, owner: str) -> bool:
        return any(
            reference["uid"] == owner
            for item in self.store.everything().values()
            for reference in item["metadata"].get("ownerReferences") or []
        )

    def finish(self, key: Key, item: Object) -> None:
        """Stores an object that is being deleted, or lets it go when no finalizer is left."""
        if item["metadata"].get("finalizers"):
            self.store.put(key, item)
        else:
            self.store.remove(key)
            self.collect_garbage()
