"""Objects at gs://: found with their generation, read in parallel pieces, checked whole.

Credentials are the Application Default Credentials of the step; on a cluster, of its service
account. `STORAGE_EMULATOR_HOST` sends everything to an emulator instead, without credentials.
"""

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import google_crc32c
import requests
from google.api_core import exceptions as api_exceptions
from google.auth import exceptions as auth_exceptions
from google.cloud.exceptions import GoogleCloudError
from google.cloud.storage import Client
from google.cloud.storage.retry import DEFAULT_RETRY

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import write_json

SCHEME = "gs://"
# Large enough that a round trip costs little, small enough that a lost connection does.
PIECE_BYTES = 32 << 20
WORKERS = 8
RETRY_SECONDS = 300.0


@dataclass(frozen=True)
class StoredObject:
    """One generation of one object.

    Attributes:
        bucket: Its bucket.
        name: Its name in the bucket.
        generation: Which content of that name it is; a name that is written again gets another.
        etag: The store's own tag of that content and its metadata.
        size: Stored bytes.
        crc32c: Checksum of the stored bytes, in base64.
        encoding: Content-Encoding, for example `gzip`; usually empty.
    """

    bucket: str
    name: str
    generation: int
    etag: str
    size: int
    crc32c: str
    encoding: str = ""

    @property
    def uri(self) -> str:
        """Where it is."""
        return f"{SCHEME}{self.bucket}/{self.name}"


class Store:
    """A client of the object store that gives up after a while and then says why.

    Args:
        workers: How many requests run at the same time.
        retry_seconds: How long one request is tried again, with growing pauses, while the store
            answers 408, 429 or 5xx or the connection breaks.

    Raises:
        InputError: If there are no credentials.
    """

    def __init__(self, workers: int = WORKERS, retry_seconds: float = RETRY_SECONDS) -> None:
        if workers < 1:
            raise InputError(f"workers is {workers}; give at least 1.")
        self.workers = workers
        self.retry = DEFAULT_RETRY.with_timeout(retry_seconds)
        with explained("Google Cloud Storage"):
            self.client = Client()
            transport = self.client._http
        # As many connections as threads: requests keeps ten, and drops the others with a warning.
        adapter = requests.adapters.HTTPAdapter(pool_connections=4, pool_maxsize=workers)
        transport.mount("https://", adapter)
        transport.mount("http://", adapter)

    def find(self, uri: str) -> list[StoredObject]:
        """Returns the objects that a URI names, by name: one object, a folder or a glob.

        Raises:
            InputError: If the store cannot be asked.
        """
        bucket, name = split_uri(uri)
        with explained(uri):
            if not re.search(r"[*?\[]", name):
                if name and not name.endswith("/"):
                    blob = self.client.bucket(bucket).get_blob(name, retry=self.retry)
                    if blob is not None:
                        return [_stored(blob)]
                    name += "/"
                return self.list_folder(f"{SCHEME}{bucket}/{name}")
            fixed = re.split(r"[*?\[]", name, maxsplit=1)[0]
            pattern = re.compile(_glob_to_regex(name))
            return [
                found
                for found in self.list_folder(f"{SCHEME}{bucket}/{fixed}")
                if pattern.fullmatch(found.name)
            ]

    def list_folder(self, uri: str) -> list[StoredObject]:
        """Returns every object whose URI starts with `uri`, by name."""
        bucket, prefix = split_uri(uri)
        with explained(uri):
            blobs = self.client.list_blobs(bucket, prefix=prefix, retry=self.retry)
            # A name that ends in / stands for a folder; it has no content.
            return sorted(
                (_stored(blob) for blob in blobs if not blob.name.endswith("/")),
                key=lambda found: found.name,
            )

    def download(self, objects: Sequence[StoredObject], directory: Path) -> list[Path]:
        """Fetches objects and returns their files, in the same order.

        A piece whose connection breaks goes on from its last byte. Pieces that are there already,
        from a try that was interrupted, are not fetched again; the whole file's checksum is
        compared in any case. All requests name the generation, so a file is of one content.

        Args:
            objects: What to fetch.
            directory: Where to; files lie below it as the objects lie in their bucket.

        Raises:
            InputError: If an object is gone or was overwritten meanwhile, arrived damaged, or
                could not be had in time. No file is left under its final name then.
        """
        downloads = [_Download(self, found, directory) for found in objects]
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
        bucket, name = split_uri(uri)
        blob = self.client.bucket(bucket).blob(name)
        with explained(uri):
            try:
                # A generation of 0 means: only if there is none. That also makes it safe to repeat.
                blob.upload_from_filename(
                    str(file),
                    content_type="application/octet-stream",
                    if_generation_match=0,
                    checksum="crc32c",
                    retry=self.retry,
                )
            except api_exceptions.PreconditionFailed:
                blob = self.client.bucket(bucket).get_blob(name, retry=self.retry)
                if blob is None or blob.crc32c != checksum(file):
                    raise InputError(
                        f"{uri} was written by somebody else meanwhile; run the step again."
                    ) from None
            else:
                blob.reload(retry=self.retry)
        return _stored(blob)

    def delete(self, found: StoredObject) -> None:
        """Deletes this generation of an object; one that is gone already is fine.

        Raises:
            InputError: If it was overwritten meanwhile, or cannot be deleted.
        """
        blob = self.client.bucket(found.bucket).blob(found.name)
        with explained(found.uri):
            try:
                blob.delete(if_generation_match=found.generation, retry=self.retry)
            except api_exceptions.NotFound:
                return
            except api_exceptions.PreconditionFailed:
                raise InputError(
                    f"{found.uri} was overwritten by somebody else meanwhile, so it was left "
                    "alone; run the step again."
                ) from None

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

    def __init__(self, store: Store, found: StoredObject, directory: Path) -> None:
        self.store = store
        self.found = found
        suffix = ".gz" if found.encoding == "gzip" and not found.name.endswith(".gz") else ""
        path = "/".join(map(_file_name, found.name.split("/"))) + suffix
        self.target = directory / found.bucket / path
        self.partial = self.target.with_name(f".{self.target.name}.{found.generation}.partial")
        self.record = self.partial.with_suffix(".pieces")
        self.lock = threading.Lock()
        self.have = self._have()

    @property
    def done(self) -> bool:
        """Whether the file is there, of this generation."""
        return self.target.is_file() and checksum(self.target) == self.found.crc32c

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
        bucket = self.store.client.bucket(self.found.bucket)
        blob = bucket.blob(self.found.name, generation=self.found.generation)
        with self.partial.open("r+b") as file, explained(self.found.uri, pinned=True):
            file.seek(start)
            blob.download_to_file(
                file,
                start=start,
                end=end - 1,
                # As stored: what was compressed stays so, and pieces of it fit together.
                raw_download=True,
                # The store tells no checksum of a piece; the whole is checked at the end.
                checksum=None,
                retry=self.store.retry,
            )
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
        found = checksum(self.partial)
        self.record.unlink(missing_ok=True)
        if found != self.found.crc32c:
            self.partial.unlink()
            raise InputError(
                f"{self.found.uri} arrived damaged: its crc32c is {found}, the store says "
                f"{self.found.crc32c}; run the step again."
            )
        self.partial.replace(self.target)


