# SPDX-License-Identifier: Apache-2.0
"""The local inference service seen from outside: its directory, and how to start and stop it.

Standard library only: the deployment components and the command line use it from their own
environments. A service lives in one directory::

    <state>/services/<name>/
      manifest.json          the InferenceService; `apply_manifest` writes it, the service obeys it
      status.json            what the service says of itself; `read_status` reads it
      port                   the port it keeps across restarts
      lock                   held by the running service, holds its process id
      service.log, predictor-<name>.log
"""

import fcntl
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import read_json, write_json

LOG_ANNOTATION = "kfloop.org/inference-log"
START_SECONDS = 60.0
POLL_SECONDS = 0.1

# Services started by this process, kept so that their exit can be reaped.
_started: list[subprocess.Popen[bytes]] = []


class ConflictError(RuntimeError):
    """The manifest changed since it was read; read it again and repeat the change."""


def services_directory(state: str | Path) -> Path:
    """Returns where the services of a state directory (`KFLOOP_STATE`) live."""
    return Path(state) / "services"


def service_directory(state: str | Path, name: str) -> Path:
    """Returns the directory of one service.

    Raises:
        InputError: If the name is not usable as an InferenceService name.
    """
    if not name or len(name) > 63 or not name.replace("-", "").isalnum() or name != name.lower():
        raise InputError(
            f"{name!r} cannot name a service; use at most 63 lower-case letters, digits and dashes."
        )
    return services_directory(state) / name


def predictor_specs(manifest: dict[str, Any]) -> list[tuple[str, str, int]]:
    """Returns `(name, storageUri, traffic percent)` of every predictor, the stable one first.

    Raises:
        InputError: If the manifest breaks a rule of KServe's webhook for Standard mode: names
            are unique, percentages are whole numbers that sum to at most 100, every predictor
            has a model.
    """
    try:
        spec = manifest["spec"]
        canaries = spec.get("canary") or []
        found = [
            (
                canary["predictor"]["name"],
                canary["predictor"]["model"]["storageUri"],
                canary["trafficPercent"],
            )
            for canary in canaries
        ]
        stable = spec["predictor"]
        name, uri = stable.get("name") or "predictor", stable["model"]["storageUri"]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"The InferenceService manifest is incomplete or damaged ({error!r}); it needs "
            "spec.predictor.model.storageUri, and for each spec.canary a trafficPercent and a "
            "predictor with name and model.storageUri."
        ) from error
    percents = [percent for _, _, percent in found]
    if not all(type(percent) is int and 0 <= percent <= 100 for percent in percents):
        raise InputError(f"trafficPercent is {percents}; each is a whole number from 0 to 100.")
    if sum(percents) > 100:
        raise InputError(f"The canaries ask for {sum(percents)} % of the traffic; at most 100.")
    specs = [(name, uri, 100 - sum(percents)), *found]
    names = [entry[0] for entry in specs]
    if len(set(names)) < len(names):
        raise InputError(f"Predictor names are {names}; each must be different.")
    return specs


def read_manifest(directory: str | Path) -> dict[str, Any] | None:
    """Returns the InferenceService as it was applied last, or None when there is none."""
    path = Path(directory) / "manifest.json"
    if not path.exists():
        return None
    manifest: dict[str, Any] = read_json(path)
    return manifest


