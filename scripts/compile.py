"""`kfloop compile`."""

from pathlib import Path

import click


@click.command("compile")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for the YAML.  [default: pipelines/compiled of the package]",
)
def compile_command(output: Path | None) -> None:
    """Compile all pipelines to the YAML that is uploaded to Kubeflow.

    The images carry the prefix in KFLOOP_IMAGE_PREFIX and the package version as their tag.
    """
    from kfloop.pipelines.catalogue import COMPILED, compile_pipelines

    for path in compile_pipelines(output or COMPILED):
        click.echo(path)
