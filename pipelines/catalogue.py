"""The pipelines by name, and their compiled YAML."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from kfloop.components.contracts.errors import InputError

PIPELINES = {
    "training": "Train a model and roll it out when the gate passes it.",
    "monitoring": "Judge the live model; retrain and roll out when that is called for.",
    "batch-scoring": "Score a window with the live model.",
    "rollback": "Go back to the last good version.",
    "replay": "Send later rows as requests, standing in for live traffic.",
    "backtest": "Train and evaluate on windows of the past.",
}
COMPILED = Path(__file__).parent / "compiled"


def compiled_path(name: str) -> Path:
    """Returns where a pipeline's compiled YAML is.

    Raises:
        InputError: If there is no such pipeline.
    """
    if name not in PIPELINES:
        raise InputError(f"There is no pipeline {name!r}; there is {', '.join(PIPELINES)}.")
    return COMPILED / f"{name.replace('-', '_')}.yaml"


def compile_pipelines(directory: Path = COMPILED) -> Iterator[Path]:
    """Compiles every pipeline into `directory` and yields the files as they are written."""
    from kfp import compiler

    directory.mkdir(parents=True, exist_ok=True)
    for name in PIPELINES:
        module = import_module(f"kfloop.pipelines.{name.replace('-', '_')}")
        target = directory / compiled_path(name).name
        compiler.Compiler().compile(getattr(module, name.replace("-", "_")), str(target))
        yield target