def apply_manifest(
    directory: str | Path, manifest: dict[str, Any], expected_resource_version: str = ""
) -> dict[str, Any]:
    """Writes the InferenceService and returns it as stored.

    As on a cluster, `metadata.resourceVersion` grows with every change, `metadata.generation`
    only when the spec changed; what the caller says of them is ignored.

    Args:
        directory: The service's directory; made when it does not exist.
        manifest: The whole InferenceService.
        expected_resource_version: When given, the version the change was made from; empty writes
            whatever is there now.

    Raises:
        InputError: If the manifest is not a valid one.
        ConflictError: If the stored version is not the expected one.
    """
    predictor_specs(manifest)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with _exclusive(directory / "manifest.lock"):
        old = read_manifest(directory)
        found = old["metadata"]["resourceVersion"] if old else ""
        if expected_resource_version and expected_resource_version != found:
            raise ConflictError(
                f"The service {directory.name} is at version {found or 'none'}, the change was "
                f"made from {expected_resource_version}; read it again and repeat the change."
            )
        new = json.loads(json.dumps(manifest))
        if old is None:
            created = datetime.now(UTC).isoformat(timespec="seconds")
            kept = {"generation": 1, "resourceVersion": "1", "creationTimestamp": created}
        else:
            kept = {
                key: old["metadata"][key]
                for key in ("generation", "resourceVersion", "creationTimestamp")
            }
        new["metadata"] = new.get("metadata", {}) | kept
        if old is not None and new != old:
            new["metadata"]["resourceVersion"] = str(int(found) + 1)
            new["metadata"]["generation"] += new["spec"] != old["spec"]
        if new != old:
            write_json(directory / "manifest.json", new)
        return dict(new)


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def running_pid(directory: str | Path) -> int | None:
    """Returns the process id of the running service, or None when it does not run.

    The answer comes from the lock, which the system releases however the process ends.
    """
    try:
        with (Path(directory) / "lock").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = file.read().strip()
                return int(text) if text else None
    except FileNotFoundError:
        pass
    return None


def read_status(directory: str | Path) -> dict[str, Any]:
    """Returns what the service last said of itself, and `running`: whether it runs now.

    A service that does not run has no predictors and is not ready, whatever its file says.
    """
    path = Path(directory) / "status.json"
    status: dict[str, Any] = read_json(path) if path.exists() else {}
    pid = running_pid(directory)
    status["running"] = pid is not None and status.get("pid") == pid
    if not status["running"]:
        message = f"The service {Path(directory).name} does not run."
        status["predictors"] = {}
        status["conditions"] = [
            {"type": "Ready", "status": "False", "reason": "NotRunning", "message": message}
        ]
    return status


def list_services(state: str | Path) -> list[dict[str, Any]]:
    """Returns the status of every service below a state directory, with `name` and `directory`."""
    return [
        {"name": path.parent.name, "directory": str(path.parent)} | read_status(path.parent)
        for path in sorted(services_directory(state).glob("*/manifest.json"))
    ]


def start(
    directory: str | Path,
    serving_python: str | Path,
    code_path: str | Path,
    timeout: float = START_SECONDS,
) -> dict[str, Any]:
    """Starts the service unless it runs, and returns its status.

    It outlives its parent. It answers at once, with 503 until a predictor is ready: see
    `wait_ready`. Two callers at the same time end up with one service.

    Args:
        directory: The service's directory; a manifest must have been applied.
        serving_python: Python of the serving environment.
        code_path: Directory that holds the `kfloop` package.
        timeout: Seconds to wait until it listens.

    Raises:
        InputError: If there is no manifest, or the service does not come up.
    """
    directory = Path(directory).resolve()
    if not (directory / "manifest.json").exists():
        raise InputError(f"{directory} has no manifest.json; apply an InferenceService first.")
    process = None
    if running_pid(directory) is None:
        process = _spawn(directory, serving_python, code_path)
    deadline = time.monotonic() + timeout
    while not (status := read_status(directory))["running"]:
        if process is not None and process.poll():
            raise InputError(_ended(directory, f"ended with code {process.returncode}"))
        if time.monotonic() > deadline:
            raise InputError(_ended(directory, f"did not answer within {timeout:.0f} s"))
        time.sleep(POLL_SECONDS / 2)
    return status


