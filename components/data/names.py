# SPDX-License-Identifier: Apache-2.0
"""Names of tables: they become directories and SQL views."""

import re

from kfloop.components.contracts.errors import InputError


def require_table_name(name: object, what: str) -> None:
    """Raises InputError unless `name` is letters, digits and `_`, and starts with a letter."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise InputError(
            f"{what} is called {name!r}; use letters, digits and underscores, a letter first."
        )
