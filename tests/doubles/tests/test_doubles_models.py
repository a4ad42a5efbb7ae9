# SPDX-License-Identifier: Apache-2.0
"""What answers for a storageUri: a package's own rows, or anything a test wants."""

import json
from pathlib import Path
from typing import Any

import pytest

from doubles import ApiServer, KServe, Model, model_for
from doubles.data_plane import serve
from doubles.tests.conftest import isvc

VERSION = "kfloop.org/model-version"


def package(path: Path, predictions: list[Any]) -> Path:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    (path / "reference").mkdir(parents=True)
    features = [{"name": "distance", "type": "float"}, {"name": "carrier", "type": "string"}]
    (path / "model.json").write_text(json.dumps({"version": "3", "features": features}))
    rows = {"distance": [1.5, None, 7.0], "carrier": ["AA", "", "BB"], "prediction": predictions}
    pq.write_table(pa.table(rows), path / "reference/reference.parquet")
    pq.write_table(pa.table(rows).slice(0, 1), path / "reference/golden.parquet")
    return path


def test_a_package_answers_its_own_rows(tmp_path: Path) -> None:
    model = model_for(str(package(tmp_path, [0.1, 0.2, 0.6])), {})
    assert model.version == "3"
    rows = [
        {"carrier": "BB", "distance": 7},
        {"distance": None, "carrier": None},
        {"distance": 1.5, "carrier": "AA", "not a feature": 9},
        {"distance": 99.0, "carrier": "AA"},
    ]
    assert model.answer(rows) == pytest.approx([0.6, 0.2, 0.1, 0.3])
    assert model_for(f"file://{tmp_path}", {VERSION: "9"}).version == "9"


def test_a_package_of_labels_answers_the_most_frequent_one_for_other_rows(tmp_path: Path) -> None:
    model = model_for(str(package(tmp_path, ["no", "yes", "yes"])), {})
    assert model.answer([{"distance": 1.5, "carrier": "AA"}, {}]) == ["no", "yes"]
    model.wrong = True
    assert model.answer([{"distance": 1.5, "carrier": "AA"}]) == ["not no"]


def test_a_request_that_cannot_be_read_is_a_400() -> None:
    for body in (b"", b"[]", b'{"instances": ', b'{"rows": []}'):
        assert serve(Model("1"), "POST", "/v1/models/m:predict", body)[0] == 400
    assert serve(Model("1"), "POST", "/v1/models/m:explain", b"{}")[0] == 404


def test_a_factory_makes_the_models(api: ApiServer) -> None:
    made: list[str] = []

    def factory(uri: str, annotations: dict[str, str]) -> Model:
        made.append(uri)
        return Model(annotations[VERSION])

    with KServe(api, factory=factory) as kserve:
        api.create(isvc(annotations={VERSION: "12"}))
        kserve.settle()
        assert made == ["s3://b/v1"]
        assert kserve.models["s3://b/v1"].version == "12"
