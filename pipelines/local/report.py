# SPDX-License-Identifier: Apache-2.0
"""The run report: one HTML page that opens offline."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from kfloop.components.contracts.files import write_text
from kfloop.pipelines.local.record import SKIPPED, RunRecord, TaskRecord

_GROUP = re.compile(r"(condition|condition-branches|exit-handler)-\d+")
# Larger pages are linked, not put into the report: browsers get slow.
LARGEST_PAGE = 5_000_000


@dataclass(frozen=True)
class Step:
    """A row of the timeline: a task, and where its bar begins and how wide it is, in percent."""

    task: TaskRecord
    left: float
    width: float


@dataclass(frozen=True)
class Page:
    """An HTML page a component wrote: inline content, or a link when it is too large."""

    task: str
    name: str
    content: str
    link: str


def write_report(record: RunRecord) -> Path:
    """Writes `report.html` into the run's directory and returns its path."""
    environment = Environment(
        loader=PackageLoader("kfloop.pipelines.local", "."), autoescape=True, trim_blocks=True
    )
    environment.filters["number"] = _number
    environment.filters["moment"] = _moment
    environment.filters["step"] = _step_name
    text = environment.get_template("report.html").render(
        run=record,
        duration=_seconds(record.started, record.ended) if record.ended else None,
        decisions=record.decisions(),
        steps=list(_steps(record)),
        skipped=[task for task in record.tasks if task.status == SKIPPED],
        metrics=list(_metrics(record)),
        pages=list(_pages(record)),
        lineage=list(_lineage(record)),
    )
    path = Path(record.directory) / "report.html"
    write_text(path, text)
    return path


def _steps(record: RunRecord) -> Iterator[Step]:
    end = record.ended or max((task.started for task in record.tasks), default=record.started)
    whole = max(_seconds(record.started, end), 0.001)
    for task in record.tasks:
        if task.status != SKIPPED:
            left = 100 * _seconds(record.started, task.started) / whole
            width = 100 * task.seconds / whole
            yield Step(task, round(min(left, 99.5), 2), round(max(width, 0.3), 2))


def _artifacts(record: RunRecord) -> Iterator[tuple[TaskRecord, str, dict[str, Any]]]:
    for task in record.tasks:
        for name, listed in task.outputs.items():
            for artifact in listed:
                yield task, name, artifact


def _metrics(record: RunRecord) -> Iterator[tuple[str, str, float, str]]:
    """Yields step, metric, value and, where the component logged one, the interval."""
    for task, _, artifact in _artifacts(record):
        logged = artifact["metadata"] if artifact["type"] == "system.Metrics" else {}
        for metric, value in logged.items():
            bound = metric.removesuffix("_low").removesuffix("_high")
            if not isinstance(value, int | float) or (bound != metric and bound in logged):
                continue
            low, high = logged.get(f"{metric}_low"), logged.get(f"{metric}_high")
            interval = f"{_number(low)} to {_number(high)}" if low is not None else ""
            yield task.task, metric, value, interval


def _pages(record: RunRecord) -> Iterator[Page]:
    for task, name, artifact in _artifacts(record):
        file = Path(artifact["uri"])
        if artifact["type"] == "system.HTML" and file.is_file():
            small = file.stat().st_size <= LARGEST_PAGE
            content = file.read_text(encoding="utf-8", errors="replace") if small else ""
            yield Page(task.task, name, content, "" if small else file.as_uri())


def _lineage(record: RunRecord) -> Iterator[dict[str, Any]]:
    readers: dict[str, list[str]] = {}
    for task in record.tasks:
        for listed in task.inputs.values():
            for artifact in listed:
                readers.setdefault(artifact["uri"], []).append(task.task)
    for task, name, artifact in _artifacts(record):
        facts = {
            key: value[:12] if "fingerprint" in key and isinstance(value, str) else value
            for key, value in artifact["metadata"].items()
            if isinstance(value, str | int | float | bool) and len(str(value)) <= 100
        }
        yield {
            "name": name,
            "task": task.task,
            "uri": artifact["uri"],
            "digest": artifact["digest"][:12],
            "facts": facts,
            "readers": readers.get(artifact["uri"], []),
        }


def _step_name(task: str) -> str:
    """Leaves out the groups that KFP makes of conditions and exit handlers."""
    return "/".join(part for part in task.split("/") if not _GROUP.fullmatch(part))


def _seconds(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _moment(value: str) -> str:
    return value[:19].replace("T", " ")
