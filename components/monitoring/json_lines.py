# SPDX-License-Identifier: Apache-2.0
"""A file of JSON lines that several runs read and rewrite, one at a time."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import local_path, write_text

Document = dict[str, Any]


class JsonLines:
    """The documents of a file, while it is locked."""

    def __init__(self, path: Path | None, documents: list[Document]) -> None:
        self._path = path
        self.documents = documents

    def write(self, documents: list[Document]) -> None:
        """Replaces the documents; a reader sees the old file or the new one."""
        self.documents = documents
        if self._path is not None:
            write_text(self._path, "".join(json.dumps(one) + "\n" for one in documents))


@contextmanager
def open_json_lines(uri: str, what: str) -> Iterator[JsonLines]:
    """Gives the documents at a path or file:// URI, locked; an empty `uri` remembers nothing.

    Args:
        uri: The file; it is made when it is not there.
        what: What it is, for errors, for example `retraining history`.

    Raises:
        InputError: If the file holds something else.
    """
    if not uri:
        yield JsonLines(None, [])
        return
    path = local_path(uri, "history_uri")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield JsonLines(path, _read(path, what))


def _read(path: Path, what: str) -> list[Document]:
    if not path.exists():
        return []
    documents = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            document = json.loads(line)
            if not isinstance(document, dict):
                raise ValueError("it is not an object")
        except ValueError as error:
            raise InputError(
                f"Line {number} of the {what} {path} cannot be read: {error}; "
                "repair or remove the line."
            ) from error
        documents.append(document)
    return documents
