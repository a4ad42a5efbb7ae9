# SPDX-License-Identifier: Apache-2.0
"""Which code a run is of."""

import subprocess
from functools import cache
from pathlib import Path


@cache
def git_commit(directory: Path) -> str:
    """Returns the commit of a directory, with `-dirty` when files differ; empty without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
