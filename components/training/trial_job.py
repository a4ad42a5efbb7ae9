# SPDX-License-Identifier: Apache-2.0
"""One trial as a process of its own: what Katib starts in every pod.

    python -m kfloop.components.training.trial_job --spec train.json --set dropout=0.2 …

`train.json` is as for `distributed`. A value is JSON, else text. Every epoch's metrics are printed
as `validation_auc=0.79`, which Katib's collector reads, and at the end those of the epoch whose
weights training would keep.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from kfloop.components.contracts.errors import InputError
from kfloop.components.training.best_parameters import best_parameters, with_parameters
from kfloop.components.training.columns import Roles
from kfloop.components.training.settings import TrainSettings
from kfloop.components.training.trial import metrics


def main(arguments: list[str] | None = None) -> int:
    """Runs what the command line asks for and returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spec", required=True, help="JSON file")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args(arguments)
    try:
        run_trial(json.loads(Path(options.spec).read_text("utf-8")), _values(options.set))
    except InputError as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    return 0


def run_trial(spec: dict[str, Any], values: dict[str, Any]) -> dict[str, float]:
    """Trains with other values than the specification's, and prints the metrics.

    Returns:
        The metrics of the epoch whose weights training would keep.

    Raises:
        InputError: As `train` does.
    """
    from kfloop.components.training.train import learn  # imports TensorFlow

    settings = with_parameters(TrainSettings(**spec["settings"]), best_parameters(values))
    result = learn(
        spec["dataset"],
        spec["schema"],
        Roles(**spec["roles"]),
        settings,
        lambda epoch, logs: _print(metrics(logs)),
    ).result
    kept = metrics(result.epochs[result.best])
    _print(kept)
    return kept


def _print(values: dict[str, float]) -> None:
    for name, value in values.items():
        print(f"{name}={value}", flush=True)


def _values(given: list[str]) -> dict[str, Any]:
    return {name: as_value(text) for name, _, text in (each.partition("=") for each in given)}


def as_value(text: str) -> Any:
    """Returns what a text is as JSON, else the text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


if __name__ == "__main__":
    sys.exit(main())
