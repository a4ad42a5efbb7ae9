# SPDX-License-Identifier: Apache-2.0
"""Conditions of compiled pipelines. They are CEL, evaluated by a CEL library as on the cluster."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from kfloop.components.contracts.errors import InputError


@lru_cache(maxsize=256)
def _program(expression: str) -> Any:
    import celpy

    environment = celpy.Environment()
    return environment.program(environment.compile(expression))


def holds(expression: str, parameters: Mapping[str, Any]) -> bool:
    """Evaluates a task's condition over its input parameters.

    Raises:
        InputError: If it cannot be evaluated: an unknown value is never a silent False.
    """
    import celpy
    from celpy.celparser import CELParseError

    try:
        outcome = _program(expression).evaluate(
            {"inputs": celpy.json_to_cel({"parameter_values": dict(parameters)})}
        )
    except (celpy.CELEvalError, CELParseError) as error:
        raise InputError(
            f"The condition {expression} cannot be evaluated with {dict(parameters)}: {error}."
        ) from error
    return bool(outcome)
