# SPDX-License-Identifier: Apache-2.0
"""Runs the compiled training pipeline container by container, in the images that are here.

    .venv/bin/python tests/pipelines/run_in_containers.py DIRECTORY WEATHER_PARQUET

It is the YAML that is uploaded to a cluster, walked by the local runner; in place of a family's
environment, podman runs the family's image: as a user that is not root, on a read-only root, with
DIRECTORY (which is made) as the one volume. Only the deployment steps have a network, on which
they find a double of the Kubernetes API with KServe's controllers. At the end the image of the
model server serves what was published. KFLOOP_IMAGE_PREFIX and KFLOOP_IMAGE_VARIANTS say which
images stand for those of the YAML.
"""

import os
import shlex
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serve_in_container import check_served

from kfloop.components.images import image
from kfloop.pipelines.arguments import pipeline_arguments
from kfloop.pipelines.catalogue import compiled_path
from kfloop.pipelines.local import environments
from kfloop.pipelines.local.pipeline_spec import PipelineSpec, load_pipeline
from kfloop.pipelines.local.record import FAILED, TaskRecord
from kfloop.pipelines.local.runner import ImageEnvironment, PipelineFailed, Quiet, run_pipeline
from kfloop.pipelines.loop import load_loop

TESTS = Path(__file__).parents[1]
NAMESPACE, CLAIM = "ml", "models"
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


def main(directory: Path, weather: Path) -> int:
    """Runs the pipeline and returns the exit status."""
    # Containers run as another user than this process: what is made here, they must write.
    os.umask(0)
    directory.mkdir(parents=True)
    project, volumes = directory / "project", directory / "volumes"
    shutil.copytree(TESTS / "loops" / "weather", project)
    shutil.copy(weather, project / "weather.parquet")
    (volumes / CLAIM).mkdir(parents=True)
    loop, base = load_loop(project / "loop.yaml")
    state = directory / "state"
    arguments = pipeline_arguments("training", loop, base, state) | {
        "model_repository": f"pvc://{CLAIM}/published",
        "inference_log": "",
        "namespace": NAMESPACE,
        "registry": f"sqlite:///{directory / 'mlflow.db'}",
    }
    api_server, kserve = _doubles()

    def packaged(uri: str, annotations: dict[str, str]) -> Any:
        return _model(uri.replace("pvc://", f"{volumes}/"), annotations)

    with (
        api_server(namespaces=[NAMESPACE]) as api,
        kserve(api, factory=packaged) as controllers,
        controllers.running(0.1),
        tempfile.TemporaryDirectory() as shims,
    ):
        kubeconfig = api.kubeconfig(directory / "kubeconfig", namespace=NAMESPACE)
        cluster = {"KUBECONFIG": str(kubeconfig), "KFLOOP_PVC_ROOT": str(volumes)}
        pipeline = _tried_once(load_pipeline(compiled_path("training")))
        settings = _settings(pipeline)
        stand_ins = {
            name: _stand_in(name, Path(shims), directory, cluster, settings)
            for name in pipeline.images()
        }
        try:
            record = run_pipeline(
                pipeline,
                arguments,
                state,
                stand_ins.__getitem__,
                Tell(),
                caching=False,
            )
        except PipelineFailed as error:
            print(f"failed: {error}")
            return 1
        for decision in record.decisions():
            print(decision["summary"])
        print(f"requests answered by version: {dict(controllers.answered)}")
        package = volumes / CLAIM / "published" / loop.name / "1"
        print(f"model server: {check_served(package, loop.name, USER)}")
    return 0


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
        *(f"--env={key}={value}" for key, value in cluster.items() if deploys),
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


def _model(path: str, annotations: dict[str, str]) -> Any:
    from doubles import model_for

    return model_for(path, annotations)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute(), Path(sys.argv[2])))
