"""`kfloop catalogue`."""

import click


@click.command()
def catalogue() -> None:
    """List the pipelines and components, with their level and purpose.

    What the levels stable and beta promise: docs/versioning.md.
    """
    from rich.console import Console
    from rich.table import Table

    from kfloop.components import FAMILIES, stability
    from kfloop.pipelines.catalogue import PIPELINES, component_summaries, pipeline_stability

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "name", "level", "what it does"):
        table.add_column(column)
    for name, purpose in PIPELINES.items():
        table.add_row("pipeline", name, pipeline_stability(name), purpose)
    summaries = component_summaries()
    for family, names in FAMILIES.items():
        table.add_section()
        for name in names:
            table.add_row(family, name, stability(name), summaries[name])
    Console().print(table)
