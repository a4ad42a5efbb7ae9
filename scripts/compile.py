# SPDX-License-Identifier: Apache-2.0
"""`kfloop compile`."""

from pathlib import Path

import click


@click.command("compile")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for the YAML.  [default: pipelines/compiled of the package]",
)
@click.option(
    "--kubernetes",
    type=click.Path(path_type=Path, file_okay=False),
    help="Instead, a directory for Pipeline and PipelineVersion manifests (GitOps).",
)
@click.option("--namespace", "-n", default="", help="Namespace of the manifests.")
def compile_command(output: Path | None, kubernetes: Path | None, namespace: str) -> None:
    """Compile all pipelines to the YAML that is uploaded to Kubeflow.

    The images carry the prefix in KFLOOP_IMAGE_PREFIX and the package version as their tag. Each
    task carries its resources, retries and time limit.
    """
    from kfloop.pipelines.catalogue import COMPILED, compile_pipelines
    from kfloop.pipelines.interface import record_interface
    from kfloop.pipelines.native import write_manifests

    if kubernetes:
        for path in write_manifests(kubernetes, namespace):
            click.echo(path)
        return
    for path in compile_pipelines(output or COMPILED):
        click.echo(path)
    if output is None and (recorded := record_interface()):
        click.echo(recorded)
