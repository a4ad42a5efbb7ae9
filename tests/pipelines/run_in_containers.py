# SPDX-License-Identifier: Apache-2.0
"""Runs the compiled training pipeline twice, container by container, in the images that are here.

    .venv/bin/python tests/pipelines/run_in_containers.py DIRECTORY WEATHER_PARQUET

It is the YAML that is uploaded to a cluster, walked by the local runner; in place of a family's
environment, podman runs the family's image: as a user that is not root, on a read-only root, with
DIRECTORY (which is made) as the one volume. Only the deployment steps have a network, on which
they find a double of the Kubernetes API with KServe's controllers. Behind its gateway the image of
the model server serves what was published, and its payload logger writes the inference log.

The first version is trained briefly and goes live. The second, of the same data, is compared with
it by the gate, gets a share of the requests as a canary, and takes its place. KFLOOP_IMAGE_PREFIX
and KFLOOP_IMAGE_VARIANTS say which images stand for those of the YAML.
"""

import os
import shlex
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve_in_container import answers, check_golden, model_server, payload_logger

from kfloop.components.images import image
from kfloop.pipelines.arguments import pipeline_arguments
from kfloop.pipelines.catalogue import compiled_path
from kfloop.pipelines.local import environments
from kfloop.pipelines.local.executors import ImageEnvironment, Quiet
from kfloop.pipelines.local.pipeline_spec import PipelineSpec, load_pipeline
from kfloop.pipelines.local.record import FAILED, RunRecord, TaskRecord
from kfloop.pipelines.local.runner import PipelineFailed, run_pipeline
from kfloop.pipelines.loop import load_loop

TESTS = Path(__file__).parents[1]
NAMESPACE, CLAIM, LOG_CLAIM = "ml", "models", "inference-log"
# Of the first version: it passes the threshold, and the second one is better.
FEW_EPOCHS = 1
USER = "12345:0"


class Tell(Quiet):
    """Prints a line for each step, and after one that failed what it said last."""

    def __init__(self) -> None:
        self.lines: dict[str, deque[str]] = {}

    def printed(self, task: TaskRecord, line: str) -> None:
        """Keeps a line of a step."""
        self.lines.setdefault(task.task, deque(maxlen=40)).append(line)

    def ended(self, task: TaskRecord) -> None:
        """Prints how a step ended."""
        print(f"{task.status:9} {task.seconds:6.1f} s  {task.task}  {task.image}", flush=True)
        if task.status == FAILED:
            print("\n".join(self.lines.get(task.task, [])), flush=True)


def _tried_once(pipeline: PipelineSpec) -> PipelineSpec:
    """Takes the retries out: what fails in an image here fails in it again."""
    for component in (pipeline.root, *pipeline.components.values()):
        for task in component.get("dag", {}).get("tasks", {}).values():
            task.pop("retryPolicy", None)
    return pipeline


@dataclass
class Servers:
    """The model servers behind the double's gateway: one container for each version."""

    volumes: Path
    service: str
    log: str
    containers: ExitStack
    urls: dict[Path, str] = field(default_factory=dict)

    def start(self, storage_uri: str, annotations: dict[str, str]) -> Any:
        """Starts the server of a package; returns what answers for it in the double."""
        from doubles import model_for

        package = Path(storage_uri.replace("pvc://", f"{self.volumes}/"))
        server = model_server(package, self.service, USER, self.log, NAMESPACE)
        self.urls[package] = url = self.containers.enter_context(server)
        model = model_for(str(package), annotations)
        model.predict = answers(url, self.service, model.output)
        return model