@contextmanager
def explained(uri: str, pinned: bool = False) -> Iterator[None]:
    """Turns an error of the object store into an InputError of one sentence.

    Args:
        uri: What it is about.
        pinned: Whether one generation was asked for, so that what is not there was there before.
    """
    try:
        yield
    except auth_exceptions.DefaultCredentialsError as error:
        raise InputError(
            f"{uri} needs Google credentials and there are none here; run `gcloud auth "
            "application-default login`, or on a cluster give the step's service account access."
        ) from error
    except auth_exceptions.GoogleAuthError as error:
        raise InputError(
            f"{uri} cannot be reached: the Google credentials are refused "
            f"({_line(error)}); renew them."
        ) from error
    except api_exceptions.NotFound as error:
        if pinned:
            raise InputError(
                f"{uri} was overwritten or deleted while it was read; run the step again when "
                "nobody writes it, or keep its versions."
            ) from error
        raise InputError(f"{uri} does not exist, or its bucket does not; check the URI.") from error
    except (api_exceptions.Forbidden, api_exceptions.Unauthorized) as error:
        raise InputError(
            f"{uri} is not open to these credentials ({error.code}); grant them Storage Object "
            "Viewer, and to write Storage Object User, on the bucket."
        ) from error
    except api_exceptions.RetryError as error:
        raise InputError(
            f"{uri} could not be had in time: the store went on failing "
            f"({_line(error.cause or error)}); run the step again later."
        ) from error
    except (GoogleCloudError, requests.RequestException, ConnectionError) as error:
        raise InputError(f"{uri} could not be had: {_line(error)}; run the step again.") from error


def _file_name(part: str) -> str:
    """Spells out what a path cannot carry, so that every object has a file of its own."""
    special = {"": "%", ".": "%2E", "..": "%2E%2E"}
    return special.get(part) or quote(part, safe=" =+,@()")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")[:300]


def split_uri(uri: str) -> tuple[str, str]:
    """Returns bucket and name of a gs:// URI.

    Raises:
        InputError: If it names no bucket.
    """
    bucket, _, name = uri.removeprefix(SCHEME).partition("/")
    if not uri.startswith(SCHEME) or not bucket:
        raise InputError(f"{uri!r} names no bucket; write gs://bucket/path.")
    return bucket, name


def checksum(file: Path) -> str:
    """Returns the crc32c of a file as the store tells it: base64, big-endian."""
    total: Any = google_crc32c.Checksum()  # type: ignore[no-untyped-call]  # half typed
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            total.update(chunk)
    return base64.b64encode(total.digest()).decode()


def _stored(blob: Any) -> StoredObject:
    return StoredObject(
        blob.bucket.name,
        blob.name,
        int(blob.generation),
        blob.etag or "",
        int(blob.size),
        blob.crc32c or "",
        blob.content_encoding or "",
    )


def _glob_to_regex(pattern: str) -> str:
    """Translates a glob: `*` and `?` stay within a folder, `**/` crosses any number of them."""
    pieces = re.split(r"(\*\*/?|\*|\?|\[[^\]]*\])", pattern)
    meanings = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        meanings.get(piece)
        or (piece.replace("[!", "[^", 1) if piece.startswith("[") else re.escape(piece))
        for piece in pieces
    )
