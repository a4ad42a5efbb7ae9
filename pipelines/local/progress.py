# SPDX-License-Identifier: Apache-2.0
"""What a person sees while a pipeline runs."""

import threading

from rich.console import Console
from rich.markup import escape

from kfloop.pipelines.local.record import CACHED, FAILED, SKIPPED, TaskRecord

_MARKS = {FAILED: "[red]✗[/red]", CACHED: "[cyan]↺[/cyan]", SKIPPED: "[dim]–[/dim]"}


class Progress:
    """Prints a line when a task starts or ends, and what it prints in between."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._lock = threading.Lock()
        self._last_line: dict[str, str] = {}

    def started(self, task: TaskRecord) -> None:
        """Says nothing yet: a cached task is over at once."""

    def printed(self, task: TaskRecord, line: str) -> None:
        """Prints one line of a task's output."""
        self._last_line[task.task] = line
        self._print(f"  [dim]{escape(_short(task.task)):>24} │ {escape(line)}[/dim]")

    def ended(self, task: TaskRecord) -> None:
        """Prints how a task ended."""
        mark = _MARKS.get(task.status, "[green]✓[/green]")
        if task.status == SKIPPED:
            return
        took = "reused" if task.status == CACHED else f"{task.seconds:.1f} s"
        told = f" [red]{escape(task.error)}[/red]" if task.error else ""
        self._print(f"{mark} {escape(_short(task.task)):<28} {took:>9}{told}")
        for artifacts in task.outputs.values():
            for artifact in artifacts:
                summary = str(artifact["metadata"].get("summary", ""))
                if summary and summary != self._last_line.get(task.task):
                    self._print(f"    [bold]{escape(summary)}[/bold]")

    def _print(self, text: str) -> None:
        with self._lock:
            self.console.print(text, soft_wrap=True, highlight=False)


def _short(task: str) -> str:
    return task.split("/")[-1]
