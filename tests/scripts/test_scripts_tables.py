# SPDX-License-Identifier: Apache-2.0
"""Tables: nothing is cut, in a terminal or in a pipe."""

import pytest
from rich.table import Table

from kfloop.scripts.tables import print_table

DIGEST = "sha256:" + "0123456789abcdef" * 8


def table() -> Table:
    made = Table("image", "digest", box=None)
    made.add_row("data", DIGEST)
    return made


def test_a_pipe_gets_every_row_whole_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(table())
    assert f"data   {DIGEST}" in capsys.readouterr().out


def test_a_terminal_gets_rows_folded_into_its_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    print_table(table())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 2 and max(map(len, lines)) <= 80
    assert "".join(line.removeprefix(" data").strip() for line in lines[1:]) == DIGEST
