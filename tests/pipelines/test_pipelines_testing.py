# SPDX-License-Identifier: Apache-2.0
"""The testing kit: what users of `kfloop.testing` lean on."""

import json
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from urllib.request import urlopen

import pytest
from kfp import dsl

from kfloop.components import collect_inference_log, require_pass, transform_data
from kfloop.components.contracts.decision import Reason
from kfloop.components.contracts.errors import InputError
from kfloop.testing import (
    Artifact,
    ComponentFailed,
    assert_golden,
    dataset,
    decision,
    inference_log,
    model_package,
    run_component,
    tables,
)

ROWS = [
    {"station": "A", "minutes": 12, "rain": False, "started": datetime(2024, 1, 1, 8)},
    {"station": None, "minutes": 15, "rain": True, "started": datetime(2024, 1, 2, 9)},
]


@dsl.component(base_image="mine:1", packages_to_install=["there-is-no-such-package"])
def describe(
    text: str, given: dsl.Input[dsl.Dataset], told: dsl.Output[dsl.Model], times: int = 2
) -> str:
    print("describing")
    with open(told.path, "w") as file:
        file.write(f"{given.path} {given.metadata['rows']}")
    told.metadata["rows"] = given.metadata["rows"] + 0.5
    return text * times


@dsl.component(base_image="mine:1", install_kfp_package=False)
def fail(number: int):
    raise ValueError(f"{number} is too many")


def pipeline_of(times: int):
    @dsl.pipeline(name="two-steps")
    def two_steps(text: str):
        describe(text=text, given=dsl.importer("/there", dsl.Dataset).output, times=times)

    return two_steps


def test_a_component_of_ours_reads_what_the_factories_write(tmp_path):
    trips = dataset(tmp_path / "trips", ROWS, "started")
    assert (trips.metadata["rows"], trips.metadata["until"]) == (2, "2024-01-02T09:00:00+00:00")
    query = """
        SELECT * FROM trips JOIN days ON started::DATE = day
        WHERE typeof(minutes) = 'BIGINT' AND typeof(rain) = 'BOOLEAN'
        AND typeof(started) = 'TIMESTAMP'"""
    both = tables(tmp_path / "both", {"trips": ROWS, "days": [{"day": date(2024, 1, 1)}]})
    assert both.metadata["tables"] == {"trips": 2, "days": 1}
    done = run_component(transform_data, tmp_path, tables=both, query=query)
    assert done.artifacts["dataset"].metadata["rows"] == 1


def test_a_users_component_gets_artifacts_with_metadata_and_installs_nothing(tmp_path):
    given = Artifact(tmp_path, "system.Dataset", {"rows": 2})
    done = run_component(describe, tmp_path, sys.executable, text="ab", given=given)
    told = done.artifacts["told"]
    assert done.parameters == {"Output": "abab"}
    assert (told.type, told.metadata) == ("system.Model", {"rows": 2.5})
    assert told.path.read_text() == f"{tmp_path} 2"
    assert "describing" in done.log
    by_path = dsl.Dataset(uri=str(tmp_path), metadata={"rows": 3})
    done = run_component(describe, tmp_path, sys.executable, text="a", given=by_path, times=1)
    assert done.artifacts["told"].metadata == {"rows": 3.5}


def test_a_component_that_fails_says_its_sentence(tmp_path):
    with pytest.raises(ComponentFailed, match="7 is too many") as failed:
        run_component(fail, tmp_path, sys.executable, number=7)
    assert "Traceback" in failed.value.log
    trips = dataset(tmp_path / "trips", ROWS)
    with pytest.raises(ComponentFailed, match='Referenced column "nope" not found'):
        run_component(transform_data, tmp_path, tables=trips, query="SELECT nope FROM dataset")


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"given": "x"}, "needs a value for 'text'"),
        ({"given": 3, "text": "a"}, "'given' is an artifact, and 3 is none"),
        ({"given": "x", "text": "a", "tex": "a"}, "has no input 'tex'; it has text, given"),
        ({"given": "x", "text": "a"}, r"(?s)of no kfloop family.*sys.executable"),
    ],
)
def test_inputs_that_do_not_fit_are_named(tmp_path, inputs, sentence):
    with pytest.raises(InputError, match=sentence):
        run_component(describe, tmp_path, **inputs)


def test_a_function_that_is_no_component_is_refused(tmp_path):
    with pytest.raises(InputError, match="is no component"):
        run_component(pipeline_of(1), tmp_path, text="a")


