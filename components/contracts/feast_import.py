# SPDX-License-Identifier: Apache-2.0
"""A quick import of Feast, for processes that only use feature definitions and do not make them."""

from typing import Any


def import_feast() -> None:
    """Imports Feast without its checks of argument types: 1.5 s instead of 6 s (Feast 0.67).

    Feast decorates its classes with typeguard's `typechecked`, which compiles the source of each
    anew. Those checks help who writes a feature repository, so `apply` imports Feast as it is.
    Nothing happens where Feast is imported already.
    """
    import typeguard

    checked = typeguard.typechecked
    typeguard.typechecked = _unchecked
    try:
        import feast  # noqa: F401 - the import is the point
    finally:
        typeguard.typechecked = checked


def _unchecked(target: Any = None, **_options: Any) -> Any:
    return (lambda decorated: decorated) if target is None else target
