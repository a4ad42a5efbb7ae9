# SPDX-License-Identifier: Apache-2.0
"""Large objects for S3, in parts: one request takes 5 GB at most."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from kfloop.components.data.checksums import checksum_of

# What is longer goes in parts, of which each writer holds one in memory.
LONGEST_BYTES = 256 << 20
PART_BYTES = 32 << 20
MOST_PARTS = 10_000


def put_parts(call: Callable[..., Any], client: Any, file: Path, **named: str) -> None:
    """Writes a new object in parts, each under its checksum.

    What was sent is given up when it cannot be completed. A process that is killed leaves its
    parts in the bucket, where a lifecycle rule for incomplete uploads removes them.

    Args:
        call: Calls a method of the client again while the store is busy.
        client: botocore's client of S3.
        file: What to write; it is not empty.
        named: `Bucket` and `Key`.

    Raises:
        ClientError: What the store says: of status 412 if the name is taken, with the code
            NoSuchUpload if a try had completed it whose answer was lost.
    """
    part_bytes = max(PART_BYTES, -(-file.stat().st_size // MOST_PARTS))
    answer = call(
        client.create_multipart_upload,
        **named,
        ContentType="application/octet-stream",
        ChecksumAlgorithm="CRC32C",
    )
    upload = {**named, "UploadId": answer["UploadId"]}
    parts: list[dict[str, Any]] = []
    try:
        with file.open("rb") as stream:
            while content := stream.read(part_bytes):
                part = {"PartNumber": len(parts) + 1, "ChecksumCRC32C": checksum_of(content)}
                answer = call(client.upload_part, **upload, **part, Body=content)
                parts.append({**part, "ETag": answer["ETag"]})
        call(
            client.complete_multipart_upload,
            **upload,
            MultipartUpload={"Parts": parts},
            # Only if there is none.
            IfNoneMatch="*",
        )
    except BaseException:
        # The reason is told, not that it could not be tidied up after it.
        with suppress(BotoCoreError, ClientError):
            client.abort_multipart_upload(**upload)
        raise
