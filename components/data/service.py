# SPDX-License-Identifier: Apache-2.0
"""What every object store is to the data family: its objects, and the calls it answers."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from kfloop.components.data.checksums import checksum


@dataclass(frozen=True)
class StoredObject:
    """One content of one object.

    Attributes:
        scheme: Of its URI, `gs` or `s3`.
        bucket: Its bucket.
        name: Its name in the bucket.
        version: Which content of that name it is; a name that is written again gets another. At
            s3:// empty where the bucket keeps no versions: there the `etag` tells it.
        etag: The store's own tag of that content.
        size: Stored bytes.
        algorithm: What `checksum` is, a key of `checksums.ALGORITHMS`; empty if the store tells
            none that can be compared.
        checksum: Checksum of the stored bytes, as `checksums.checksum` spells it.
        part_bytes: If it is one of the checksums of parts, how long those are; else 0.
        encoding: Content-Encoding, for example `gzip`; usually empty.
    """

    scheme: str
    bucket: str
    name: str
    version: str
    etag: str
    size: int
    algorithm: str = ""
    checksum: str = ""
    part_bytes: int = 0
    encoding: str = ""

    @property
    def uri(self) -> str:
        """Where it is."""
        return f"{self.scheme}://{self.bucket}/{self.name}"

    @property
    def told(self) -> dict[str, Any]:
        """What identifies it, for metadata."""
        told: dict[str, Any] = {"uri": self.uri, "bytes": self.size}
        if self.version:
            told["generation" if self.scheme == "gs" else "version_id"] = self.version
        told["etag"] = self.etag
        return told | ({self.algorithm: self.checksum} if self.algorithm else {})

    def differs_from(self, file: Path) -> bool:
        """Tells whether size or checksum show that a file has another content."""
        if file.stat().st_size != self.size:
            return True
        return bool(self.algorithm) and not self.is_content_of(file)

    def is_content_of(self, file: Path) -> bool:
        """Tells whether the checksum shows that a file has this content."""
        if not self.algorithm:
            return False
        return checksum(file, self.algorithm, self.part_bytes) == self.checksum


class Service(Protocol):
    """What one kind of store does; every call is tried again while the store is busy."""

    scheme: str

    def get(self, bucket: str, name: str) -> StoredObject | None:
        """Returns an object as it is now, or None."""

    def list(self, bucket: str, prefix: str) -> Iterable[StoredObject]:
        """Yields the objects whose names start with `prefix`."""

    def pin(self, found: StoredObject) -> StoredObject:
        """Completes what a listing left out, of the very content that it listed."""

    def read(self, found: StoredObject, end: int, file: BinaryIO) -> None:
        """Writes stored bytes of this content: from the file's position, before `end`."""

    def add(self, file: Path, bucket: str, name: str) -> StoredObject | None:
        """Writes a new object; None if the name is taken."""

    def delete(self, found: StoredObject) -> bool:
        """Deletes this content, if it is there; returns False if there is another one."""

    def explained(self, uri: str, pinned: bool = False) -> AbstractContextManager[None]:
        """Turns an error of the store into an InputError of one sentence.

        Args:
            uri: What it is about.
            pinned: Whether one content was asked for: what is not there was there before.
        """


def one_line(error: BaseException) -> str:
    """Returns what an error says, short enough for a sentence."""
    return " ".join(str(error).split()).rstrip(".")[:300]
