# SPDX-License-Identifier: Apache-2.0
"""A pipeline made ready for a cluster: its documents with images, resources and caching as wanted,
and its parameters, in which no path of this machine is left.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfloop.components.contracts.errors import InputError
from kfloop.components.images import image
from kfloop.pipelines.arguments import pipeline_arguments
from kfloop.pipelines.catalogue import compiled_path
from kfloop.pipelines.local.pipeline_spec import (
    Document,
    as_text,
    load_documents,
    pipeline_spec,
    resolve_arguments,
)
from kfloop.pipelines.loop import load_loop
from kfloop.pipelines.pod_settings import apply_pod_settings, tell_images
from kfloop.pipelines.resources import apply_resources, with_overrides

# The root driver gets all parameters in one argument, and Linux takes 128 KiB there.
MOST_PARAMETER_BYTES = 128 * 1024 - 1
OUR_IMAGE = re.compile(r"kfloop/([a-z]+):[^@]+")


@dataclass(frozen=True)
class Package:
    """What is sent to the KFP API.

    Attributes:
        name: The pipeline's name.
        documents: Its spec and, where there are any, its platform settings.
        arguments: Its parameters.
    """

    name: str
    documents: list[Document]
    arguments: Document


def package_pipeline(
    pipeline: str,
    loop_file: Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    caching: bool = True,
    base: Path | None = None,
) -> Package:
    """Returns a pipeline with everything a run of it on a cluster needs.

    Args:
        pipeline: Name of one of kfloop's pipelines, or a compiled YAML file.
        loop_file: Gives the parameters of kfloop's pipelines, and what their pods get.
        parameters: Parameters over those of the loop file.
        caching: Whether steps may be reused where they allow it.
        base: Directory that the path of a YAML file starts from; the current one unless given.

    Raises:
        InputError: If the loop file or a parameter is wrong, or is a path that no pod would find.
    """
    is_file = pipeline.endswith((".yaml", ".yml"))
    compiled = (base or Path()) / pipeline if is_file else compiled_path(pipeline)
    documents = load_documents(compiled)
    arguments: Document = {}
    if loop_file:
        loop, loop_base = load_loop(loop_file)
        apply_resources(documents, with_overrides(loop.resources))
        apply_pod_settings(documents, loop.environment, loop.secrets, loop.volumes)
        if not is_file:
            arguments = pipeline_arguments(pipeline, loop, loop_base, loop_base / ".kfloop")
        _require_remote(arguments | dict(parameters or {}), loop_base)
    arguments |= parameters or {}
    spec = pipeline_spec(documents[0])
    values = resolve_arguments(spec, arguments)
    _require_room(arguments)
    if not caching:
        disable_caching(documents[0])
    _name_images(documents[0])
    tell_images(documents[0])
    return Package(spec.name, documents, {name: values[name] for name in arguments})


def _require_remote(arguments: Document, base: Path) -> None:
    """Refuses paths that were relative to the loop file: no pod would find them."""
    found = [f"{place} is {path}" for place, path in _paths_below(arguments, base)]
    if found:
        raise InputError(
            f"{', '.join(found)}; no pod finds a path on this machine, so give a gs:// or s3:// "
            "URI or the path of a volume that the pods mount, in the loop file or as a parameter."
        )


def _paths_below(value: Any, base: Path, place: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _paths_below(inner, base, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _paths_below(inner, base, f"{place}.{index}")
    elif isinstance(value, str) and value.startswith((f"{base}/", f"sqlite:///{base}/")):
        yield place, value


def _require_room(arguments: Document) -> None:
    size = len(as_text(arguments).encode())
    if size > MOST_PARAMETER_BYTES:
        largest = max(arguments, key=lambda name: len(as_text(arguments[name])))
        raise InputError(
            f"the parameters take {size:,} bytes and KFP can hand on {MOST_PARAMETER_BYTES:,}; "
            f"the largest is {largest}."
        )


def disable_caching(spec: Document) -> None:
    """Disables caching of every task, nested ones too; the kfp client reaches only the root's."""
    for component in [spec["root"], *spec.get("components", {}).values()]:
        for task in component.get("dag", {}).get("tasks", {}).values():
            task["cachingOptions"] = {}


def _name_images(spec: Document) -> None:
    """Names kfloop's images as KFLOOP_IMAGE_PREFIX and the like say now, as compiling does."""
    for executor in spec.get("deploymentSpec", {}).get("executors", {}).values():
        container = executor.get("container", {})
        ours = OUR_IMAGE.fullmatch(container.get("image", ""))
        if ours:
            container["image"] = image(ours[1])
