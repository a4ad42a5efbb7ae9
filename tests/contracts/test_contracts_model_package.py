# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import (
    CONTRACT_VERSION,
    Feature,
    ModelPackage,
    read_model_json,
    write_model_json,
)

PACKAGE = ModelPackage("m", "binary", "late", [Feature("distance", "float")], version="3")


def change(directory, **fields):
    path = directory / "model.json"
    document = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in document.items() if value != ...}))


def test_reads_back_what_was_written(tmp_path):
    write_model_json(PACKAGE, tmp_path)
    assert read_model_json(tmp_path) == PACKAGE


def test_a_newer_contract_is_a_clear_error(tmp_path):
    write_model_json(PACKAGE, tmp_path)
    change(tmp_path, contract_version=CONTRACT_VERSION + 1)
    with pytest.raises(InputError, match="use the kfloop release that wrote it"):
        read_model_json(tmp_path)


def test_what_a_later_release_adds_is_left_aside(tmp_path):
    write_model_json(PACKAGE, tmp_path)
    change(tmp_path, carbon_footprint=12)
    assert read_model_json(tmp_path) == PACKAGE


def test_a_directory_that_is_no_package_is_named(tmp_path):
    with pytest.raises(InputError, match="is not a model package"):
        read_model_json(tmp_path)


def test_an_incomplete_package_is_named(tmp_path):
    write_model_json(PACKAGE, tmp_path)
    path = tmp_path / "model.json"
    document = json.loads(path.read_text())
    del document["features"]
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="incomplete or damaged"):
        read_model_json(tmp_path)
