# SPDX-License-Identifier: Apache-2.0
"""Checks an image while it is built: its packages fit each other, and its family's code is whole.

    python -m kfloop.components.image_check FAMILY --uv PATH [MODULE]...

It needs nothing but the standard library and uv, and may be run in a finished image as well.
"""

import argparse
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

# Installed without their dependencies: what is needed of those is in the family's lock.
WITHOUT_DEPENDENCIES = ("kfp", "kfloop")
_CONFLICT = re.compile(
    r"^The package `(?P<package>[^`]+)` requires `(?P<name>[\w.-]+)", re.MULTILINE
)


def conflicts(uv: str, python: str, overrides: Path) -> list[str]:
    """Returns the requirements of installed packages that are not met, a sentence each.

    Args:
        uv: The uv to ask.
        python: Interpreter of the environment.
        overrides: The family's requirements-overrides.txt: what it names is meant to differ. It
            need not exist.
    """
    done = subprocess.run(
        [uv, "pip", "check", "--no-cache", "--python", python],
        capture_output=True,
        text=True,
        check=False,
    )
    told = done.stdout + done.stderr
    lines = [line for line in told.splitlines() if line.startswith("The package ")]
    if done.returncode and not lines:
        return [f"`uv pip check` ended with status {done.returncode}: {told.strip()}"]
    meant = _names(overrides)
    return [line for line in lines if not _is_meant(line, meant)]


def _is_meant(line: str, overridden: set[str]) -> bool:
    found = _CONFLICT.match(line)
    if not found:
        return False
    return found["package"] in WITHOUT_DEPENDENCIES or _normal(found["name"]) in overridden


def _names(overrides: Path) -> set[str]:
    """Returns the packages that a file of requirements names."""
    if not overrides.is_file():
        return set()
    found = re.finditer(r"^[\w.-]+", overrides.read_text(encoding="utf-8"), re.MULTILINE)
    return {_normal(name[0]) for name in found}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def package_of(family: str) -> str:
    """Returns the Python package of a family, or of `serving`."""
    return "kfloop.serving" if family == "serving" else f"kfloop.components.{family}"


def modules_of(family: str) -> list[str]:
    """Returns the names of a family's modules, but for the one that needs all of kfp."""
    package = import_module(package_of(family))
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    return [each.name for each in found if not each.name.endswith(".component")]


def import_all(modules: Iterable[str]) -> list[str]:
    """Imports modules and says which cannot be, a sentence each."""
    failed = []
    for name in modules:
        try:
            import_module(name)
        except ImportError as error:
            failed.append(f"{name} cannot be imported: {error}")
    return failed


def main(arguments: list[str]) -> str | None:
    """Checks what the command line asks for and returns what is wrong, if anything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("family")
    parser.add_argument("--uv", required=True)
    parser.add_argument("modules", nargs="*")
    # Modules stand behind an option, where parse_args takes none.
    options = parser.parse_intermixed_args(arguments)

    home = Path(str(next(iter(import_module(package_of(options.family)).__path__))))
    modules = options.modules or modules_of(options.family)
    wrong = conflicts(options.uv, sys.executable, home / "requirements-overrides.txt")
    wrong += import_all(modules)
    if wrong:
        return "\n".join(["This image is not whole:", *wrong])
    print(f"{options.family}: every requirement is met, {len(modules)} modules can be imported")
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
