# SPDX-License-Identifier: Apache-2.0
"""`kfloop catalogue`."""

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table


@click.command()
@click.argument("pipeline", default="")
def catalogue(pipeline: str) -> None:
    """List the pipelines and components, with their level and purpose.

    With the name of a PIPELINE: its parameters, with their defaults and what they mean.

    What the levels stable and beta promise: docs/versioning.md.
    """
    from rich.table import Table

    from kfloop.scripts.tables import print_table

    table = Table(box=None, pad_edge=False, header_style="bold")
    if pipeline:
        _add_parameters(table, pipeline)
    else:
        _add_all(table)
    print_table(table)


def _add_parameters(table: "Table", pipeline: str) -> None:
    from rich.text import Text

    from kfloop.pipelines.catalogue import compiled_path
    from kfloop.pipelines.local.pipeline_spec import load_pipeline, plain

    declared = load_pipeline(compiled_path(pipeline)).root["inputDefinitions"]["parameters"]
    for column in ("parameter", "default", "meaning"):
        table.add_column(column)
    for name, about in sorted(declared.items(), key=lambda item: "defaultValue" in item[1]):
        default = (
            json.dumps(plain(about["defaultValue"])) if "defaultValue" in about else "required"
        )
        # As text: rich would read brackets as markup.
        table.add_row(name, Text(default), Text(about["description"]))


def _add_all(table: "Table") -> None:
    from kfloop.components import FAMILIES, stability
    from kfloop.pipelines.catalogue import PIPELINES, component_summaries, pipeline_stability

    for column in ("", "name", "level", "what it does"):
        table.add_column(column)
    for name, purpose in PIPELINES.items():
        table.add_row("pipeline", name, pipeline_stability(name), purpose)
    summaries = component_summaries()
    for family, names in FAMILIES.items():
        table.add_section()
        for name in names:
            table.add_row(family, name, stability(name), summaries[name])