def main(directory: Path, weather: Path) -> int:
    """Runs the pipeline twice and returns the exit status."""
    # Containers run as another user than this process: what is made here, they must write.
    os.umask(0)
    directory.mkdir(parents=True)
    project, volumes = directory / "project", directory / "volumes"
    shutil.copytree(TESTS / "loops" / "weather", project)
    shutil.copy(weather, project / "weather.parquet")
    (volumes / CLAIM).mkdir(parents=True)
    (volumes / LOG_CLAIM).mkdir()
    loop, base = load_loop(project / "loop.yaml")
    state = directory / "state"
    arguments = pipeline_arguments("training", loop, base, state) | {
        "model_repository": f"pvc://{CLAIM}/published",
        "inference_log": str(volumes / LOG_CLAIM / NAMESPACE / loop.service),
        "namespace": NAMESPACE,
        "registry": f"sqlite:///{directory / 'mlflow.db'}",
    }
    api_server, kserve = _doubles()
    with (
        tempfile.TemporaryDirectory() as shims,
        payload_logger(volumes / LOG_CLAIM, USER) as log,
        ExitStack() as containers,
        api_server(namespaces=[NAMESPACE]) as api,
    ):
        servers = Servers(volumes, loop.service, log, containers)
        kubeconfig = api.kubeconfig(directory / "kubeconfig", namespace=NAMESPACE)
        cluster = {"KUBECONFIG": str(kubeconfig), "KFLOOP_PVC_ROOT": str(volumes)}
        pipeline = _tried_once(load_pipeline(compiled_path("training")))
        settings = _settings(pipeline)
        stand_ins = {
            name: _stand_in(name, Path(shims), directory, cluster, settings)
            for name in pipeline.images()
        }

        def run(**changed: Any) -> RunRecord:
            given = arguments | changed
            return run_pipeline(pipeline, given, state, stand_ins.__getitem__, Tell())

        with kserve(api, factory=servers.start) as controllers, controllers.running(0.1):
            try:
                print("── the first version", flush=True)
                _tell(run(epochs=FEW_EPOCHS))
                print("── the second version", flush=True)
                decided = _tell(run())
            except PipelineFailed as error:
                print(f"failed: {error}")
                return 1
            print(f"requests answered by version: {dict(controllers.answered)}")
            if not decided.get("comparison") == decided.get("rollout") == "pass":
                print("failed: the second version was not compared, or its canary did not pass")
                return 1
        for package, url in servers.urls.items():
            print(f"model server: {check_golden(package, loop.service, url)}")
    return 0


def _tell(record: RunRecord) -> dict[str, str]:
    """Prints what the gates of a run decided, and returns it by gate."""
    for decision in record.decisions():
        print(decision["summary"], flush=True)
    return {decision["gate"]: decision["decision"] for decision in record.decisions()}


def _settings(pipeline: PipelineSpec) -> list[str]:
    """Returns the names of the variables that the YAML sets in containers."""
    containers = [executor.get("container", {}) for executor in pipeline.executors.values()]
    return sorted({entry["name"] for each in containers for entry in each.get("env", [])})


def _stand_in(
    name: str, shims: Path, volume: Path, cluster: dict[str, str], settings: list[str]
) -> ImageEnvironment:
    """Makes a directory whose `sh`, with which every step starts, is one in the image."""
    family = environments.family_of_image(name)
    place = shims / family
    deploys = family == "deployment"
    command = [
        *("podman", "run", "--rm", "--pull=never", "--read-only", "--tmpfs=/tmp:exec"),
        *(f"--user={USER}", "--cap-drop=all", "--security-opt=no-new-privileges"),
        f"--network={'host' if deploys else 'none'}",
        f"--volume={volume}:{volume}",
        *(f"--env={key}={value}" for key, value in cluster.items()),
        # Those that the runner has set for a step.
        *(f"--env={key}" for key in settings),
    ]
    place.mkdir()
    shim = place / "sh"
    shim.write_text(
        f'#!/bin/sh\nexec {shlex.join(command)} --workdir="$PWD" {image(family)} sh "$@"\n'
    )
    shim.chmod(0o755)
    variables = {**os.environ, "PATH": f"{place}{os.pathsep}{os.environ['PATH']}"}
    return ImageEnvironment(variables, name, "")


def _doubles() -> tuple[Callable[..., Any], Callable[..., Any]]:
    # To answer from model packages they need pyarrow, which is behind the driver's own packages.
    deployment = environments.ensure(["deployment"])["deployment"]
    (packages,) = deployment.path.glob("lib/python*/site-packages")
    sys.path += [str(TESTS), str(packages)]
    from doubles import ApiServer, KServe

    return ApiServer, KServe


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute(), Path(sys.argv[2])))
