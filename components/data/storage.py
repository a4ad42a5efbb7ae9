# SPDX-License-Identifier: Apache-2.0
"""Objects at gs:// and s3://: found with their version, read in parallel pieces, checked whole.

What is particular to one store is a `service.Service`: `google_storage` and `s3_storage` are two.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import write_json
from kfloop.components.data.checksums import checksum
from kfloop.components.data.service import Service, StoredObject

SCHEMES = ("gs", "s3")
# Large enough that a round trip costs little, small enough that a lost connection does.
PIECE_BYTES = 32 << 20
WORKERS = 8
RETRY_SECONDS = 300.0


def open_store(
    scheme: str, workers: int = WORKERS, retry_seconds: float = RETRY_SECONDS
) -> "Store":
    """Returns a client of the store of a scheme.

    Args:
        scheme: `gs` or `s3`.
        workers: How many requests run at the same time.
        retry_seconds: How long one request is tried again, with growing pauses, while the store
            answers 408, 429 or 5xx or the connection breaks.

    Raises:
        InputError: If there are no credentials, or the settings of the client are wrong.
    """
    if workers < 1:
        raise InputError(f"workers is {workers}; give at least 1.")
    # Each is half a second to import, and few need both.
    if scheme == "s3":
        from kfloop.components.data.s3_storage import S3Storage

        return Store(S3Storage(workers, retry_seconds), workers)
    from kfloop.components.data.google_storage import GoogleStorage

    return Store(GoogleStorage(workers, retry_seconds), workers)


class Store:
    """An object store, with several requests at a time.

    Args:
        service: Which one.
        workers: How many requests run at the same time.
    """

    def __init__(self, service: Service, workers: int) -> None:
        self.service = service
        self.workers = workers

    def find(self, uri: str) -> list[StoredObject]:
        """Returns the objects that a URI names, by name: one object, a folder or a glob.

        Raises:
            InputError: If the store cannot be asked.
        """
        _, bucket, name = split_uri(uri)
        if not re.search(r"[*?\[]", name):
            if name and not name.endswith("/"):
                with self.service.explained(uri):
                    one = self.service.get(bucket, name)
                if one is not None:
                    return [one]
                name += "/"
            return self._list(uri, bucket, name)
        fixed = re.split(r"[*?\[]", name, maxsplit=1)[0]
        pattern = re.compile(_glob_to_regex(name))
        listed = self._list(uri, bucket, fixed)
        return [found for found in listed if pattern.fullmatch(found.name)]

    def list_folder(self, uri: str) -> list[StoredObject]:
        """Returns every object whose URI starts with `uri`, by name."""
        return self._list(uri, *split_uri(uri)[1:])

    def _list(self, uri: str, bucket: str, prefix: str) -> list[StoredObject]:
        with self.service.explained(uri):
            listed = list(self.service.list(bucket, prefix))
        # A name that ends in / stands for a folder; it has no content.
        return sorted(
            (found for found in listed if not found.name.endswith("/")),
            key=lambda found: found.name,
        )

    def pin(self, objects: Sequence[StoredObject]) -> list[StoredObject]:
        """Completes what a listing leaves out: versions and checksums.

        Raises:
            InputError: If an object was overwritten or deleted since it was listed.
        """

        def pin(found: StoredObject) -> StoredObject:
            with self.service.explained(found.uri, pinned=True):
                return self.service.pin(found)

        return self.each(pin, objects)

    def download(self, objects: Sequence[StoredObject], directory: Path) -> list[Path]:
        """Fetches objects and returns their files, in the same order.

        A piece whose connection breaks goes on from its last byte. Pieces that are there already,
        from a try that was interrupted, are not fetched again; the whole file's checksum is
        compared in any case. All requests name the version, so a file is of one content.

        Args:
            objects: What to fetch, pinned.
            directory: Where to; files lie below it as the objects lie in their bucket.

        Raises:
            InputError: If an object is gone or was overwritten meanwhile, arrived damaged, or
                could not be had in time. No file is left under its final name then.
        """
        downloads = [_Download(self.service, found, directory) for found in objects]
        self._together(
            [work for download in downloads if not download.done for work in download.pieces()]
        )
        self._together([download.finish for download in downloads])
        return [download.target for download in downloads]

    def upload(self, file: Path, uri: str) -> StoredObject:
        """Writes a file under a name that is not taken yet.

        Returns:
            The new object; the one that is there, when it has the very same content.

        Raises:
            InputError: If the name is taken by other content, or it cannot be written.
        """
        _, bucket, name = split_uri(uri)
        with self.service.explained(uri):
            stored = self.service.add(file, bucket, name)
            if stored is None:
                stored = self.service.get(bucket, name)
                if stored is None or stored.differs_from(file):
                    raise InputError(
                        f"{uri} was written by somebody else meanwhile; run the step again."
                    )
        return stored

    def delete(self, found: StoredObject) -> None:
        """Deletes this content of an object; one that is gone already is fine.

        Raises:
            InputError: If it was overwritten meanwhile, or cannot be deleted.
        """
        with self.service.explained(found.uri):
            if not self.service.delete(found):
                raise InputError(
                    f"{found.uri} was overwritten by somebody else meanwhile, so it was left "
                    "alone; run the step again."
                )

    def each(self, work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """Does something for every item, several at a time, and returns what it gave."""
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(work, items))

    def _together(self, works: Sequence[Callable[[], None]]) -> None:
        with ThreadPoolExecutor(self.workers) as pool:
            running: list[Future[None]] = [pool.submit(work) for work in works]
            done, _ = wait(running, return_when=FIRST_EXCEPTION)
            if any(future.exception() for future in done):
                # What has not started would only prolong the failure.
                pool.shutdown(wait=True, cancel_futures=True)
        for future in done:
            future.result()


class _Download:
    """One object on its way to a file: pieces at their places in `<file>.partial`."""

    def __init__(self, service: Service, found: StoredObject, directory: Path) -> None:
        self.service = service
        self.found = found
        suffix = ".gz" if found.encoding == "gzip" and not found.name.endswith(".gz") else ""
        path = "/".join(map(_file_name, found.name.split("/"))) + suffix
        self.target = directory / found.bucket / path
        content = _file_name(found.version or found.etag)
        self.partial = self.target.with_name(f".{self.target.name}.{content}.partial")
        self.record = self.partial.with_suffix(".pieces")
        self.lock = threading.Lock()
        self.have = self._have()

    @property
    def done(self) -> bool:
        """Whether the file is there, of this content."""
        return self.target.is_file() and self.found.is_content_of(self.target)

    def _have(self) -> set[int]:
        if self.partial.is_file() and self.record.is_file():
            try:
                return set(json.loads(self.record.read_text(encoding="utf-8")))
            except ValueError:
                return set()
        return set()

    def pieces(self) -> Iterator[Callable[[], None]]:
        """Makes room for the file and yields what fetches its missing pieces."""
        self.target.parent.mkdir(parents=True, exist_ok=True)
        with self.partial.open("ab") as file:
            file.truncate(self.found.size)
        for start in range(0, self.found.size, PIECE_BYTES):
            if start not in self.have:
                yield lambda start=start: self._fetch(start)  # type: ignore[misc]  # binds start

    def _fetch(self, start: int) -> None:
        end = min(start + PIECE_BYTES, self.found.size)
        with self.partial.open("r+b") as file:
            file.seek(start)
            with self.service.explained(self.found.uri, pinned=True):
                self.service.read(self.found, end, file)
            got = file.tell() - start
        if got != end - start:
            raise InputError(
                f"{self.found.uri} arrived incomplete: {got} of {end - start} bytes from byte "
                f"{start}; run the step again."
            )
        with self.lock:
            self.have.add(start)
            write_json(self.record, sorted(self.have))

    def finish(self) -> None:
        """Compares the checksum and gives the file its name."""
        if not self.partial.is_file():
            return
        found, algorithm = self.found, self.found.algorithm
        self.record.unlink(missing_ok=True)
        if algorithm and not found.is_content_of(self.partial):
            got = checksum(self.partial, algorithm, found.part_bytes)
            self.partial.unlink()
            raise InputError(
                f"{found.uri} arrived damaged: its {algorithm} is {got}, the store says "
                f"{found.checksum}; run the step again."
            )
        self.partial.replace(self.target)


def _file_name(part: str) -> str:
    """Spells out what a path cannot carry, so that every object has a file of its own."""
    special = {"": "%", ".": "%2E", "..": "%2E%2E"}
    return special.get(part) or quote(part, safe=" =+,@()")


def split_uri(uri: str) -> tuple[str, str, str]:
    """Returns scheme, bucket and name of a gs:// or s3:// URI.

    Raises:
        InputError: If it names no bucket.
    """
    scheme, separator, rest = uri.partition("://")
    bucket, _, name = rest.partition("/")
    if scheme not in SCHEMES or not separator or not bucket:
        known = scheme if scheme in SCHEMES else "gs"
        raise InputError(f"{uri!r} names no bucket; write {known}://bucket/path.")
    return scheme, bucket, name


def _glob_to_regex(pattern: str) -> str:
    """Translates a glob: `*` and `?` stay within a folder, `**/` crosses any number of them."""
    pieces = re.split(r"(\*\*/?|\*|\?|\[[^\]]*\])", pattern)
    meanings = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        meanings.get(piece)
        or (piece.replace("[!", "[^", 1) if piece.startswith("[") else re.escape(piece))
        for piece in pieces
    )
