# SPDX-License-Identifier: Apache-2.0
"""What a trivial step costs: kfloop's runner beside `kfp.local`, in one run.

Run with the driver environment: `.venv/bin/python benchmarks/runner.py`. `kfp.local` is measured
without its default of a new virtual environment per step, which costs seconds and a network.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kfp import compiler, dsl, local

from kfloop.pipelines.local.executors import ImageEnvironment
from kfloop.pipelines.local.pipeline_spec import load_pipeline
from kfloop.pipelines.local.runner import run_pipeline

STEPS = 10
COMMON = {"base_image": "kfloop/data:0.1.0", "install_kfp_package": False}


@dsl.component(**COMMON)
def trivial(number: int) -> int:
    """Adds one: a step whose inputs are the same as before would be reused."""
    return number + 1


@dsl.pipeline(name="trivial-steps")
def pipeline(first: int = 0):
    """Ten steps, each after the one before."""
    task = trivial(number=first)
    for _ in range(STEPS - 1):
        task = trivial(number=task.output)


def main() -> None:
    """Prints seconds per step and the ratio to kfloop's runner."""
    with tempfile.TemporaryDirectory() as directory:
        seconds = {"kfloop": _time(lambda: _kfloop(Path(directory)))}
        seconds["kfloop, steps reused"] = _time(lambda: _kfloop(Path(directory)))
        seconds["kfp.local, use_venv=False"] = _time(lambda: _kfp_local(directory))
    for name, took in seconds.items():
        print(f"{name:<28}{took:8.3f} s per step{took / seconds['kfloop']:8.2f} × kfloop")


def _time(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) / STEPS


def _kfloop(directory: Path) -> None:
    path = directory / "pipeline.yaml"
    compiler.Compiler().compile(pipeline, str(path))
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment = ImageEnvironment(variables, "driver", "source")
    run_pipeline(load_pipeline(path), {}, directory / "state", lambda image: environment)


def _kfp_local(directory: str) -> None:
    local.init(
        runner=local.SubprocessRunner(use_venv=False), pipeline_root=f"{directory}/kfp-local"
    )
    pipeline()


if __name__ == "__main__":
    main()
