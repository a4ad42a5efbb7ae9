# SPDX-License-Identifier: Apache-2.0
"""Checksums as object stores spell them, of a file or of its parts."""

import base64
import hashlib
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c

CHUNK_BYTES = 1 << 20


class _Crc32:
    """zlib's CRC-32, to be used like a hash of hashlib."""

    def __init__(self, data: bytes = b"") -> None:
        self.value = zlib.crc32(data)

    def update(self, data: bytes) -> None:
        self.value = zlib.crc32(data, self.value)

    def digest(self) -> bytes:
        return self.value.to_bytes(4, "big")


ALGORITHMS: dict[str, Callable[..., Any]] = {
    "crc32c": google_crc32c.Checksum,
    "sha256": hashlib.sha256,
    "crc32": _Crc32,
    "sha1": partial(hashlib.sha1, usedforsecurity=False),
    "md5": partial(hashlib.md5, usedforsecurity=False),
}


def checksum(file: Path, algorithm: str = "crc32c", part_bytes: int = 0) -> str:
    """Returns the checksum of a file as a store tells it: base64, but MD5 (an ETag) in hex.

    Args:
        file: A file.
        algorithm: A key of `ALGORITHMS`.
        part_bytes: If not 0, the checksum is that of the checksums of parts of so many bytes, with
            their number behind it, as S3 tells it of what was uploaded in parts.
    """
    new = ALGORITHMS[algorithm]
    parts, running, room = b"", new(), part_bytes
    with file.open("rb") as stream:
        while chunk := stream.read(min(CHUNK_BYTES, room) if part_bytes else CHUNK_BYTES):
            running.update(chunk)
            room -= len(chunk)
            if part_bytes and not room:
                parts, running, room = parts + running.digest(), new(), part_bytes
    if not part_bytes:
        return _spelled(algorithm, running)
    if room < part_bytes:
        parts += running.digest()
    return f"{_spelled(algorithm, new(parts))}-{len(parts) // len(running.digest())}"


def checksum_of(content: bytes) -> str:
    """Returns the CRC32C of bytes as a store tells it."""
    return _spelled("crc32c", ALGORITHMS["crc32c"](content))


def _spelled(algorithm: str, running: Any) -> str:
    digest: bytes = running.digest()
    return digest.hex() if algorithm == "md5" else base64.b64encode(digest).decode()
