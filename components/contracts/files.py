# SPDX-License-Identifier: Apache-2.0
"""Atomic writes: write beside, then rename."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from kfloop.components.contracts.errors import InputError


def local_path(uri: str, name: str) -> Path:
    """Returns the absolute path of a plain path or file:// URI.

    Args:
        uri: The path or URI.
        name: Which setting it is, for the error.

    Raises:
        InputError: If it is empty or has another scheme.
    """
    if not uri:
        raise InputError(f"{name} is empty; give a path or a file:// URI.")
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        raise InputError(
            f"{name} is {uri!r}; only local and mounted directories are read, "
            "so give a path or a file:// URI."
        )
    return Path(unquote(parts.path) if parts.scheme else uri).absolute()


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` so that a reader sees either the old file or the whole new one."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes `content` so that a reader sees either the old file or the whole new one."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private; a shared volume needs the usual mode.
        Path(beside).chmod(0o644)
        Path(beside).replace(target)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically.

    Raises:
        ValueError: If the value holds NaN or infinity, which JSON cannot carry.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Reads a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


@contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """Gives a scratch directory that becomes `path` when the block ends without an error.

    An existing `path` is replaced, so that a step can be run twice. When the block raises, nothing
    of it is left and an existing `path` is untouched.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield beside
        beside.chmod(0o755)
        if target.exists():
            old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
            target.rename(old / target.name)
            beside.rename(target)
            shutil.rmtree(old)
        else:
            beside.rename(target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
