# SPDX-License-Identifier: Apache-2.0
"""Google Cloud Storage, with generations as versions.

Credentials are the Application Default Credentials of the step; on a cluster, of its service
account. `STORAGE_EMULATOR_HOST` sends everything to an emulator instead, without credentials.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import requests
from google.api_core import exceptions as api_exceptions
from google.auth import exceptions as auth_exceptions
from google.cloud.exceptions import GoogleCloudError
from google.cloud.storage import Client
from google.cloud.storage.retry import DEFAULT_RETRY

from kfloop.components.contracts.errors import InputError
from kfloop.components.data.service import StoredObject, one_line


class GoogleStorage:
    """A `service.Service` on Google's client.

    Args:
        workers: How many requests run at the same time.
        retry_seconds: How long one request is tried again.

    Raises:
        InputError: If there are no credentials.
    """

    scheme = "gs"

    def __init__(self, workers: int, retry_seconds: float) -> None:
        self.retry = DEFAULT_RETRY.with_timeout(retry_seconds)
        with self.explained("Google Cloud Storage"):
            self.client = Client()
            transport = self.client._http
        # As many connections as threads: requests keeps ten, and drops the others with a warning.
        adapter = requests.adapters.HTTPAdapter(pool_connections=4, pool_maxsize=workers)
        transport.mount("https://", adapter)
        transport.mount("http://", adapter)

    def get(self, bucket: str, name: str) -> StoredObject | None:
        """Returns an object as it is now, or None."""
        blob = self.client.bucket(bucket).get_blob(name, retry=self.retry)
        return None if blob is None else _stored(blob)

    def list(self, bucket: str, prefix: str) -> Iterator[StoredObject]:
        """Yields the objects whose names start with `prefix`."""
        yield from map(_stored, self.client.list_blobs(bucket, prefix=prefix, retry=self.retry))

    def pin(self, found: StoredObject) -> StoredObject:
        """Returns what the listing told: it has everything."""
        return found

    def read(self, found: StoredObject, end: int, file: BinaryIO) -> None:
        """Writes stored bytes of this generation: from the file's position, before `end`."""
        bucket = self.client.bucket(found.bucket)
        blob = bucket.blob(found.name, generation=int(found.version))
        blob.download_to_file(
            file,
            start=file.tell(),
            end=end - 1,
            # As stored: what was compressed stays so, and pieces of it fit together.
            raw_download=True,
            # The store tells no checksum of a piece; the whole is checked at the end.
            checksum=None,
            retry=self.retry,
        )

    def add(self, file: Path, bucket: str, name: str) -> StoredObject | None:
        """Writes a new object; None if the name is taken."""
        blob = self.client.bucket(bucket).blob(name)
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
            return None
        blob.reload(retry=self.retry)
        return _stored(blob)

    def delete(self, found: StoredObject) -> bool:
        """Deletes this generation, if it is there; returns False if there is another one."""
        blob = self.client.bucket(found.bucket).blob(found.name)
        try:
            blob.delete(if_generation_match=int(found.version), retry=self.retry)
        except api_exceptions.NotFound:
            return True
        except api_exceptions.PreconditionFailed:
            return False
        return True

    @contextmanager
    def explained(self, uri: str, pinned: bool = False) -> Iterator[None]:
        """Turns an error of the client into an InputError of one sentence.

        Args:
            uri: What it is about.
            pinned: Whether one generation was asked for.
        """
        try:
            yield
        except auth_exceptions.DefaultCredentialsError as error:
            raise InputError(
                f"{uri} needs Google credentials and there are none here; run `gcloud auth "
                "application-default login`, or on a cluster give the step's service account "
                "access."
            ) from error
        except auth_exceptions.GoogleAuthError as error:
            raise InputError(
                f"{uri} cannot be reached: the Google credentials are refused "
                f"({one_line(error)}); renew them."
            ) from error
        except api_exceptions.NotFound as error:
            if pinned:
                raise InputError(
                    f"{uri} was overwritten or deleted while it was read; run the step again when "
                    "nobody writes it, or keep its versions."
                ) from error
            raise InputError(
                f"{uri} does not exist, or its bucket does not; check the URI."
            ) from error
        except (api_exceptions.Forbidden, api_exceptions.Unauthorized) as error:
            raise InputError(
                f"{uri} is not open to these credentials ({error.code}); grant them Storage "
                "Object Viewer, and to write Storage Object User, on the bucket."
            ) from error
        except api_exceptions.RetryError as error:
            raise InputError(
                f"{uri} could not be had in time: the store went on failing "
                f"({one_line(error.cause or error)}); run the step again later."
            ) from error
        except (GoogleCloudError, requests.RequestException, ConnectionError) as error:
            raise InputError(
                f"{uri} could not be had: {one_line(error)}; run the step again."
            ) from error


def _stored(blob: Any) -> StoredObject:
    return StoredObject(
        "gs",
        blob.bucket.name,
        blob.name,
        str(blob.generation),
        blob.etag or "",
        int(blob.size),
        "crc32c" if blob.crc32c else "",
        blob.crc32c or "",
        encoding=blob.content_encoding or "",
    )
