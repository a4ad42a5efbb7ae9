# SPDX-License-Identifier: Apache-2.0
"""What others build on, written down: the signature of every component and of every pipeline.

`interface.json` beside this file is that record. A change that breaks somebody's pipeline is only
taken into it once CHANGELOG.md says so under a version that is not out yet.
"""

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from kfloop.components import FAMILIES
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import read_json, write_json
from kfloop.components.images import VERSION
from kfloop.pipelines.catalogue import COMPILED, PIPELINES, compiled_path
from kfloop.pipelines.local.pipeline_spec import load_documents

Document = dict[str, Any]
INTERFACE = Path(__file__).parent / "interface.json"
CHANGELOG = Path(__file__).resolve().parents[1] / "CHANGELOG.md"
# `system.Model@0.0.1`: the number is the schema's, which kfp sets.
TYPE_VERSION = re.compile(r"@[\d.]+$")


def current_interface(directory: Path = COMPILED) -> Document:
    """Returns the interface of this version.

    Args:
        directory: Where the compiled pipelines are.
    """
    components = {name: _component(name) for names in FAMILIES.values() for name in sorted(names)}
    pipelines = {
        name: _pipeline(load_documents(directory / compiled_path(name).name)[0])
        for name in PIPELINES
    }
    return {
        "version": VERSION,
        "components": dict(sorted(components.items())),
        "pipelines": dict(sorted(pipelines.items())),
    }


def _component(name: str) -> Document:
    spec = getattr(import_module("kfloop.components"), name).component_spec
    return {
        "inputs": {
            key: _input(one.type, one.optional, one.default)
            for key, one in sorted((spec.inputs or {}).items())
        },
        "outputs": {
            key: TYPE_VERSION.sub("", one.type) for key, one in sorted((spec.outputs or {}).items())
        },
    }


def _input(kind: str, optional: bool, default: Any) -> Document:
    about: Document = {"type": TYPE_VERSION.sub("", kind)}
    return {**about, "default": default} if optional else about


def _pipeline(spec: Document) -> Document:
    parameters = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    dags = [one["dag"] for one in (spec["root"], *spec["components"].values()) if "dag" in one]
    return {
        "inputs": {
            name: _input(
                one["parameterType"], one.get("isOptional", False), one.get("defaultValue")
            )
            for name, one in sorted(parameters.items())
        },
        "outputs": {},
        "tasks": sorted({task for dag in dags for task in dag["tasks"]}),
    }


def breaking_changes(old: Document, new: Document) -> dict[str, list[str]]:
    """Returns what no longer works for who used the old interface, by component or pipeline."""
    broken = {}
    for kind in ("components", "pipelines"):
        for name, before in old[kind].items():
            after = new[kind].get(name)
            told = _breaks(before, after) if after else ["is gone"]
            if told:
                broken[name] = told
    return broken


def _breaks(before: Document, after: Document) -> list[str]:
    told = []
    for side in ("inputs", "outputs"):
        word = side[:-1]
        for name, was in before[side].items():
            now = after[side].get(name)
            if now is None:
                told.append(f"{word} {name} is gone")
            elif _type(now) != _type(was):
                told.append(f"{word} {name} is {_type(now)}, was {_type(was)}")
            elif side == "inputs" and "default" in was and "default" not in now:
                told.append(f"input {name} is required, was optional")
    new = set(after["inputs"]) - set(before["inputs"])
    told += [
        f"input {name} is new and required"
        for name in sorted(new)
        if "default" not in after["inputs"][name]
    ]
    return told


def _type(given: Any) -> str:
    return str(given["type"] if isinstance(given, dict) else given)


def unannounced(
    broken: dict[str, list[str]], recorded_version: str, version: str, changelog: str
) -> list[str]:
    """Returns one sentence per break that is not announced; none when all are.

    Args:
        broken: As from `breaking_changes`.
        recorded_version: Version whose interface was recorded.
        version: The version now.
        changelog: Text of CHANGELOG.md: `## VERSION` headings, of which those of versions that are
            not out yet say `(unreleased)`; a break is a line under the version's heading that says
            `Breaking:` and names what is broken.
    """
    heading, section = _section(changelog, version)
    out = version == recorded_version and "unreleased" not in heading
    lines = [line for line in section.splitlines() if "Breaking:" in line]
    sentences = []
    for name, told in broken.items():
        if out:
            sentences.append(f"{name}: {', '.join(told)}: {version} is out; raise the version.")
        elif not any(re.search(rf"\b{re.escape(name)}\b", line) for line in lines):
            sentences.append(
                f"{name}: {', '.join(told)}: write a line `Breaking: {name} …` under {version} in "
                "CHANGELOG.md."
            )
    return sentences


def _section(changelog: str, version: str) -> tuple[str, str]:
    found = re.search(
        rf"^(## {re.escape(version)}\b[^\n]*)$(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL
    )
    return (found[1], found[2]) if found else ("", "")


def record_interface() -> Path | None:
    """Brings interface.json up to date; nothing is done outside a source tree.

    Raises:
        InputError: If something breaks that CHANGELOG.md does not announce.
    """
    if not CHANGELOG.is_file():
        return None
    new = current_interface()
    if INTERFACE.is_file():
        old = read_json(INTERFACE)
        changelog = CHANGELOG.read_text(encoding="utf-8")
        wrong = unannounced(breaking_changes(old, new), old["version"], VERSION, changelog)
        if wrong:
            raise InputError("\n".join(wrong))
    if not INTERFACE.is_file() or json.loads(INTERFACE.read_text(encoding="utf-8")) != new:
        write_json(INTERFACE, new)
    return INTERFACE
