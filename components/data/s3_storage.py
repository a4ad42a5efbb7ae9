# SPDX-License-Identifier: Apache-2.0
"""S3 and what speaks like it: every read asks for the ETag that was listed, and for the version.

Credentials, region, endpoint and certificates are the environment's, as AWS's tools take them:
`AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, a profile, web identity or the machine's role;
`AWS_REGION`, `AWS_ENDPOINT_URL` (MinIO, Ceph, …) and `AWS_CA_BUNDLE`.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    SSLError,
)
from botocore.exceptions import ConnectionError as NotConnected
from google.api_core.exceptions import RetryError
from google.api_core.retry import Retry
from urllib3.exceptions import HTTPError

from kfloop.components.contracts.errors import InputError
from kfloop.components.data import s3_parts
from kfloop.components.data.checksums import ALGORITHMS, checksum
from kfloop.components.data.service import StoredObject, one_line

CHUNK_BYTES = 1 << 18
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 20.0
BUSY_STATUSES = (408, 429, 500, 502, 503, 504)
# Also busy, at whatever status. The conflict is another writer's half-done upload of that name.
BUSY_CODES = ("SlowDown", "RequestTimeout", "ConditionalRequestConflict")
REFUSED_CODES = (
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "RequestTimeTooSkewed",
)
OTHER_REGION_CODES = (
    "301",
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
)
GONE_CODES = ("404", "NoSuchKey", "NoSuchVersion")
# An answer to HEAD has no body, so no reason.
BARE_CODES = ("301", "400", "403")


class S3Storage:
    """A `service.Service` on AWS's client.

    Args:
        workers: How many requests run at the same time.
        retry_seconds: How long one request is tried again.

    Raises:
        InputError: If the settings in the environment or in AWS's files are wrong.
    """

    scheme = "s3"

    def __init__(self, workers: int, retry_seconds: float) -> None:
        # Not the client's own retries: they share one quota that eight workers use up in seconds,
        # have no deadline, and do not go on within an object. This is how gs:// is retried, too.
        self.retry = Retry(
            _is_busy, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, timeout=retry_seconds
        )
        config = Config(
            max_pool_connections=workers,
            retries={"mode": "standard", "total_max_attempts": 1},
            # Checksums are asked for and given by name below, which older servers understand.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        with self.explained("S3"):
            try:
                # AWS sets both names in a pod; this client reads only AWS_DEFAULT_REGION itself.
                region = os.environ.get("AWS_REGION") or None
                session = botocore.session.get_session()
                self.client = session.create_client("s3", region_name=region, config=config)
            except ValueError as error:
                raise InputError(
                    f"The settings for S3 are wrong: {one_line(error)}; check AWS_ENDPOINT_URL and "
                    "AWS_REGION."
                ) from error

    def get(self, bucket: str, name: str) -> StoredObject | None:
        """Returns an object as it is now, or None."""
        try:
            return self._head(bucket, name)
        except ClientError as error:
            if _code(error) in GONE_CODES:
                return None
            if _code(error) in BARE_CODES:
                # This fails with the reason, unless it is about this object alone.
                self._call(self.client.list_objects_v2, Bucket=bucket, Prefix=name, MaxKeys=1)
            raise

    def list(self, bucket: str, prefix: str) -> Iterator[StoredObject]:
        """Yields the objects whose names start with `prefix`, without versions and checksums."""
        page: dict[str, Any] = {"NextContinuationToken": None}
        while "NextContinuationToken" in page:
            token = page["NextContinuationToken"]
            after = {"ContinuationToken": token} if token else {}
            page = self._call(self.client.list_objects_v2, Bucket=bucket, Prefix=prefix, **after)
            for entry in page.get("Contents", ()):
                etag = entry["ETag"].strip('"')
                yield StoredObject("s3", bucket, entry["Key"], "", etag, entry["Size"])

    def pin(self, found: StoredObject) -> StoredObject:
        """Completes a listing by version, checksum and encoding of the content that it listed."""
        if found.version or found.algorithm:
            return found
        return self._head(found.bucket, found.name, IfMatch=f'"{found.etag}"')

    def read(self, found: StoredObject, end: int, file: BinaryIO) -> None:
        """Writes stored bytes of this content: from the file's position, before `end`."""

        def go_on() -> None:
            start = file.tell()
            if start == end:
                return
            answer = self.client.get_object(**_pinned(found), Range=f"bytes={start}-{end - 1}")
            if not answer.get("ContentRange", "").startswith(f"bytes {start}-"):
                raise InputError(
                    f"{found.uri} cannot be read in pieces: the store at "
                    f"{self.client.meta.endpoint_url} does not answer ranges; use one that does."
                )
            with closing(answer["Body"]) as body:
                for chunk in body.iter_chunks(CHUNK_BYTES):
                    file.write(chunk)

        self.retry(go_on)()

    def add(self, file: Path, bucket: str, name: str) -> StoredObject | None:
        """Writes a new object; None if the name is taken."""

        named = {"Bucket": bucket, "Key": name}

        def put() -> None:
            with file.open("rb") as body:
                self.client.put_object(
                    **named,
                    Body=body,
                    ContentType="application/octet-stream",
                    # Only if there is none. That also makes it safe to repeat.
                    IfNoneMatch="*",
                    ChecksumCRC32C=checksum(file),
                )

        try:
            if file.stat().st_size > s3_parts.LONGEST_BYTES:
                s3_parts.put_parts(self._call, self.client, file, **named)
            else:
                self.retry(put)()
        except ClientError as error:
            # An upload that is gone may be complete: whose content it is shows in the object.
            if _status(error) == 412 or _code(error) == "NoSuchUpload":
                return None
            raise
        return self._head(bucket, name)

    def delete(self, found: StoredObject) -> bool:
        """Deletes this content, if it is there; returns False if there is another one.

        In a bucket with versions it stays there as an older one.
        """
        try:
            # Asked first, as not every server heeds the condition of a deletion.
            self._head(found.bucket, found.name, IfMatch=f'"{found.etag}"')
            self._call(
                self.client.delete_object,
                Bucket=found.bucket,
                Key=found.name,
                IfMatch=f'"{found.etag}"',
            )
        except ClientError as error:
            if _code(error) in GONE_CODES:
                return True
            if _status(error) == 412:
                return False
            raise
        return True

    def _call(self, method: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.retry(method)(**arguments)
        return answer

    def _head(self, bucket: str, name: str, **condition: str) -> StoredObject:
        method = self.client.head_object
        head = self._call(method, Bucket=bucket, Key=name, ChecksumMode="ENABLED", **condition)
        # A bucket whose versions are suspended calls the current one so, and overwrites it.
        version = head.get("VersionId", "")
        version = "" if version == "null" else version
        etag, size = head["ETag"].strip('"'), head["ContentLength"]
        encoding = head.get("ContentEncoding", "")
        stored = StoredObject("s3", bucket, name, version, etag, size, encoding=encoding)
        algorithm, told = _told_checksum(bucket, head)
        part_bytes = self._part_bytes(stored, told) if "-" in told else 0
        if not algorithm or ("-" in told and not part_bytes):
            return stored
        return replace(stored, algorithm=algorithm, checksum=told, part_bytes=part_bytes)

    def _part_bytes(self, stored: StoredObject, told: str) -> int:
        """Returns the length of an object's parts; 0 if they differ or the server cannot tell."""
        # Without the condition, which some servers hold against the part. What is read has it.
        named = {name: value for name, value in _pinned(stored).items() if name != "IfMatch"}
        try:
            head = self._call(self.client.head_object, **named, PartNumber=1)
        except ClientError as error:
            if _status(error) in (400, 416, 501):
                return 0
            raise
        first: int = head["ContentLength"]
        parts = int(told.rpartition("-")[2])
        return first if first * (parts - 1) < stored.size <= first * parts else 0

    @contextmanager
    def explained(self, uri: str, pinned: bool = False) -> Iterator[None]:
        """Turns an error of the client into an InputError of one sentence.

        Args:
            uri: What it is about.
            pinned: Whether one content was asked for.
        """
        try:
            yield
        except NoCredentialsError as error:
            raise InputError(
                f"{uri} needs AWS credentials and there are none here; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY (on a cluster from a Secret), or give the step's service "
                "account a role."
            ) from error
        except PartialCredentialsError as error:
            raise InputError(
                f"{uri} needs AWS credentials and half of them is missing ({one_line(error)}); "
                "set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            ) from error
        except SSLError as error:
            raise InputError(
                f"{uri} cannot be reached: the certificate of the store is not trusted "
                f"({one_line(error)}); set AWS_CA_BUNDLE to the file of its authority."
            ) from error
        except ParamValidationError as error:
            raise InputError(
                f"{uri} is no place at S3 ({one_line(error)}); check the URI."
            ) from error
        except RetryError as error:
            raise InputError(
                f"{uri} could not be had in time: the store went on failing "
                f"({_said(error.cause or error)}); run the step again later."
            ) from error
        except ClientError as error:
            raise _explanation(uri, error, pinned, self.client.meta.region_name) from error
        except (BotoCoreError, HTTPError, OSError) as error:
            raise InputError(
                f"{uri} could not be had: {one_line(error)}; check the AWS settings of this step, "
                "or run it again."
            ) from error


def _explanation(uri: str, error: ClientError, pinned: bool, region: str) -> InputError:
    """Returns the sentence about a request that the store has answered with an error."""
    code, status, said = _code(error), _status(error), _said(error)
    if error.operation_name.startswith("AssumeRole") or code in REFUSED_CODES:
        return InputError(
            f"{uri} cannot be reached: the AWS credentials are refused ({said}); renew them."
        )
    if code == "NoSuchBucket":
        return InputError(
            f"{uri} is in a bucket that does not exist; check the URI and AWS_ENDPOINT_URL."
        )
    if pinned and (code in GONE_CODES or status == 412):
        return InputError(
            f"{uri} was overwritten or deleted while it was read; run the step again when nobody "
            "writes it, or keep its versions."
        )
    if code in GONE_CODES:
        return InputError(f"{uri} does not exist, or its bucket does not; check the URI.")
    if code in OTHER_REGION_CODES:
        right = error.response["Error"].get("Region") or "the region of the bucket"
        return InputError(
            f"{uri} is not in the region {region} ({said}); set AWS_REGION to {right}."
        )
    if code == "InvalidObjectState":
        return InputError(f"{uri} is archived, so it cannot be read; restore it first.")
    if status in (401, 403):
        return InputError(
            f"{uri} is not open to these credentials ({code}); grant them s3:ListBucket on the "
            "bucket and s3:GetObject on its objects, and to write s3:PutObject and s3:DeleteObject."
        )
    return InputError(f"{uri} could not be had ({said}); run the step again.")


def _is_busy(error: BaseException) -> bool:
    if isinstance(error, ClientError):
        return _status(error) in BUSY_STATUSES or _code(error) in BUSY_CODES
    broken = isinstance(error, (HTTPClientError, NotConnected, IncompleteReadError, HTTPError))
    return broken and not isinstance(error, SSLError)


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _said(error: BaseException) -> str:
    if not isinstance(error, ClientError):
        return one_line(error)
    # Without the client's own words about operations and retries.
    told = error.response.get("Error", {})
    return f"{_code(error)}: {' '.join(str(told.get('Message', '')).split()).rstrip('.')}"


def _pinned(found: StoredObject) -> dict[str, str]:
    """Returns the arguments that name one content of one object."""
    pinned = {"Bucket": found.bucket, "Key": found.name, "IfMatch": f'"{found.etag}"'}
    return pinned | ({"VersionId": found.version} if found.version else {})


def _told_checksum(bucket: str, head: dict[str, Any]) -> tuple[str, str]:
    """Returns the algorithm and the checksum that an object comes with, or two empty strings."""
    told = {name: head.get(f"Checksum{name.upper()}", "") for name in ALGORITHMS}
    etag = head["ETag"].strip('"')
    # An ETag is the MD5 unless a key of the user's encrypts, or the bucket is of S3 Express.
    plain = head.get("ServerSideEncryption") in (None, "AES256") and not bucket.endswith("--x-s3")
    if plain and "SSECustomerAlgorithm" not in head and re.fullmatch(r"[0-9a-f]{32}(-\d+)?", etag):
        told["md5"] = etag
    # A checksum of the whole before one of parts.
    found = sorted((value.count("-"), name, value) for name, value in told.items() if value)
    return found[0][1:] if found else ("", "")
