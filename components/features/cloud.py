# SPDX-License-Identifier: Apache-2.0
"""Objects at `gs://` addresses: a repository's files, and a registry that several writers share.

google-cloud-storage is imported where it is used: most repositories are directories.
"""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kfloop.components.contracts.errors import InputError


def download_directory(uri: str, target: Path, left_out: tuple[str, ...]) -> None:
    """Copies the objects below an address, each as it was when they were listed.

    Args:
        uri: `gs://bucket/prefix`.
        target: Directory to write into.
        left_out: Names of directories that stay behind; so does what starts with a dot.

    Raises:
        InputError: If nothing is there, it cannot be read, or an object changes meanwhile.
    """
    from google.api_core.exceptions import GoogleAPIError

    bucket, prefix = _parts(uri)
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    try:
        client = _client()
        for blob in client.list_blobs(bucket, prefix=prefix):
            parts = blob.name.removeprefix(prefix).split("/")
            if parts[-1] and not any(part in left_out or part[0] == "." for part in parts if part):
                file = target.joinpath(*parts)
                file.parent.mkdir(parents=True, exist_ok=True)
                # The client compares the checksum, and the generation is the one that was listed.
                blob.download_to_filename(file, if_generation_match=blob.generation)
    except (GoogleAPIError, OSError) as error:
        raise _told(uri, error) from error


class Blob:
    """One object.

    Args:
        uri: `gs://bucket/name`.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._bucket, self._name = _parts(uri)

    def download(self, file: Path) -> int:
        """Writes the object to a file and returns its generation; 0, and no file, if it is new.

        Raises:
            InputError: If it cannot be read.
        """
        from google.api_core.exceptions import GoogleAPIError

        try:
            blob = _client().bucket(self._bucket).get_blob(self._name)
            if blob is None:
                return 0
            blob.download_to_filename(file, if_generation_match=blob.generation)
            return int(blob.generation)
        except (GoogleAPIError, OSError) as error:
            raise _told(self._uri, error) from error

    def replace(self, file: Path, generation: int) -> None:
        """Puts a file in the place of one generation of the object.

        Raises:
            InputError: If the object has changed since, or cannot be written.
        """
        from google.api_core.exceptions import GoogleAPIError, PreconditionFailed

        try:
            blob = _client().bucket(self._bucket).blob(self._name)
            blob.upload_from_filename(file, if_generation_match=generation)
        except PreconditionFailed as error:
            raise InputError(
                f"Another step has written the feature registry {self._uri} meanwhile; its work "
                "is kept and nothing of this step is in the registry: run this step again."
            ) from error
        except (GoogleAPIError, OSError) as error:
            raise _told(self._uri, error) from error


def _client() -> Any:
    from google.auth.exceptions import DefaultCredentialsError
    from google.cloud import storage

    try:
        return storage.Client()
    except DefaultCredentialsError as error:
        raise InputError(
            "gs:// addresses need Google credentials and there are none; run "
            "`gcloud auth application-default login`, or give the pod a service account."
        ) from error


def _parts(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    if parts.scheme != "gs" or not parts.netloc:
        raise InputError(f"{uri!r} is no address like gs://bucket/path.")
    return parts.netloc, parts.path.lstrip("/")


def _told(uri: str, error: Exception) -> InputError:
    told = " ".join(str(error).split())
    return InputError(f"{uri} cannot be read or written: {type(error).__name__}: {told}.")
