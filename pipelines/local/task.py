# SPDX-License-Identifier: Apache-2.0
"""Runs one container task as the cluster's launcher does, in its family's environment."""

import json
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfloop.components.contracts.errors import InputError
from kfloop.pipelines.local.pipeline_spec import Artifact, coerce, plain
from kfloop.pipelines.local.placeholders import expand
from kfloop.pipelines.local.watchdog import Watchdog

# Linux refuses a single argument of 128 KiB or more, on a laptop and in a pod alike.
LONGEST_ARGUMENT = 128 * 1024 - 1
_EXECUTOR_NOISE = "[KFP Executor "


class TaskFailed(Exception):
    """A task did not succeed; the message is one sentence."""


@dataclass(frozen=True)
class Container:
    """A container of the compiled pipeline with everything needed to start it here.

    Attributes:
        command: Command and arguments, placeholders not yet replaced.
        environment: Environment variables of the process, complete.
        names: Run-wide placeholders and their values.
    """

    command: list[str]
    environment: Mapping[str, str]
    names: Mapping[str, str]


def executor_input(
    component: Mapping[str, Any],
    parameters: Mapping[str, Any],
    artifacts: Mapping[str, list[Artifact]],
    directory: Path,
) -> dict[str, Any]:
    """Builds the ExecutorInput document; outputs are put under `directory`."""
    outputs = component.get("outputDefinitions", {})
    return {
        "inputs": {
            "parameterValues": {key: plain(value) for key, value in parameters.items()},
            "artifacts": {
                name: {"artifacts": [_artifact_json(artifact) for artifact in listed]}
                for name, listed in artifacts.items()
            },
        },
        "outputs": {
            "parameters": {
                name: {"outputFile": str(directory / "parameters" / name)}
                for name in outputs.get("parameters", {})
            },
            "artifacts": {
                name: {
                    "artifacts": [
                        {
                            "name": name,
                            "type": definition["artifactType"],
                            "uri": str(directory / name),
                            "metadata": {},
                        }
                    ]
                }
                for name, definition in outputs.get("artifacts", {}).items()
            },
            "outputFile": str(directory / "executor_output.json"),
        },
    }


def _artifact_json(artifact: Artifact) -> dict[str, Any]:
    return {
        "name": artifact.name,
        "type": {"schemaTitle": artifact.type, "schemaVersion": "0.0.1"},
        "uri": artifact.uri,
        "metadata": plain(artifact.metadata),
    }


def run_container(
    container: Container,
    document: Mapping[str, Any],
    directory: Path,
    log: Path,
    watchdog: Watchdog,
    on_line: Callable[[str], None],
) -> None:
    """Runs the container's command and waits for it.

    Args:
        container: What to run.
        document: Its ExecutorInput.
        directory: Working directory; parents of outputs are made in it.
        log: File that gets everything the process prints.
        watchdog: Ends the process should this one be killed.
        on_line: Called with each line of standard output that is meant for a person.

    Raises:
        TaskFailed: If the process exits with anything but zero, or cannot be started.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "parameters").mkdir(exist_ok=True)
    command = expand(container.command, document, container.names)
    longest = max(len(part.encode()) for part in command)
    if longest > LONGEST_ARGUMENT:
        raise TaskFailed(
            f"its parameters take {longest} bytes and a process takes at most {LONGEST_ARGUMENT}; "
            "pass large values as an artifact"
        )
    output: list[str] = []
    errors: list[str] = []
    with log.open("w", encoding="utf-8") as file:
        try:
            process = subprocess.Popen(
                command,
                cwd=directory,
                env=dict(container.environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise TaskFailed(f"its command cannot be started: {error}") from error
        watchdog.add(process.pid)
        lock = threading.Lock()
        noise = _ExecutorNoise()

        def follow(stream: Any, tail: list[str], show: bool) -> None:
            for line in stream:
                with lock:
                    file.write(line)
                    file.flush()
                tail.append(line.rstrip())
                del tail[:-200]
                if show and line.strip() and not noise(line):
                    on_line(line.rstrip())

        readers = [
            threading.Thread(target=follow, args=(process.stdout, output, True)),
            threading.Thread(target=follow, args=(process.stderr, errors, False)),
        ]
        for reader in readers:
            reader.start()
        code = process.wait()
        for reader in readers:
            reader.join()
        watchdog.remove(process.pid)
    if code:
        # Which stream was read last says nothing; a traceback's end is on standard error.
        raise TaskFailed(_why(code, [*output, *errors]))


class _ExecutorNoise:
    """Recognises what KFP's executor prints before a component: its log lines and its input."""

    def __init__(self) -> None:
        self._in_document = False

    def __call__(self, line: str) -> bool:
        if line.startswith(_EXECUTOR_NOISE):
            self._in_document = line.rstrip().endswith("executor_input:")
            return True
        if self._in_document:
            self._in_document = line.rstrip() != "}"
            return True
        return False


def _why(code: int, tail: list[str]) -> str:
    """Returns the sentence of the last InputError, else the last line that was printed."""
    marker = f"{InputError.__module__}.{InputError.__qualname__}: "
    for line in reversed(tail):
        if line.startswith(marker):
            return line.removeprefix(marker)
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    last = next((line.strip() for line in reversed(tail) if line.strip()), "it printed nothing")
    return f"its process exited with {code}: {last}"


def collect_outputs(
    component: Mapping[str, Any], document: Mapping[str, Any], task: str
) -> tuple[dict[str, Any], dict[str, list[Artifact]]]:
    """Reads what a container wrote.

    Every declared parameter must be there; every declared artifact is registered even if the
    container wrote no metadata for it.

    Raises:
        TaskFailed: If a declared parameter was not written.
    """
    declared = component.get("outputDefinitions", {})
    path = Path(document["outputs"]["outputFile"])
    written = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    values = {}
    for name, definition in declared.get("parameters", {}).items():
        file = Path(document["outputs"]["parameters"][name]["outputFile"])
        if name in written.get("parameterValues", {}):
            value = written["parameterValues"][name]
        elif file.is_file():
            value = file.read_text(encoding="utf-8")
        else:
            raise TaskFailed(f"it ended without writing its output {name!r}")
        values[name] = coerce(value, definition["parameterType"], name)
    artifacts = {}
    for name in declared.get("artifacts", {}):
        announced = document["outputs"]["artifacts"][name]["artifacts"][0]
        listed = written.get("artifacts", {}).get(name, {}).get("artifacts") or [{}]
        artifacts[name] = [
            Artifact(
                name=name,
                type=announced["type"]["schemaTitle"],
                uri=entry.get("uri") or announced["uri"],
                metadata=plain(entry.get("metadata", {})),
                producer=task,
            )
            for entry in listed
        ]
    return values, artifacts