def test_rows_that_cannot_be_a_table_are_refused(tmp_path):
    with pytest.raises(InputError, match="There are no rows"):
        dataset(tmp_path / "none", [])
    with pytest.raises(InputError, match="cannot be a table"):
        dataset(tmp_path / "mixed", [{"a": 1}, {"a": "one"}])
    with pytest.raises(InputError, match="no event_time"):
        inference_log(tmp_path / "log", [{"a": 1}])


def test_an_inference_log_is_one_that_monitoring_collects(tmp_path):
    asked = {"minutes": 12.0, "prediction": 11.5}
    night = [{"event_time": datetime(2024, 1, day, 23, tzinfo=UTC), **asked} for day in (1, 2)]
    failed = {"event_time": datetime(2024, 1, 2), "status": 500, "error": "out of memory"}
    log = inference_log(tmp_path / "log", [*night, failed])
    inference_log(tmp_path / "log", night[:1], model_version="2")
    done = run_component(collect_inference_log, tmp_path, log_uri=str(log.path), model_version="1")
    assert done.artifacts["dataset"].metadata["rows"] == 3
    assert done.artifacts["dataset"].metadata["until"] == "2024-01-02T23:00:00+00:00"


def test_a_decision_is_one_that_a_gate_reads(tmp_path):
    run_component(require_pass, tmp_path, decision=decision(tmp_path / "pass.json"))
    reason = Reason("minimum", "auc", 0.6, 0.7, False, "auc is 0.6, below 0.7")
    failed = decision(tmp_path / "fail.json", "fail", reasons=[reason])
    assert failed.metadata["summary"] == "evaluation: fail (auc is 0.6, below 0.7)"
    with pytest.raises(ComponentFailed, match=r"auc is 0\.6, below 0\.7"):
        run_component(require_pass, tmp_path, decision=failed)


def test_a_model_package_is_trained(tmp_path):
    rows = [{"x": float(n % 7), "kind": "ab"[n % 2], "y": n % 7 * 2.0} for n in range(60)]
    made = model_package(tmp_path / "package", rows, "y", name="toy")
    described = json.loads((made.path / "model.json").read_text())
    assert described["features"] == [
        {"name": "x", "type": "float"},
        {"name": "kind", "type": "string"},
    ]
    assert (made.path / "1" / "saved_model.pb").is_file()
    assert [file.name for file in tmp_path.iterdir()] == ["package"]
    with pytest.raises(InputError, match="exists"):
        model_package(tmp_path / "package", rows, "y")


def test_a_golden_pipeline_is_compared_by_what_it_says(tmp_path, monkeypatch):
    golden = tmp_path / "golden.yaml"
    with pytest.raises(AssertionError, match="KFLOOP_UPDATE_GOLDEN=1"):
        assert_golden(pipeline_of(2), golden)
    monkeypatch.setenv("KFLOOP_UPDATE_GOLDEN", "1")
    assert_golden(pipeline_of(2), golden)
    monkeypatch.delenv("KFLOOP_UPDATE_GOLDEN")
    # Layout and comments do not count.
    golden.write_text("# reviewed\n" + golden.read_text().replace("kfp-2.17.0", "kfp-2.18.0"))
    assert_golden(pipeline_of(2), golden)
    with pytest.raises(AssertionError) as failed:
        assert_golden(pipeline_of(3), golden)
    changed = [line for line in str(failed.value).splitlines() if line[:1] in "+-"]
    assert [line.split() for line in changed[2:]] == [
        ["-", "constant:", "2.0"],
        ["+", "constant:", "3.0"],
    ]


def test_the_doubles_come_with_the_kit():
    from kfloop.testing.doubles import ApiServer
    from kfloop.testing.doubles.kfp_api import KfpApi

    with KfpApi() as kfp, urlopen(f"{kfp.url}/apis/v2beta1/healthz") as answer:
        assert json.load(answer)["multi_user"] is False
    with ApiServer(namespaces=["ml"]) as api, urlopen(f"{api.url}/healthz") as answer:
        assert answer.read() == b"ok"


def test_every_module_of_the_kit_is_found_where_components_run():
    from kfloop.pipelines.local.environments import code_path

    kit = Path(__file__).parents[1] / "kit"
    assert (code_path() / "kfloop" / "testing").resolve() == kit.resolve()
