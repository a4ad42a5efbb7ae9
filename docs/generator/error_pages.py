# SPDX-License-Identifier: Apache-2.0
"""Collects the sentences that users are told, by where they are raised."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLACES = {
    "The loop file and the command line": ("pipelines", "scripts"),
    "The local runner": ("pipelines/local",),
    "contracts": ("components/contracts",),
    "data": ("components/data",),
    "validation": ("components/validation",),
    "features": ("components/features",),
    "training": ("components/training",),
    "evaluation": ("components/evaluation",),
    "deployment": ("components/deployment",),
    "monitoring": ("components/monitoring",),
    "The model server and the payload logger": ("serving",),
}
# With fewer words outside of placeholders a sentence cannot be recognised.
FEWEST_LETTERS = 15


def sentences(folder: str) -> list[str]:
    """Returns the sentences of the InputErrors raised in a folder's modules, in their order.

    What is filled in at run time stands in `{braces}`.
    """
    found: list[str] = []
    for path in sorted((ROOT / folder).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _name(node.func) == "InputError" and node.args:
                sentence = " ".join(_text(node.args[0]).split())
                if sum(map(str.isalpha, _outside(sentence))) >= FEWEST_LETTERS:
                    found.append(sentence)
    return list(dict.fromkeys(found))


def render(introduction: str) -> str:
    """Returns the page: the introduction, then the sentences by place."""
    parts = [introduction.rstrip()]
    for title, folders in PLACES.items():
        told = [sentence for folder in folders for sentence in sentences(folder)]
        parts.append(f"### {title}")
        parts.append("\n".join(f"- {_code(sentence)}" for sentence in sorted(told)))
    return "\n\n".join(parts) + "\n"


def _name(function: ast.expr) -> str:
    return function.id if isinstance(function, ast.Name) else ""


def _text(node: ast.expr) -> str:
    """Returns a message's text; an expression stands as the last name in it."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(value) for value in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.FormattedValue):
        return "{" + _placeholder(node.value) + "}"
    return "{" + _placeholder(node) + "}"


def _placeholder(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    return "…"


def _outside(sentence: str) -> str:
    depth, kept = 0, []
    for letter in sentence:
        depth += (letter == "{") - (letter == "}")
        kept.append("" if depth else letter)
    return "".join(kept)


def _code(sentence: str) -> str:
    fence = "``" if "`" in sentence else "`"
    space = " " if fence == "``" else ""
    return f"{fence}{space}{sentence}{space}{fence}"
