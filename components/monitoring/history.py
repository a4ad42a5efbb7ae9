# SPDX-License-Identifier: Apache-2.0
"""The history of retraining decisions: one JSON line per window."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime

from kfloop.components.contracts.dataset import parse_time
from kfloop.components.contracts.errors import InputError
from kfloop.components.monitoring.json_lines import Document, JsonLines, open_json_lines


@dataclass(frozen=True)
class Entry:
    """One window that was decided on.

    Attributes:
        now: Newest time of the window's data, ISO 8601.
        triggered: Whether drift or performance called for retraining.
        action: `retrain` or `keep`.
        run: The pipeline run; a retry of a run replaces its entry.
        model_uri: The model that was live.
        why: The decision's summary.
    """

    now: str
    triggered: bool
    action: str
    run: str = ""
    model_uri: str = ""
    why: str = ""

    @property
    def moment(self) -> datetime:
        """`now` as a time."""
        return parse_time(self.now, "now in the history")


class History:
    """Past entries, oldest window first; new ones are added while the file is locked."""

    def __init__(self, lines: JsonLines) -> None:
        self._lines = lines
        entries = [_entry(number, one) for number, one in enumerate(lines.documents, start=1)]
        self.entries = sorted(entries, key=lambda entry: entry.moment)

    def others(self, run: str) -> list[Entry]:
        """Returns the entries of other runs, so that a retried run does not count itself."""
        return [entry for entry in self.entries if not run or entry.run != run]

    def add(self, entry: Entry) -> None:
        """Writes the history with `entry` in it."""
        self.entries = sorted([*self.others(entry.run), entry], key=lambda e: e.moment)
        self._lines.write([asdict(kept) for kept in self.entries])


@contextmanager
def open_history(uri: str) -> Iterator[History]:
    """Gives the history at a path or file:// URI, locked; an empty `uri` is one without memory.

    Raises:
        InputError: If the file is not a history.
    """
    with open_json_lines(uri, "retraining history") as lines:
        yield History(lines)


def _entry(number: int, document: Document) -> Entry:
    try:
        return Entry(**document)
    except TypeError as error:
        raise InputError(
            f"Entry {number} of the retraining history cannot be read: {error}; repair or remove "
            "the line."
        ) from error
