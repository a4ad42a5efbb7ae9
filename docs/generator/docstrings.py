# SPDX-License-Identifier: Apache-2.0
"""Reads docstrings in Google style, and what core functions raise."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def failures(wrapper: str) -> list[str]:
    """Returns what the core functions that a wrapper calls raise, as their docstrings say it.

    Args:
        wrapper: Source of the wrapper. It calls what it imports: a function, or one of a module.
    """
    tree = ast.parse(wrapper)
    functions: dict[str, tuple[str, str]] = {}
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = alias.asname or alias.name
                functions[name] = (node.module, alias.name)
                modules[name] = f"{node.module}.{alias.name}"
    raised: list[str] = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id in functions:
            raised += _raised(*functions[called.id])
        elif isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            raised += _raised(modules.get(called.value.id, ""), called.attr)
    return list(dict.fromkeys(raised))


def _raised(module: str, name: str) -> list[str]:
    if not module.startswith("kfloop.components."):
        return []
    path = ROOT / (module.removeprefix("kfloop.").replace(".", "/") + ".py")
    if not path.is_file():
        return []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return list(arguments(ast.get_docstring(node) or "", "Raises").values())
    return []


def summary(text: str) -> tuple[str, str]:
    """Returns a docstring's first line, and what else stands before its sections."""
    body = re.split(r"\n\n(?:Args|Returns|Raises):\n", text)[0]
    first, *rest = body.split("\n\n")
    return _line(first), "\n\n".join(_line(paragraph) for paragraph in rest)


def section(text: str, title: str) -> str:
    """Returns a section as one line."""
    found = re.search(rf"^{title}:\n((?:    .*\n?|\n)*)", text, re.MULTILINE)
    return _line(found[1]) if found else ""


def arguments(text: str, title: str = "Args") -> dict[str, str]:
    """Returns the entries of a docstring's section by name."""
    found = re.search(rf"^{title}:\n((?:    .*\n?|\n)*)", text, re.MULTILINE)
    entries = (
        re.findall(r"^    (\w+): ((?:.*\n?)(?:^        .*\n?)*)", found[1], re.M) if found else []
    )
    return {name: _line(description) for name, description in entries}


def _line(text: str) -> str:
    return " ".join(text.split())
