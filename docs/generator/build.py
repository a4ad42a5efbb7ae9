# SPDX-License-Identifier: Apache-2.0
"""Builds the docs site in build/site, in an environment of its own; a warning is an error.

.venv/bin/python docs/generator/build.py [--serve]
"""

import os
import subprocess
import sys
from pathlib import Path

from kfloop.pipelines.local.environments import code_path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / "build" / "docs"
SITE = ROOT / "build" / "site"
LOCK = ROOT / "docs" / "requirements.txt"


def main() -> int:
    """Makes the environment and runs mkdocs; returns its exit status."""
    python = ENVIRONMENT / "bin" / "python"
    uv = Path(sys.executable).parent / "uv"
    if not python.exists():
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, ENVIRONMENT], check=True)
    sync = [uv, "pip", "sync", "--quiet", "--require-hashes", "--python", python, LOCK]
    subprocess.run(sync, check=True)
    # Not --quiet: mkdocs then counts no warnings.
    serve = "--serve" in sys.argv[1:]
    command = ["serve"] if serve else ["build", "--strict", "--site-dir", SITE]
    # The theme's advice about mkdocs 2 is no warning of this site's.
    variables = {**os.environ, "PYTHONPATH": str(code_path()), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run([python, "-m", "mkdocs", *command], cwd=ROOT, env=variables, check=False)
    if not serve and done.returncode == 0:
        print(f"{SITE / 'index.html'}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
