"""The history of retraining decisions: JSON lines in one file, appended under a lock."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from kfloop.components.contracts.dataset import parse_time
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import local_path, write_text


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

    def __init__(self, path: Path | None, entries: list[Entry]) -> None:
        self._path = path
        self.entries = sorted(entries, key=lambda entry: entry.moment)

    def others(self, run: str) -> list[Entry]:
        """Returns the entries of other runs, so that a retried run does not count itself."""
        return [entry for entry in self.entries if not run or entry.run != run]

    def add(self, entry: Entry) -> None:
        """Writes the history with `entry` in it; a reader sees the old file or the new one."""
        self.entries = sorted([*self.others(entry.run), entry], key=lambda e: e.moment)
        if self._path is not None:
            lines = [json.dumps(asdict(kept)) + "\n" for kept in self.entries]
            write_text(self._path, "".join(lines))


@contextmanager
def open_history(uri: str) -> Iterator[History]:
    """Gives the history at a path or file:// URI, locked; an empty `uri` is one without memory.

    Raises:
        InputError: If the file is not a history.
    """
    if not uri:
        yield History(None, [])
        return
    path = local_path(uri, "history_uri")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield History(path, _read(path))


def _read(path: Path) -> list[Entry]:
    if not path.exists():
        return []
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entries.append(Entry(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"Line {number} of the retraining history {path} cannot be read: {error}; "
                "repair or remove the line."
            ) from error
    return entries
