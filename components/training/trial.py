# SPDX-License-Identifier: Apache-2.0
"""A process that trains one trial after another for `tune`; it knows no optimizer.

TensorFlow is imported in it alone: the process that decides stays small, and a trial that runs out
of memory takes its own process down and not the study. Messages are JSON over a pipe.
"""

import json
import logging
import os
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from kfloop.components.contracts.errors import InputError
from kfloop.components.training.best_parameters import best_parameters, with_parameters
from kfloop.components.training.columns import Roles
from kfloop.components.training.settings import TrainSettings


@dataclass(frozen=True)
class TrialWork:
    """What all trials of a study have in common."""

    dataset: str
    schema: str
    roles: Roles
    settings: TrainSettings


class Stopped(Exception):
    """Raised at the end of an epoch when the trial is not worth going on with."""


class Worker:
    """A worker process, seen from the process that decides."""

    def __init__(self, work: TrialWork, threads: int) -> None:
        """Starts a process that trains with `threads` threads."""
        # Not forked: TensorFlow does not survive it, and a fresh process has seeds of its own.
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(
            target=run_trials, args=(theirs, work, threads), daemon=True
        )
        self._process.start()
        theirs.close()  # so that its end is seen here when the process dies

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends a trial's values, or the answer to an epoch; a process that is gone is not told."""
        try:
            self.connection.send_bytes(json.dumps(message).encode())
        except BrokenPipeError:
            return  # `receive` will say so

    def receive(self) -> dict[str, Any]:
        """Returns the next message, or how the process ended."""
        try:
            message: dict[str, Any] = json.loads(self.connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            self._process.join()
            return {"ended": self._process.exitcode}
        return message

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        self.connection.close()
        self._process.kill()
        self._process.join()


def run_trials(connection: Connection, work: TrialWork, threads: int) -> None:
    """Trains what comes over the connection until it is closed.

    A request is `{"values": {name: value}}`. Every epoch is told as `{"epoch", "metrics"}` and
    answered by `{"go_on": bool}`; the end is `{"metrics", "epochs"}`, `{"stopped": true}` or
    `{"error": sentence}`.
    """
    # Read by TensorFlow when it starts.
    os.environ["TF_NUM_INTRAOP_THREADS"] = str(threads)
    os.environ["TF_NUM_INTEROP_THREADS"] = str(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # Else the first of several processes takes all of a GPU's memory.
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    # Every trial compiles a network of its own; TensorFlow warns of that.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    # The lines of several trainings at once tell nobody anything; the study prints its own.
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), connection:
        while True:
            try:
                values = json.loads(connection.recv_bytes())["values"]
            except EOFError:
                return
            connection.send_bytes(json.dumps(_train(connection, work, values)).encode())


def _train(connection: Connection, work: TrialWork, values: dict[str, Any]) -> dict[str, Any]:
    from kfloop.components.training.train import learn  # imports TensorFlow

    def on_epoch(epoch: int, logs: dict[str, float]) -> None:
        connection.send_bytes(json.dumps({"epoch": epoch, "metrics": metrics(logs)}).encode())
        if not json.loads(connection.recv_bytes())["go_on"]:
            raise Stopped

    settings = with_parameters(work.settings, best_parameters(values))
    try:
        result = learn(work.dataset, work.schema, work.roles, settings, on_epoch).result
    except Stopped:
        return {"stopped": True}
    except InputError as error:
        return {"error": str(error)}
    return {"metrics": metrics(result.epochs[result.best]), "epochs": len(result.epochs)}


def metrics(logs: Mapping[str, float]) -> dict[str, float]:
    """Returns an epoch's values on the validation part by the names that packages use."""
    return {
        f"validation_{name.removeprefix('val_')}": value
        for name, value in logs.items()
        if name.startswith("val_")
    }


def describe(work: TrialWork) -> dict[str, Any]:
    """Returns what shapes every trial's result, as JSON values."""
    free = {"checkpoint_uri": "", "require_gpu": False, "reference_rows": 0}
    return {"settings": asdict(work.settings) | free, "roles": asdict(work.roles)}
