# SPDX-License-Identifier: Apache-2.0
"""Ends a run's processes when the runner itself was killed.

`kill -9` gives the runner no chance to stop its tasks. This small process holds the other end of a
pipe, notes the process groups that live, and kills them when the pipe closes.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading


class Watchdog:
    """Registers process groups; they die with this process, however it ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            text=True,
            # A Ctrl-C at the terminal is for the runner, which then ends its tasks itself.
            start_new_session=True,
        )

    def add(self, group: int) -> None:
        """Starts watching a process group."""
        self._tell(f"+{group}")

    def remove(self, group: int) -> None:
        """Stops watching a process group that has ended."""
        self._tell(f"-{group}")

    def close(self) -> None:
        """Ends the watchdog; groups that are still registered are killed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()


def _watch() -> None:
    groups: set[int] = set()
    for line in sys.stdin:
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    _watch()
