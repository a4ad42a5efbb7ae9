# SPDX-License-Identifier: Apache-2.0
"""Compares a compiled pipeline with the one that was reviewed."""

import difflib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from kfloop.components.contracts.files import write_text

UPDATE = "KFLOOP_UPDATE_GOLDEN"
SHOWN_LINES = 60


def assert_golden(pipeline: Callable[..., Any] | str | Path, golden: str | Path) -> None:
    """Asserts that a pipeline compiles to what `golden` holds.

    What is compared is what the documents say, not how they are laid out; the version of the SDK
    that compiled them does not count. With the environment variable KFLOOP_UPDATE_GOLDEN=1 the
    file is written instead.

    Args:
        pipeline: A `@dsl.pipeline` or `@dsl.component` function, or the path of a compiled one.
        golden: The reviewed YAML.

    Raises:
        AssertionError: If they differ, with the difference; or if there is no golden file.
    """
    compiled = _compiled(pipeline)
    path = Path(golden)
    if os.environ.get(UPDATE) == "1":
        write_text(path, compiled)
        return
    advice = f"run the test with {UPDATE}=1 and review the file"
    assert path.is_file(), f"There is no {path}; {advice}."
    before, after = _documents(path.read_text(encoding="utf-8")), _documents(compiled)
    assert before == after, (
        f"The pipeline is not {path}; if that is meant, {advice}.\n{_difference(before, after)}"
    )


def _compiled(pipeline: Callable[..., Any] | str | Path) -> str:
    if isinstance(pipeline, str | Path):
        return Path(pipeline).read_text(encoding="utf-8")
    from kfp import compiler

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "pipeline.yaml"
        compiler.Compiler().compile(pipeline, str(path))
        return path.read_text(encoding="utf-8")


class _Readable(yaml.SafeDumper):
    """Writes code as lines, so that a difference in it is a difference of lines."""


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Trailing spaces would make YAML quote the whole text.
    lines = "\n".join(line.rstrip() for line in text.split("\n"))
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", lines, style=style)


_Readable.add_representer(str, _block)


def _documents(text: str) -> list[Any]:
    documents = list(yaml.safe_load_all(text))
    for document in documents:
        if isinstance(document, dict):
            document.pop("sdkVersion", None)
    return documents


def _difference(before: list[Any], after: list[Any]) -> str:
    found = list(
        difflib.unified_diff(
            _readable(before), _readable(after), "golden", "compiled now", n=2, lineterm=""
        )
    )
    more = len(found) - SHOWN_LINES
    return "\n".join(found[:SHOWN_LINES] + ([f"… {more} more lines"] if more > 0 else []))


def _readable(documents: list[Any]) -> list[str]:
    text: str = yaml.dump_all(documents, Dumper=_Readable, sort_keys=True, width=1000)
    return text.splitlines()
