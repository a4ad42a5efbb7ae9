# SPDX-License-Identifier: Apache-2.0
"""The ONNX copy of a package's graph: the SavedModel's answers, without TensorFlow."""

import json
import math
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from serving_helpers import CODE
from test_serving_server import FULL, INFER, KEYS, PREDICT, Running, start, tensors

from feature_repo import SQLITE, with_features, write_repo
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_io import model_inputs
from kfloop.components.contracts.model_package import (
    GOLDEN,
    ONNX,
    ONNX_ABOUT,
    REFERENCE,
    read_model_json,
)
from kfloop.components.contracts.runtime import load_graph
from kfloop.pipelines.local import environments

TASKS = ("binary", "multiclass", "regression")
# Missing, never seen, and as large as the server lets through.
AWKWARD_NUMBERS = [math.nan, -1e9, 3e38, -3e38, 0.0]
AWKWARD_TEXTS = ["", "\N{SNOWMAN} never seen", "x" * 5000, " AA", "aa"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A package of each task, as training writes it."""
    root = tmp_path_factory.mktemp("trained")
    training = environments.ensure(["training"])["training"]
    script = Path(__file__).with_name("train_onnx_packages.py")
    subprocess.run(
        [str(training.python), str(script), str(root)],
        env=environments.task_environment(training),
        check=True,
    )
    return {task: root / task for task in TASKS}


def load(package: Path, runtime: str = "") -> Any:
    return load_graph(str(package), read_model_json(package), runtime)


def arrays(package: Path, graph: Any) -> tuple[Any, Any]:
    """Reference rows, and awkward ones, as the server hands them over."""
    table = pq.read_table(package / REFERENCE)
    columns = model_inputs(table, read_model_json(package).features)
    numbers = [[*columns[name], *AWKWARD_NUMBERS] for name in graph.numbers]
    texts = [[*columns[name], *AWKWARD_TEXTS] for name in graph.texts]
    return np.array(numbers, np.float32), np.array(texts, object)


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_those_of_the_saved_model(trained: Any, task: str) -> None:
    one, other = load(trained[task]), load(trained[task], "tensorflow")
    assert (one.runtime, other.runtime) == ("ONNX Runtime", "TensorFlow")
    numbers, texts = arrays(trained[task], one)
    found, expected = one(numbers, texts), other(numbers, texts)
    assert found.dtype == expected.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for row in range(numbers.shape[1] - 10, numbers.shape[1]):
        alone = one(numbers[:, row : row + 1], texts[:, row : row + 1])
        np.testing.assert_allclose(alone, found[row : row + 1], rtol=1e-5, atol=1e-6)


def test_threads_do_not_disturb_each_other(trained: Any) -> None:
    graph = load(trained["multiclass"])
    numbers, texts = arrays(trained["multiclass"], graph)
    expected = graph(numbers, texts)
    rows = [(start, start + 1 + start % 9) for start in range(0, 90, 3)] * 5

    def ask(part: tuple[int, int]) -> bool:
        chosen = slice(*part)
        answer = graph(numbers[:, chosen], texts[:, chosen])
        return np.allclose(answer, expected[chosen], rtol=1e-5, atol=1e-6)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, rows))


def test_a_package_without_onnx_runs_on_tensorflow(packages: Any) -> None:
    assert load(packages["v1"]).runtime == "TensorFlow"
    with pytest.raises(InputError, match=r"holds no onnx/model\.onnx"):
        load(packages["v1"], "onnx")
    with pytest.raises(InputError, match="'torch'; it must be 'onnx', 'tensorflow' or empty"):
        load(packages["v1"], "torch")


SCORE = """
import sys
from kfloop.components.contracts.model_package import GOLDEN, read_model_json
from kfloop.components.evaluation.score import load_scorer
import numpy as np
import pyarrow.parquet as pq

for directory in sys.argv[1:]:
    package = read_model_json(directory)
    golden = pq.read_table(f"{directory}/{GOLDEN}")
    scores = load_scorer(directory, package)(golden)
    off = np.abs(scores - golden["prediction"].to_numpy()).max()
    assert off < 1e-5, off
    print("tensorflow" in sys.modules)
"""


def test_evaluation_scores_with_the_same_graph(trained: Any, tmp_path: Path) -> None:
    without = shutil.copytree(trained["binary"], tmp_path / "without")
    shutil.rmtree(without / Path(ONNX).parent)
    evaluation = environments.ensure(["evaluation"])["evaluation"]
    done = subprocess.run(
        [str(evaluation.python), "-c", SCORE, str(trained["binary"]), str(without)],
        env=environments.task_environment(evaluation),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "True"]


def about_with(**changes: Any) -> Any:
    def change(package: Path) -> None:
        path = package / ONNX_ABOUT
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda package: (package / ONNX).write_bytes(b"nonsense"), "cannot be loaded as ONNX"),
        (lambda package: (package / ONNX).write_bytes(b""), "model.onnx"),
        (lambda package: (package / ONNX_ABOUT).unlink(), "cannot be read"),
        (lambda package: (package / ONNX_ABOUT).write_text("[]"), "has name None"),
        (about_with(classes=["late", "early", "on time"]), r"has classes \['late', 'early'"),
        (about_with(inputs={"carrier": "string"}), "unlike the model.json beside it"),
        (
            lambda package: shutil.copyfile(package.parent / "regression" / ONNX, package / ONNX),
            "returns .'value'.*unlike the model.json",
        ),
    ],
)
def test_onnx_that_does_not_fit_is_refused(
    trained: Any, tmp_path: Path, change: Any, told: str
) -> None:
    package = tmp_path / "package"
    shutil.copytree(trained["multiclass"], package)
    (tmp_path / "regression").symlink_to(trained["regression"])
    change(package)
    with pytest.raises(InputError, match=told):
        load(package)
    assert load(package, "tensorflow").runtime == "TensorFlow"


@pytest.fixture(scope="module")
def servers(trained: Any, tmp_path_factory: Any) -> Iterator[dict[str, Running]]:
    """In processes that cannot import TensorFlow."""
    directory = tmp_path_factory.mktemp("without")
    (directory / "tensorflow.py").write_text("raise RuntimeError('TensorFlow was imported')\n")
    package = with_features(trained["binary"], directory / "package")
    write_repo(directory / "repo", SQLITE)
    path = f"{directory}:{CODE}"
    features = ("--feature_repo", str(directory / "repo"))
    forced = ("--runtime", "tensorflow")
    found = {
        "onnx": start("onnx", directory, package, *features, path=path),
        "tensorflow": start("tensorflow", directory, package, *forced, path=path),
    }
    try:
        yield found
    finally:
        for running in found.values():
            running.process.kill()
            running.process.wait()


def test_the_server_answers_without_importing_tensorflow(trained: Any, servers: Any) -> None:
    running = servers["onnx"]
    line = running.process.stdout.readline()
    assert "Serving toy version 1 by ONNX Runtime on http://" in line, running.log.read_text()
    golden = pq.read_table(trained["binary"] / GOLDEN)
    names = read_model_json(trained["binary"]).feature_names
    with running.client() as client:
        answer = client.post(PREDICT, json={"instances": golden.select(names).to_pylist()})
        scores = [row["probability"] for row in answer.json()["predictions"]]
        assert scores == pytest.approx(golden["prediction"].to_pylist(), abs=1e-5)
        sent = client.post(PREDICT, json={"instances": [FULL]}).json()
        assert client.post(PREDICT, json={"instances": [KEYS]}).json() == sent
        two = client.post(INFER, json={"inputs": tensors([FULL])}).json()
        assert two["outputs"][0]["data"] == [sent["predictions"][0]["probability"]]
        unknown = KEYS | {"plane": "N404", "route": 404, "carrier": None}
        answer = client.post(PREDICT, json={"instances": [unknown]})
        assert 0 < answer.json()["predictions"][0]["probability"] < 1


def test_tensorflow_can_be_asked_for(servers: Any) -> None:
    assert servers["tensorflow"].process.wait(60) != 0
    assert "RuntimeError: TensorFlow was imported" in servers["tensorflow"].log.read_text()
