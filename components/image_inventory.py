# SPDX-License-Identifier: Apache-2.0
"""Tells as JSON what is installed where it runs: Python packages, Debian packages, the system.

`kfloop images sbom` runs it in an image and makes the bill of materials from it. It needs the
standard library only.
"""

import json
import platform
import re
import shutil
import subprocess
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


def inventory() -> dict[str, Any]:
    """Returns `python` (version), `packages`, `system` (of /etc/os-release) and `debian`.

    A package has `name`, `version`, `license` (an expression, a name, or empty) and `requires`:
    the installed packages that it asks for, under any condition.
    """
    found = {normal(each.name): each for each in distributions()}
    return {
        "python": platform.python_version(),
        "packages": [_package(name, each, set(found)) for name, each in sorted(found.items())],
        "system": system_of(Path("/etc/os-release")),
        "debian": _debian_packages(),
    }


def _package(name: str, distribution: Distribution, installed: set[str]) -> dict[str, Any]:
    asked = (_REQUIREMENT.match(line) for line in distribution.requires or [])
    names = {normal(each[1]) for each in asked if each}
    return {
        "name": name,
        "version": distribution.version,
        "license": license_of(distribution),
        "requires": sorted(names & installed - {name}),
    }


def license_of(distribution: Distribution) -> str:
    """Returns the licence that a package declares: expression, else classifier, else free text."""
    metadata = distribution.metadata
    if "License-Expression" in metadata:
        return str(metadata["License-Expression"])
    classifiers = metadata.get_all("Classifier") or []
    classified = [each.rsplit("::", 1)[1].strip() for each in classifiers if "License ::" in each]
    if classified:
        return ", ".join(classified)
    # Some packages put the whole text there.
    text = str(metadata["License"]).strip() if "License" in metadata else ""
    return text.splitlines()[0][:100] if text and text != "UNKNOWN" else ""


def normal(name: str) -> str:
    """Returns a package's name as package indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def system_of(path: Path) -> dict[str, str]:
    """Returns `id`, `version` and `name` of the operating system, as far as they are known."""
    if not path.is_file():
        return {"id": "", "version": "", "name": ""}
    lines = (line.partition("=") for line in path.read_text(encoding="utf-8").splitlines())
    facts = {key: value.strip("\"'") for key, _, value in lines}
    return {
        "id": facts.get("ID", ""),
        "version": facts.get("VERSION_ID", ""),
        "name": facts.get("PRETTY_NAME", ""),
    }


def _debian_packages() -> list[dict[str, str]]:
    """Returns name, version and architecture of Debian's packages; none on another system."""
    if not shutil.which("dpkg-query"):
        return []
    done = subprocess.run(
        [
            "dpkg-query",
            "--show",
            "--showformat=${db:Status-Status}\t${Package}\t${Version}\t${Architecture}\n",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    return [
        {"name": name, "version": version, "architecture": architecture}
        for status, name, version, architecture in rows
        if status == "installed"
    ]


if __name__ == "__main__":
    print(json.dumps(inventory()))
