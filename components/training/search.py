# SPDX-License-Identifier: Apache-2.0
"""The search: gives trials to worker processes, hears their epochs, and tells the study."""

import math
import os
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from kfloop.components.contracts.errors import InputError
from kfloop.components.training.search_space import Dimension
from kfloop.components.training.study import ask, read_values, trials
from kfloop.components.training.trial import TrialWork, Worker

# With so many trials of a run and not one that ended, it is not the parameters.
_HOPELESS = 3


@dataclass(frozen=True)
class Limits:
    """How many trials in all and at a time, and after how many seconds none starts; 0: no limit."""

    trials: int
    parallel: int
    seconds: float


class Search:
    """One run: gives trials to workers, hears their epochs, and tells the study."""

    def __init__(
        self,
        study: optuna.Study,
        space: list[Dimension],
        metric: str,
        limits: Limits,
        work: TrialWork,
    ) -> None:
        self._study = study
        self._space = space
        self._metric = metric
        self._limits = limits
        self._work = work
        self._started = time.monotonic()
        self._threads = max(1, _processors() // limits.parallel)
        self._failed: list[bool] = []
        self._idle: list[Worker] = []
        self._busy: dict[Worker, tuple[optuna.Trial, float]] = {}

    def run(self) -> None:
        """Returns when no trial runs and none is to be started."""
        try:
            while True:
                while len(self._busy) < self._limits.parallel and self._goes_on():
                    self._start()
                if not self._busy:
                    return
                ready = wait([worker.connection for worker in self._busy])
                for worker in [w for w in self._busy if w.connection in ready]:
                    self._hear(worker, worker.receive())
        finally:
            for worker in [*self._idle, *self._busy]:
                worker.close()

    def _goes_on(self) -> bool:
        known = trials(self._study)
        limit = self._limits.seconds
        if limit and time.monotonic() - self._started >= limit:
            return False
        if len(self._failed) >= _HOPELESS and all(self._failed):
            return False
        return len(known) < self._limits.trials

    def _start(self) -> None:
        trial = ask(
            self._study,
            self._space,
            self._work.settings.seed,
            self._limits.parallel > 1,
        )
        worker = self._idle.pop() if self._idle else Worker(self._work, self._threads)
        self._busy[worker] = (trial, time.monotonic())
        worker.send({"values": read_values(self._space, trial.params)})

    def _hear(self, worker: Worker, message: dict[str, Any]) -> None:
        trial, started = self._busy[worker]
        if "epoch" in message:
            trial.report(self._value(message["metrics"]), message["epoch"])
            worker.send({"go_on": not trial.should_prune()})
            return
        del self._busy[worker]
        if "ended" in message:
            worker.close()
            killed = " (killed: out of memory?)" if message["ended"] == -9 else ""
            message = {"error": f"its process ended with status {message['ended']}{killed}"}
        else:
            self._idle.append(worker)
        self._failed.append("error" in message)
        trial.set_user_attr("seconds", round(time.monotonic() - started, 1))
        if "error" in message:
            trial.set_user_attr("reason", message["error"])
            self._study.tell(trial, state=TrialState.FAIL)
        elif "stopped" in message:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            value = self._value(message["metrics"])
            trial.set_user_attr("epochs", message["epochs"])
            if math.isnan(value):
                trial.set_user_attr("reason", f"{self._metric} is not a number")
            self._study.tell(trial, value)  # not a number is a failure to it
        self._print(trial.number)

    def _value(self, metrics: dict[str, float]) -> float:
        if self._metric not in metrics:
            raise InputError(
                f"The training measures no {self._metric}; it measures {', '.join(metrics)}."
            )
        return metrics[self._metric]

    def _print(self, number: int) -> None:
        done = self._study.get_trials(deepcopy=False)[number]
        last = done.last_step
        epochs = f" after {last + 1} epochs" if last is not None else ""
        ended = {
            "COMPLETE": f"{self._metric} {done.value or 0:.5g}",
            "PRUNED": "stopped early, others were better",
            "FAIL": f"failed: {done.user_attrs.get('reason')}",
        }[done.state.name]
        values = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in read_values(self._space, done.params).items()
        )
        count = len([trial for trial in trials(self._study) if trial.state.is_finished()])
        print(
            f"Trial {number} ({count} of {self._limits.trials}): {ended}{epochs}, "
            f"{done.user_attrs['seconds']:.0f} s: {values}",
            flush=True,
        )


def _processors() -> int:
    """Returns the processors this process may use; in a container its limit, rounded up."""
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    limit = Path("/sys/fs/cgroup/cpu.max")
    quota, _, period = limit.read_text().partition(" ") if limit.is_file() else ("max", "", "")
    return allowed if quota == "max" else min(allowed, math.ceil(int(quota) / int(period)))
