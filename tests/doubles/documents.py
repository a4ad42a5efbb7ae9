# SPDX-License-Identifier: Apache-2.0
"""Copies of JSON documents."""

from typing import Any


def copied(document: Any) -> Any:
    """Returns a deep copy of what JSON can hold; many times faster than copy.deepcopy."""
    if isinstance(document, dict):
        return {key: copied(value) for key, value in document.items()}
    if isinstance(document, list):
        return [copied(value) for value in document]
    return document
