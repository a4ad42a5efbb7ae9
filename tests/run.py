# SPDX-License-Identifier: Apache-2.0
"""Runs the checks: style and types, then every test in the environment of what it tests.

    .venv/bin/python tests/run.py [--section NAME]... [pytest arguments]

The environments are made when they are missing. Several sections run at a time, since importing and
waiting for servers is much of their work; no test measures time.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kfloop.pipelines.local import environments
from kfloop.pipelines.local.environments import Environment

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
DRIVER_FOLDERS = ("local", "pipelines", "scripts")
LOOPS = ("e2e/test_weather_loop.py", "e2e/test_broken_input.py", "e2e/test_quickstart.py")
# pytest lies behind the environment's own packages, so that what is tested is what runs.
START_PYTEST = (
    "import sys; sys.path.append(sys.argv.pop(1)); import pytest; sys.exit(pytest.main())"
)
NOTHING_COLLECTED = 5
# For what hangs: beside much else a test may take twenty times as long as alone.
TIMEOUT_SECONDS = 900
# One more than the processors, for sections that wait; each may hold two gigabytes of memory.
LANES = min(4, (os.cpu_count() or 1) + 1)
_printing = threading.Lock()


@dataclass(frozen=True)
class Section:
    """Tests that run in one environment.

    Attributes:
        name: What it is called on the command line.
        places: Folders and files under tests/.
        family: Family whose environment runs them, or empty for the driver's.
        needs: Other families whose environments they start processes in.
    """

    name: str
    places: tuple[str, ...]
    family: str = ""
    needs: tuple[str, ...] = ()

    @property
    def paths(self) -> list[Path]:
        """The places that hold tests."""
        return [TESTS / place for place in self.places if _test_files(TESTS / place)]


# Other families in whose environments a family's tests start processes.
NEEDS = {"deployment": ("serving",), "serving": ("training", "evaluation")}
SECTIONS = (
    # The contracts need pyarrow, which the driver has not.
    Section("contracts", ("contracts",), "data"),
    *(
        Section(family, (family,), family, NEEDS.get(family, ()))
        for family in environments.FAMILIES
    ),
    # The doubles of the servers that families talk to; the client is in this environment.
    Section("doubles", ("doubles",), "deployment"),
    Section("driver", DRIVER_FOLDERS),
    # Whole pipelines, in three: each by itself takes minutes.
    Section("e2e", LOOPS, needs=environments.FAMILIES),
    Section("killed", ("e2e/test_killed.py",), needs=environments.FAMILIES),
    Section("simulated", ("e2e/test_simulate.py",), needs=environments.FAMILIES),
)
# These begin first, the longest one before the others: what begins last ends alone.
LONGEST = ("deployment", "training", "e2e", "serving", "killed", "simulated", "driver")


@dataclass
class Result:
    """How a section ended; `trouble` says what no count of tests says."""

    name: str
    seconds: float
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    trouble: str = ""


def main() -> int:
    """Runs what the command line asks for and returns the exit status."""
    names = ["lint", *(section.name for section in SECTIONS)]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--section", "--family", action="append", choices=names, help="only this one; repeatable"
    )
    options, arguments = parser.parse_known_args()
    chosen = options.section or names
    forgotten = _tests_of_no_section()
    if forgotten:
        print(f"tests/run.py runs no section for {', '.join(forgotten)}; add one to SECTIONS.")
        return 1

    results = [_lint()] if "lint" in chosen else []
    sections = [section for section in SECTIONS if section.name in chosen]
    results += [
        Result(section.name, 0, trouble="there are no tests")
        for section in sections
        if not section.paths
    ]
    results += _run_sections([section for section in sections if section.paths], arguments)
    return _summary(results)


def _run_sections(sections: list[Section], arguments: list[str]) -> list[Result]:
    """Runs the sections, several at a time; a single one shows its output as it comes."""
    if not sections:
        return []
    needed = [family for section in sections for family in (section.family, *section.needs)]
    made = environments.ensure(family for family in needed if family)
    overlay = environments.tests_environment(TESTS / "requirements.txt")
    jax = environments.jax_environment()
    with_jax = any(section.family == "training" for section in sections)
    environments.make_ready([overlay, jax] if with_jax else [overlay])

    stream = len(sections) == 1

    def run(section: Section) -> Result:
        return _run_section(section, made, overlay, arguments, stream)

    begin = sorted(
        sections, key=lambda one: LONGEST.index(one.name) if one.name in LONGEST else len(LONGEST)
    )
    with ThreadPoolExecutor(LANES) as pool:
        results = dict(zip(begin, pool.map(run, begin), strict=True))
    return [results[section] for section in sections]


def _run_section(
    section: Section,
    made: dict[str, Environment],
    overlay: Environment,
    arguments: Sequence[str],
    stream: bool,
) -> Result:
    """Runs pytest for a section; its output is shown as it comes, or whole at the end."""
    if section.family:
        python = made[section.family].python
        variables = environments.task_environment(made[section.family])
    else:
        python, variables = Path(sys.executable), dict(os.environ)
    # What a user's pipelines are compiled with is nothing to the tests.
    variables = {k: v for k, v in variables.items() if not k.startswith("KFLOOP_IMAGE_")}
    variables["KFLOOP_CACHE"] = str(environments.cache_directory())
    if "serving" in made:
        variables["KFLOOP_SERVING_PYTHON"] = str(made["serving"].python)
    if section.family == "training":
        variables["KFLOOP_JAX_PYTHON"] = str(environments.jax_environment().python)
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "junit.xml"
        command = [
            *(str(python), "-P", "-c", START_PYTEST, str(overlay.path)),
            *(f"--junitxml={report}", f"--timeout={TIMEOUT_SECONDS}", "-q"),
            *arguments,
            *(str(path.relative_to(ROOT)) for path in section.paths),
        ]
        title = f"── {section.name} "
        if stream:
            print(f"\n{title:─<78}", flush=True)
        started = time.monotonic()
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=None if stream else subprocess.PIPE,
            stderr=None if stream else subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        seconds = time.monotonic() - started
        if not stream:
            with _printing:
                print(f"\n{title:─<78}\n{done.stdout}", end="", flush=True)
        return _result(section, done.returncode, report, seconds, filtered=bool(arguments))


def _result(section: Section, status: int, report: Path, seconds: float, filtered: bool) -> Result:
    result = Result(section.name, seconds)
    if report.is_file():
        for suite in ET.parse(report).getroot().iter("testsuite"):
            count = {
                key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")
            }
            result.failed += count["failures"] + count["errors"]
            result.skipped += count["skipped"]
            result.passed += count["tests"] - sum(list(count.values())[1:])
    if status not in (0, 1, NOTHING_COLLECTED):
        result.trouble = f"pytest ended with status {status}"
    elif status == 1 and not result.failed:
        result.trouble = "pytest failed without a failed test"
    elif not result.passed and not result.failed and not filtered:
        result.trouble = "no test ran"
    return result


def _lint() -> Result:
    """Checks style, format and types of the tree."""
    print(f"{'── lint ':─<78}", flush=True)
    started = time.monotonic()
    code = environments.code_path()
    tools = Path(sys.executable).parent
    commands = (
        ["ruff", "check", "--output-format=concise", "."],
        ["ruff", "format", "--check", "--output-format=concise", "."],
        # As packages, below the one import name that the folders have when they are installed.
        ["mypy", "-p", "kfloop"],
        ["mypy", "tests/run.py"],
    )
    failed = []
    variables = {**os.environ, "MYPYPATH": str(code)}
    for tool, *arguments in commands:
        done = subprocess.run(
            [str(tools / tool), *arguments],
            cwd=ROOT,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        # mypy names the links; a person wants the files.
        told = done.stdout + done.stderr
        print(re.sub(rf"\S*{code.name}/kfloop/", "", told), end="", flush=True)
        if done.returncode != 0:
            failed.append(" ".join([tool, *arguments]))
    trouble = f"not clean: {', '.join(failed)}" if failed else ""
    return Result("lint", time.monotonic() - started, trouble=trouble)


def _summary(results: list[Result]) -> int:
    print(f"\n{'── summary ':─<78}")
    for result in results:
        counts = f"{result.passed:4d} passed {result.failed:4d} failed {result.skipped:4d} skipped"
        counts = "" if result.name == "lint" else counts
        told = result.trouble or ("clean" if result.name == "lint" else "")
        print(f"{result.name:12} {result.seconds:6.1f} s  {counts}  {told}".rstrip())
    failed = sum(max(result.failed, bool(result.trouble)) for result in results)
    passed = sum(result.passed for result in results)
    skipped = sum(result.skipped for result in results)
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return 1 if failed else 0


def _tests_of_no_section() -> list[str]:
    """Returns test files that this file forgets."""
    known = {file for section in SECTIONS for path in section.paths for file in _test_files(path)}
    return [str(file.relative_to(ROOT)) for file in sorted({*_test_files(TESTS)} - known)]


def _test_files(place: Path) -> list[Path]:
    return [place] if place.is_file() else list(place.rglob("test_*.py"))


if __name__ == "__main__":
    sys.exit(main())
