# SPDX-License-Identifier: Apache-2.0
"""How the commands print tables."""

from rich.console import Console
from rich.table import Table

# Wider than any row: a digest, a path and a sentence fit.
_WHOLE_ROWS = 1000


def print_table(table: Table) -> None:
    """Prints a table with every cell whole: folded to fit a terminal, else one line per row."""
    for column in table.columns:
        column.overflow = "fold"
    console = Console()
    (console if console.is_terminal else Console(width=_WHOLE_ROWS)).print(table)