def _spawn(
    directory: Path, serving_python: str | Path, code_path: str | Path
) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(Path(code_path).resolve())}
    with (directory / "service.log").open("ab") as log:
        process = subprocess.Popen(
            [
                str(serving_python),
                "-m",
                "kfloop.serving.local_service",
                "--directory",
                str(directory),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=directory,
            env=environment,
            start_new_session=True,
        )
    _started.append(process)
    return process


def _ended(directory: Path, what: str) -> str:
    return (
        f"The local inference service {directory.name} {what}: "
        f"{last_error(directory / 'service.log')} (log: {directory / 'service.log'})."
    )


def last_error(log: str | Path) -> str:
    """Returns the sentence of the last InputError in a log, else its last line."""
    path = Path(log)
    text = path.read_text(encoding="utf-8", errors="replace")[-20_000:] if path.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in reversed(lines):
        if "InputError: " in line:
            return line.split("InputError: ", 1)[1]
    return lines[-1] if lines else "it wrote nothing"


def stop(directory: str | Path, timeout: float = 30.0) -> bool:
    """Stops the service and its predictors; requests in flight are answered first.

    Args:
        directory: The service's directory.
        timeout: Seconds it may take to finish; then it is killed.

    Returns:
        Whether it was running.
    """
    pid = running_pid(directory)
    if pid is None:
        return False
    _signal(os.kill, pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout
    while running_pid(directory) == pid and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS / 2)
    if running_pid(directory) == pid:
        # The service leads its own process group: this reaches its predictors too.
        _signal(os.killpg, pid, signal.SIGKILL)
        while running_pid(directory) == pid:
            time.sleep(POLL_SECONDS / 2)
    for process in _started:
        process.poll()
    return True


def _signal(send: Any, pid: int, number: int) -> None:
    try:
        send(pid, number)
    except ProcessLookupError:
        return


def wait_ready(
    directory: str | Path, generation: int | None = None, timeout: float = 180.0
) -> dict[str, Any]:
    """Waits until every predictor of a generation serves, and returns the status.

    Args:
        directory: The service's directory.
        generation: `metadata.generation` to wait for; None takes the stored manifest's.
        timeout: Seconds to wait.

    Raises:
        InputError: As soon as a predictor cannot load (with its reason) or the service ends, or
            at the timeout.
    """
    directory = Path(directory)
    if generation is None:
        manifest = read_manifest(directory)
        generation = manifest["metadata"]["generation"] if manifest else 1
    deadline = time.monotonic() + timeout
    while True:
        status = read_status(directory)
        if not status["running"]:
            raise InputError(_ended(directory, "does not run"))
        if status.get("observedGeneration", 0) >= generation:
            return status
        if status.get("generation", 0) >= generation:
            for name, predictor in status["predictors"].items():
                if predictor["failed"]:
                    raise InputError(
                        f"Predictor {name} of the service {directory.name} cannot serve "
                        f"{predictor['storageUri']}: {predictor['error']}"
                    )
        if time.monotonic() > deadline:
            waiting = [
                f"{name} is {predictor['state']}"
                for name, predictor in status["predictors"].items()
                if not predictor["ready"]
            ]
            raise InputError(
                f"The service {directory.name} did not serve generation {generation} within "
                f"{timeout:.0f} s ({', '.join(waiting) or 'no predictor yet'}); "
                f"see the logs in {directory}."
            )
        time.sleep(POLL_SECONDS)


def wait_logged(directory: str | Path, timeout: float = 30.0) -> dict[str, Any]:
    """Waits until every answered request is in the inference log.

    Returns:
        The service's live status; `log` has the rows `written` and `dropped`.

    Raises:
        InputError: If the service does not answer or rows are still pending at the timeout.
    """
    url = read_status(directory).get("url", "")
    deadline = time.monotonic() + timeout
    while True:
        try:
            with urllib.request.urlopen(f"{url}/", timeout=10) as answer:
                status: dict[str, Any] = json.load(answer)
        except (urllib.error.URLError, ValueError) as error:
            raise InputError(f"The service {Path(directory).name} does not answer.") from error
        if not status["log"]["pending"]:
            return status
        if time.monotonic() > deadline:
            raise InputError(
                f"{status['log']['pending']} requests are not in the inference log after "
                f"{timeout:.0f} s: {status['log']['error'] or 'the disk is slow'}."
            )
        time.sleep(POLL_SECONDS)
