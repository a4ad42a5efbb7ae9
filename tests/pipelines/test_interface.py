# SPDX-License-Identifier: Apache-2.0
"""Nobody's pipeline breaks by surprise: the interface is on record, and so is every break."""

import copy

import pytest

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import read_json, write_json
from kfloop.pipelines import interface
from kfloop.pipelines.interface import (
    CHANGELOG,
    INTERFACE,
    breaking_changes,
    current_interface,
    record_interface,
    unannounced,
)
from kfloop.pipelines.schedules import differences

RELEASED = "# Changelog\n\n## 0.2.0\n\n- Things.\n\n## 0.1.0\n\n- Breaking: split_data too.\n"
UNRELEASED = RELEASED.replace("## 0.2.0", "## 0.2.0 (unreleased)")
ANNOUNCED = UNRELEASED.replace("Things.", "Breaking: `split_data` takes `fraction` alone.")


@pytest.fixture(scope="module")
def current():
    return current_interface()


def test_the_record_is_up_to_date_and_every_break_is_announced(current):
    recorded = read_json(INTERFACE)
    broken = breaking_changes(recorded, current)
    wrong = unannounced(
        broken, recorded["version"], current["version"], CHANGELOG.read_text("utf-8")
    )
    assert not wrong, "\n".join(wrong)
    told = "\n".join(differences(recorded, current))
    assert recorded == current, f"refresh it with `make compile`:\n{told}"


def change(document: dict, name: str = "split_data") -> tuple[dict, dict]:
    changed = copy.deepcopy(document)
    return changed, changed["components"][name]


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda one: one["inputs"].pop("method"), "input method is gone"),
        (lambda one: one["outputs"].pop("train"), "output train is gone"),
        (lambda one: one["inputs"]["method"].pop("default"), "input method is required, was opt"),
        (lambda one: one["inputs"].update(new={"type": "String"}), "input new is new and required"),
        (lambda one: one["inputs"]["method"].update(type="LIST"), "input method is LIST, was Str"),
        (lambda one: one["outputs"].update(train="system.Model"), "output train is system.Model, "),
    ],
)
def test_a_break_is_seen(current, edit, told):
    changed, component = change(current)
    edit(component)
    (sentences,) = breaking_changes(current, changed).values()
    assert len(sentences) == 1 and sentences[0].startswith(told)


def test_a_component_or_a_pipeline_parameter_that_is_gone_is_a_break(current):
    changed = copy.deepcopy(current)
    del changed["components"]["split_data"]
    del changed["pipelines"]["training"]["inputs"]["epochs"]
    assert breaking_changes(current, changed) == {
        "split_data": ["is gone"],
        "training": ["input epochs is gone"],
    }


def test_what_is_added_breaks_nothing(current):
    changed, component = change(current)
    component["inputs"]["new"] = {"type": "STRING", "default": ""}
    component["outputs"]["new"] = "system.Dataset"
    changed["components"]["another"] = {"inputs": {}, "outputs": {}}
    assert not breaking_changes(current, changed)


@pytest.mark.parametrize(
    ("recorded", "changelog", "told"),
    [
        ("0.2.0", RELEASED, "0.2.0 is out; raise the version"),
        ("0.1.0", RELEASED, "write a line `Breaking: split_data"),
        ("0.1.0", UNRELEASED, "write a line `Breaking: split_data"),
        ("0.2.0", UNRELEASED, "write a line `Breaking: split_data"),
        ("0.1.0", "", "write a line `Breaking: split_data"),
        ("0.1.0", ANNOUNCED, ""),
        ("0.2.0", ANNOUNCED, ""),
    ],
)
def test_a_break_needs_a_version_that_is_not_out_and_a_line(recorded, changelog, told):
    wrong = unannounced({"split_data": ["input x is gone"]}, recorded, "0.2.0", changelog)
    assert told in "".join(wrong)
    assert bool(wrong) == bool(told)


def test_the_record_takes_no_break_that_is_not_announced(current, tmp_path, monkeypatch):
    record = tmp_path / "interface.json"
    changed, component = change(current)
    component["inputs"]["gone"] = {"type": "STRING"}
    write_json(record, changed)
    before = record.read_bytes()
    monkeypatch.setattr(interface, "INTERFACE", record)
    with pytest.raises(InputError, match="split_data: input gone is gone"):
        record_interface()
    assert record.read_bytes() == before
    del component["inputs"]["gone"], component["inputs"]["method"]
    write_json(record, changed)
    record_interface()
    assert read_json(record) == current
