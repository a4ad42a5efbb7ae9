# SPDX-License-Identifier: Apache-2.0
"""A canary under load: is any request lost while versions are deployed, shifted and taken away?

    .venv/bin/python benchmarks/canary_under_load.py [--clients N] [--seconds S]

It runs itself in the environment of the deployment family. Clients send single rows to the local
service without a pause, through every phase of a rollout with real model servers: the live version
alone, a candidate that is deployed dark and gets copies, the shift to 10 and to 50 %, promotion,
and the roll back. Of each phase it prints the requests by version, the failures and the latencies
that the clients saw. It ends with 1 when a request failed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SERVICE = "under-load"
ROW = {"distance": 700.0, "stops": 1, "rush": True, "carrier": "A"}
INSIDE = "KFLOOP_BENCHMARK_INSIDE"


def run_inside() -> int:
    """Runs this file again with the deployment family's Python, and packages made for it."""
    from kfloop.pipelines.local import environments

    made = environments.ensure(["deployment", "serving"])
    with tempfile.TemporaryDirectory() as directory:
        variables = environments.task_environment(made["deployment"]) | {
            "KFLOOP_SERVING_PYTHON": str(made["serving"].python),
            "KFLOOP_STATE": f"{directory}/state",
            INSIDE: directory,
        }
        maker = ROOT / "tests" / "deployment" / "make_package.py"
        subprocess.run(
            [str(made["serving"].python), str(maker), f"{directory}/packages"],
            env=variables,
            check=True,
            capture_output=True,
        )
        command = [str(made["deployment"].python), __file__, *sys.argv[1:]]
        return subprocess.run(command, env=variables, check=False).returncode


@dataclass
class Phase:
    """What clients saw in one phase.

    Attributes:
        versions: Answers by model version.
        failures: Failed requests by status; 0 is no answer.
        latencies_ms: Of every request.
        seconds: How long it lasted.
    """

    versions: Counter[str] = field(default_factory=Counter)
    failures: Counter[int] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0


class Load:
    """Clients that send requests without a pause, each over a connection of its own."""

    def __init__(self, clients: int) -> None:
        self.phases: dict[str, Phase] = defaultdict(Phase)
        self.name = ""
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._send) for _ in range(clients)]

    def start(self) -> None:
        """Begins to send."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends when each client has its answer."""
        self._ended.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _send(self) -> None:
        from kfloop.components.deployment.backend import connect
        from kfloop.components.deployment.client import ServiceClient

        with ServiceClient(connect().status(SERVICE).url, SERVICE) as client:
            while not self._ended.is_set():
                name = self.name
                answer = client.predict([ROW])
                with self._lock:
                    phase = self.phases[name]
                    phase.latencies_ms.append(answer.latency_ms)
                    if answer.ok:
                        phase.versions[answer.model_version] += 1
                    else:
                        phase.failures[answer.status] += 1

    @contextmanager
    def phase(self, name: str, seconds: float) -> Iterator[None]:
        """Counts as `name` what is sent within, and for some seconds after it."""
        self.name, started = name, time.monotonic()
        yield
        time.sleep(seconds)
        self.phases[name].seconds = time.monotonic() - started


def roll_out(load: Load, work: Path, seconds: float) -> None:
    """Takes a version through every phase while clients send requests."""
    from kfloop.components.deployment.backend import connect
    from kfloop.components.deployment.publish import publish_model
    from kfloop.components.deployment.roll_back import roll_back_model
    from kfloop.components.deployment.rollout import deploy_model, promote_model
    from kfloop.components.deployment.traffic import with_shadow

    evaluation, record = work / "evaluation.json", work / "record.json"
    evaluation.write_text('{"task": "binary", "rows": 1, "metrics": {}}')
    first, second = (
        publish_model(work / "packages" / name, evaluation, str(work / "repository"))
        for name in ("good", "better")
    )
    deploy_model(first, SERVICE, record)
    with load.phase("live alone", seconds):
        load.start()
    with load.phase("deployed dark, copied", seconds):
        backend = connect()
        manifest = backend.get(SERVICE)
        assert manifest is not None
        backend.apply(with_shadow(manifest, 100))
        deploy_model(second, SERVICE, record, traffic_percent=0)
    with load.phase("10 %", seconds):
        deploy_model(second, SERVICE, record, traffic_percent=10)
    with load.phase("50 %", seconds):
        deploy_model(second, SERVICE, record, traffic_percent=50)
    with load.phase("promoted", seconds):
        promote_model(SERVICE, record, second)
    with load.phase("rolled back", seconds):
        roll_back_model(SERVICE, record, "a benchmark", second)


def report(phases: dict[str, Phase]) -> int:
    """Prints a line for each phase, and returns the number of failed requests."""
    print(
        f"{'phase':<24}{'s':>6}{'requests':>10}{'failed':>8}{'p50 ms':>8}{'p99 ms':>8}  by version"
    )
    for name, phase in phases.items():
        ordered = sorted(phase.latencies_ms)
        quantiles = [ordered[int(q * (len(ordered) - 1))] for q in (0.5, 0.99)]
        split = ", ".join(f"{count:,} by {v}" for v, count in sorted(phase.versions.items()))
        failed = phase.failures.total()
        print(
            f"{name:<24}{phase.seconds:6.1f}{len(ordered):10,}{failed:8}"
            f"{quantiles[0]:8.1f}{quantiles[1]:8.1f}  {split}"
            + (f"; failed {dict(phase.failures)}" if failed else "")
        )
    failed = sum(phase.failures.total() for phase in phases.values())
    print(f"{sum(len(p.latencies_ms) for p in phases.values()):,} requests, {failed} failed")
    return failed


def main() -> int:
    """Loads the service through a rollout and prints what its clients saw."""
    parser = argparse.ArgumentParser(description="Loads a service through a whole rollout.")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each phase, after its step")
    options = parser.parse_args()
    if INSIDE not in os.environ:
        return run_inside()
    from kfloop.serving import local_state

    load = Load(options.clients)
    directory = local_state.service_directory(os.environ["KFLOOP_STATE"], SERVICE)
    try:
        roll_out(load, Path(os.environ[INSIDE]), options.seconds)
    finally:
        load.stop()
        shadow = local_state.read_status(directory).get("shadow")
        local_state.stop(directory)
    failed = report(load.phases)
    print(f"copies: {shadow}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
