# SPDX-License-Identifier: Apache-2.0
"""Checks of how a loop is judged that need more than one key, by key and line."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.metrics import (
    HIGHER_IS_BETTER,
    LOWER_IS_BETTER,
    METRICS,
    PERFORMANCE_LIMITS,
    PERFORMANCE_METRICS,
)
from kfloop.pipelines.yaml_file import Lines

if TYPE_CHECKING:
    from kfloop.pipelines.loop import Loop

Place = tuple[str, ...]


def check_judgement(loop: "Loop", file: Path, lines: Lines) -> None:
    """Checks that the gate and monitoring ask for what is measured.

    Raises:
        InputError: If it does not; one line for every mistake.
    """
    found = [*_metric_names(loop), *_needs(loop), *_performance(loop)]
    told = []
    for place, message in found:
        known = [place[:size] for size in range(len(place), 0, -1) if place[:size] in lines]
        line = lines[known[0]] if known else 1
        told.append(f"{file} line {line}: {'.'.join(place)}: {message}.")
    if told:
        raise InputError("\n".join(told))


def _metric_names(loop: "Loop") -> Iterator[tuple[Place, str]]:
    gate, known = loop.gate, METRICS[loop.task]
    unknown = f"is no metric of the task {loop.task}; those are {', '.join(known)}"
    named: dict[str, Mapping[str, Any]] = {
        "thresholds": gate.thresholds,
        "slices": gate.slices,
        "minimum_improvement": gate.minimum_improvement,
        "maximum_slice_regression": gate.maximum_slice_regression,
    }
    for key, given in named.items():
        for metric, value in given.items():
            place = ("gate", key, metric)
            if metric not in known:
                yield place, unknown
            elif key not in ("thresholds", "slices"):
                continue
            elif not isinstance(value, dict):
                if metric not in HIGHER_IS_BETTER | LOWER_IS_BETTER:
                    yield place, "is best in between; give a minimum and a maximum"
            elif not value or set(value) - {"minimum", "maximum"}:
                yield place, "takes minimum and maximum"
    if gate.metric and gate.metric not in known:
        yield ("gate", "metric"), unknown


def _performance(loop: "Loop") -> Iterator[tuple[Place, str]]:
    known = PERFORMANCE_METRICS[loop.task]
    for metric, limits in loop.monitoring.performance.items():
        place = ("monitoring", "performance", metric)
        if metric not in known:
            yield place, f"monitoring of {loop.task} models measures {', '.join(known)}"
        elif not limits or set(limits) - set(PERFORMANCE_LIMITS):
            yield place, f"takes {', '.join(PERFORMANCE_LIMITS)}"


def _needs(loop: "Loop") -> Iterator[tuple[Place, str]]:
    """Yields the keys that do nothing, or fail later, without another one."""
    evaluation, gate = loop.evaluation, loop.gate
    for key in ("slices", "maximum_slice_regression"):
        if getattr(gate, key) and not evaluation.slices:
            yield ("gate", key), "needs columns in evaluation.slices"
    if gate.fairness and not evaluation.groups:
        yield ("gate", "fairness"), "needs columns in evaluation.groups"
    if loop.task != "binary":
        for key in ("groups", "threshold_by", "costs"):
            if getattr(evaluation, key):
                yield ("evaluation", key), f"is for binary models; this task is {loop.task}"
    elif evaluation.costs and evaluation.threshold_by != "cost":
        yield ("evaluation", "costs"), "is for evaluation.threshold_by: cost"
    elif evaluation.threshold_by == "cost" and not evaluation.costs:
        yield ("evaluation", "threshold_by"), "cost needs evaluation.costs"
