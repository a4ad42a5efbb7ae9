# SPDX-License-Identifier: Apache-2.0
"""Executes a notebook from end to end in a kernel of this Python, and writes it with its outputs.

    python execute_notebook.py PACKAGES NOTEBOOK RESULT

PACKAGES is a directory with nbclient and ipykernel; they lie behind the environment's own, so that
the notebook sees what a user's kernel would.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

START_KERNEL = (
    "import sys; sys.path.append(sys.argv.pop(1)); "
    "from ipykernel.kernelapp import launch_new_instance; launch_new_instance()"
)
CELL_SECONDS = 900


def main() -> None:
    packages, notebook, result = sys.argv[1:]
    sys.path.append(packages)
    import nbformat
    from nbclient import NotebookClient

    with tempfile.TemporaryDirectory() as jupyter:
        kernel = Path(jupyter) / "kernels" / "kfloop"
        kernel.mkdir(parents=True)
        command = [sys.executable, "-c", START_KERNEL, packages, "-f", "{connection_file}"]
        described = {"argv": command, "display_name": "kfloop", "language": "python"}
        (kernel / "kernel.json").write_text(json.dumps(described))
        os.environ["JUPYTER_PATH"] = jupyter
        document = nbformat.read(notebook, as_version=4)
        client = NotebookClient(document, timeout=CELL_SECONDS, kernel_name="kfloop")
        try:
            client.execute()
        finally:
            nbformat.write(document, result)


if __name__ == "__main__":
    main()
