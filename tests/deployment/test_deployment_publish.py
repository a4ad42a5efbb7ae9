# SPDX-License-Identifier: Apache-2.0
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import (
    GOLDEN,
    REFERENCE,
    REQUEST,
    Feature,
    ModelPackage,
    read_model_json,
    write_model_json,
)
from kfloop.components.deployment.publish import SCRATCH_PREFIX, publish_model


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package whose graph is only a file; publishing does not look into it."""
    directory = tmp_path / "package"
    for file in ("1/saved_model.pb", REFERENCE):
        (directory / file).parent.mkdir(parents=True, exist_ok=True)
        (directory / file).write_bytes(b"x" * 1000)
    pq.write_table(pa.table({"a": [0.5, None], "prediction": [0.1, 0.2]}), directory / GOLDEN)
    write_model_json(ModelPackage("m", "binary", "y", [Feature("a", "float")]), directory)
    return directory


def test_versions_count_up_and_hold_the_package_its_version_and_the_evaluation(
    package: Path, evaluation: Path, tmp_path: Path
) -> None:
    uris = [publish_model(package, evaluation, str(tmp_path / "repo")) for _ in range(3)]
    assert uris == [str(tmp_path / "repo" / "m" / str(version)) for version in (1, 2, 3)]
    assert [read_model_json(uri).version for uri in uris] == ["1", "2", "3"]
    assert (Path(uris[2]) / "1/saved_model.pb").read_bytes() == b"x" * 1000
    assert json.loads((Path(uris[2]) / REQUEST).read_text()) == {"instances": [{"a": 0.5}]}
    assert json.loads((Path(uris[2]) / "evaluation.json").read_text())["rows"] == 100
    assert read_model_json(package).version == ""


def test_a_file_uri_is_a_directory(package: Path, evaluation: Path, tmp_path: Path) -> None:
    uri = publish_model(package, evaluation, f"file://{tmp_path}/with%20space")
    assert uri == str(tmp_path / "with space" / "m" / "1")


def test_publishers_at_once_get_a_version_each(
    package: Path, evaluation: Path, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(8) as pool:
        tasks = [
            pool.submit(publish_model, package, evaluation, str(tmp_path / "repo"))
            for _ in range(16)
        ]
        uris = [task.result() for task in tasks]
    versions = sorted(int(Path(uri).name) for uri in uris)
    assert versions == list(range(1, 17))
    assert all(read_model_json(uri).version == Path(uri).name for uri in uris)


def test_a_killed_publisher_leaves_no_version(
    package: Path, evaluation: Path, tmp_path: Path
) -> None:
    # So many files that the copy takes long enough to be killed in the middle.
    for number in range(3000):
        (package / "1" / f"file-{number}").write_bytes(b"x")
    repository = tmp_path / "repo"
    code = (
        "import sys; from kfloop.components.deployment.publish import publish_model; "
        "publish_model(*sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, str(package), str(evaluation), str(repository)]
    process = subprocess.Popen(command)
    while process.poll() is None and not list(repository.glob(f"m/{SCRATCH_PREFIX}*/1/file-*")):
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not list(repository.glob("m/[0-9]*"))
    assert publish_model(package, evaluation, str(repository)) == str(repository / "m" / "1")


@pytest.mark.parametrize("missing", ["1/saved_model.pb", REFERENCE, GOLDEN])
def test_an_incomplete_package_is_refused(
    package: Path, evaluation: Path, tmp_path: Path, missing: str
) -> None:
    (package / missing).unlink()
    with pytest.raises(InputError, match=f"{missing} is missing"):
        publish_model(package, evaluation, str(tmp_path / "repo"))


@pytest.mark.parametrize("repository", ["", "ftp://host/models", "hf://models"])
def test_a_repository_that_is_no_directory_is_refused(
    package: Path, evaluation: Path, repository: str
) -> None:
    with pytest.raises(InputError, match="model_repository is"):
        publish_model(package, evaluation, repository)
