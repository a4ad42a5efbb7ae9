# SPDX-License-Identifier: Apache-2.0
"""Pipelines in a notebook: run here, with what they made shown inline.

from kfloop.pipelines.notebook import page, run_pipeline

run = run_pipeline(my_pipeline, {"source": "trips.csv"})
page(run, "validate-data")
"""

import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from kfloop.components.contracts.errors import InputError
from kfloop.pipelines.local.progress import Progress
from kfloop.pipelines.local.record import RunRecord
from kfloop.pipelines.local.run import run_locally

HTML = "system.HTML"


def run_pipeline(
    pipeline: Callable[..., Any] | str | Path,
    arguments: Mapping[str, Any] | None = None,
    state: str | Path = ".kfloop",
    caching: bool = True,
) -> RunRecord:
    """Runs a pipeline on this machine and prints a line for every step that ends.

    Args:
        pipeline: A `@dsl.pipeline` function, or the path of a compiled pipeline.
        arguments: Pipeline parameters; the rest take their defaults.
        state: Directory for runs, the cache, and what is served here.
        caching: Whether finished steps may be reused.

    Returns:
        What the run did.

    Raises:
        InputError: If the arguments do not fit, or a step's image is of no family.
        PipelineFailed: If a task failed; `error.record` is what the run did until then.
    """
    # Lines of text: in a notebook rich would make every one a display of its own.
    console = Console(force_jupyter=False, width=120)
    return run_locally(pipeline, arguments, state, caching, Progress(console))


@dataclass(frozen=True)
class Page:
    """A page that Jupyter shows inline; anywhere else, `path` opens in a browser, offline.

    Attributes:
        path: The page.
        height: How much of it is seen at once, in pixels.
    """

    path: Path
    height: int = 480

    def _repr_html_(self) -> str:
        # Inside the notebook's own file: a link to a path works for nobody else.
        text = html.escape(self.path.read_text(encoding="utf-8"), quote=True)
        style = f"width:100%;height:{self.height}px;border:1px solid #e3e6ec;background:#fff"
        return f'<iframe srcdoc="{text}" style="{style}"></iframe>'


def page(run: RunRecord, task: str, output: str = "", height: int = 480) -> Page:
    """Returns a page that a task wrote.

    Args:
        run: The run.
        task: The task's name, for example `validate-data`.
        output: Name of the output; needed when the task wrote several pages.
        height: How much of it is seen at once, in pixels.

    Raises:
        InputError: If the run has no such task, or the task no such page.
    """
    outputs = _outputs(run, task)
    pages = [name for name, artifact in outputs.items() if artifact["type"] == HTML]
    there = f"it has {', '.join(pages)}" if pages else "it has none"
    if output and output not in pages:
        raise InputError(f"The task {task!r} has no page {output!r}; {there}.")
    if not output and len(pages) != 1:
        raise InputError(f"Say which page of the task {task!r} is meant; {there}.")
    return Page(Path(outputs[output or pages[0]]["uri"]), height)


def metadata(run: RunRecord, task: str, output: str) -> dict[str, Any]:
    """Returns what is said about an output: metrics, a decision, rows.

    Raises:
        InputError: If the run has no such task, or the task no such output.
    """
    outputs = _outputs(run, task)
    if output not in outputs:
        there = ", ".join(outputs) or "none"
        raise InputError(f"The task {task!r} has no output {output!r}; it has {there}.")
    return dict(outputs[output]["metadata"])


def report(run: RunRecord, height: int = 720) -> Page:
    """Returns the report of a run: decisions, steps, metrics, every page, lineage."""
    return Page(Path(run.directory) / "report.html", height)


def _outputs(run: RunRecord, task: str) -> dict[str, dict[str, Any]]:
    found = run.task(task)
    if found is None:
        there = ", ".join(each.task for each in run.tasks)
        raise InputError(f"The run has no task {task!r}; it has {there}.")
    if not found.outputs:
        why = f": {found.error}" if found.error else ""
        raise InputError(f"The task {task!r} was {found.status}{why}, and has no outputs.")
    return {name: written[0] for name, written in found.outputs.items() if written}
