# SPDX-License-Identifier: Apache-2.0
"""Trains in several processes at once, with Keras on JAX: what every node of a TrainJob runs.

    python -m kfloop.components.training.distributed --spec train.json

`train.json` holds `dataset`, `schema`, `model` and `curves` (paths that every process sees),
`roles` (the fields of `Roles`) and `settings` (those of `TrainSettings`). Without `--spec` the JSON
itself is read from `KFLOOP_TRAIN_SPEC`. `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
`JAX_PROCESS_ID` are as Kubeflow Trainer's runtime `jax-distributed` sets them; without them it is
one process. Every process reads the data, trains on its share of each batch, and process 0 writes
the package. Keras does not train across machines with TensorFlow (keras-team/keras#20585).
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from kfloop.components.contracts.errors import InputError

_ADDRESS, _COUNT, _NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_PATHS = ("dataset", "schema", "model", "curves")


def main() -> int:
    """Runs what the command line asks for and returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spec", help="JSON file; - for standard input")
    options = parser.parse_args()
    try:
        train_together(_read_spec(options.spec))
    except InputError as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    return 0


def train_together(spec: dict[str, Any]) -> None:
    """Joins the other processes, trains, and in process 0 writes the package.

    Args:
        spec: See this module's docstring.

    Raises:
        InputError: If the specification or the environment is not complete, another Keras backend
            is asked for, or as `train` does.
    """
    unknown = set(spec) ^ {*_PATHS, "roles", "settings"}
    if unknown:
        raise InputError(
            f"The training specification lacks, or has beyond what it may, "
            f"{', '.join(sorted(unknown))}; it holds {', '.join(_PATHS)}, roles and settings."
        )
    # Before Keras is imported, which reads it then.
    if os.environ.setdefault("KERAS_BACKEND", "jax") != "jax":
        raise InputError(
            f"KERAS_BACKEND is {os.environ['KERAS_BACKEND']!r}; several processes train with "
            "Keras on JAX only, so unset it."
        )
    _join()
    from kfloop.components.training.columns import Roles
    from kfloop.components.training.train import TrainSettings, train

    try:
        roles, settings = Roles(**spec["roles"]), TrainSettings(**spec["settings"])
    except TypeError as error:
        raise InputError(f"The training specification is wrong: {error}.") from error
    dataset, schema, model, curves = (spec[name] for name in _PATHS)
    train(dataset, schema, model, curves, roles, settings)
    if int(os.environ.get(_NUMBER, "0")) == 0:
        print(f"Wrote the model package {spec['model']}.", flush=True)


def _read_spec(path: str | None) -> dict[str, Any]:
    if path == "-":
        text = sys.stdin.read()
    elif path:
        text = Path(path).read_text(encoding="utf-8")
    elif "KFLOOP_TRAIN_SPEC" in os.environ:
        text = os.environ["KFLOOP_TRAIN_SPEC"]
    else:
        raise InputError("There is nothing to train: give --spec, or set KFLOOP_TRAIN_SPEC.")
    try:
        spec = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"The training specification is not JSON: {error}.") from error
    if not isinstance(spec, dict):
        raise InputError("The training specification is not a JSON object.")
    return spec


def _join() -> None:
    """Connects to the other processes, before anything else uses JAX."""
    given = {name: os.environ.get(name, "") for name in (_ADDRESS, _COUNT, _NUMBER)}
    if not any(given.values()):
        return
    missing = [name for name, value in given.items() if not value]
    wrong = [name for name in (_COUNT, _NUMBER) if not given[name].isdecimal()]
    if missing or wrong:
        raise InputError(
            f"{', '.join(missing or wrong)} is not set to what several processes need; Kubeflow "
            "Trainer's runtime jax-distributed sets address, number of processes and process id."
        )
    try:
        import jax
    except ImportError as error:
        raise InputError(
            "JAX is not installed; use the image with requirements-jax.txt."
        ) from error
    if given[_COUNT] != "1":
        jax.distributed.initialize(given[_ADDRESS], int(given[_COUNT]), int(given[_NUMBER]))


if __name__ == "__main__":
    sys.exit(main())
