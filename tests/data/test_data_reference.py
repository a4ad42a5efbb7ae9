# SPDX-License-Identifier: Apache-2.0
"""The training sample of a published model, as a dataset."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kfloop.components.contracts.dataset import read_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import (
    REFERENCE,
    Feature,
    ModelPackage,
    write_model_json,
)
from kfloop.components.data.reference import load_reference

SAMPLE = pa.table({"distance": [100.0, 719.0], "prediction": [0.25, 0.5]})


@pytest.fixture
def package(tmp_path: Path) -> Path:
    directory = tmp_path / "models" / "published" / "flights" / "3"
    (directory / REFERENCE).parent.mkdir(parents=True)
    described = ModelPackage("flights", "binary", "late", [Feature("distance", "float")])
    write_model_json(described, directory)
    pq.write_table(SAMPLE, directory / REFERENCE)
    return directory


def test_it_is_read_from_a_path_and_from_a_mounted_volume(tmp_path, package, monkeypatch):
    monkeypatch.setenv("KFLOOP_PVC_ROOT", str(tmp_path))
    for number, uri in enumerate((str(package), "pvc://models/published/flights/3")):
        made = tmp_path / f"reference-{number}"
        metadata = load_reference(uri, str(made))
        assert metadata["rows"] == 2
        assert read_dataset(made).to_pylist() == SAMPLE.to_pylist()


def test_a_volume_that_is_not_mounted_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv("KFLOOP_PVC_ROOT", raising=False)
    with pytest.raises(InputError, match="on a volume that this step does not have"):
        load_reference("pvc://models/published/flights/3", str(tmp_path / "reference"))


def test_a_package_without_one_is_told(tmp_path, package):
    (package / REFERENCE).unlink()
    with pytest.raises(InputError, match="carries no reference/"):
        load_reference(str(package), str(tmp_path / "reference"))
