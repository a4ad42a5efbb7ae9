# SPDX-License-Identifier: Apache-2.0
"""Image names: one image per family, tagged with the package version, and what it is made of.

At compile time a platform team says where its images are, by environment variables:

- `KFLOOP_IMAGE_PREFIX`: what stands before the family, for example `registry.example.com/ml`.
- `KFLOOP_IMAGE_VARIANTS`: for example `training=cuda`; see `IMAGES`.
- `KFLOOP_IMAGE_DIGESTS`: a JSON file of digests by image name, which `kfloop images push` writes.
"""

import json
import os
import re
from pathlib import Path

from kfloop.components.contracts.errors import InputError

VERSION = "0.1.0"
# The lock that each image is made from; `FAMILY-VARIANT` takes FAMILY's place where asked for.
IMAGES = {
    "data": "components/data/requirements.txt",
    "validation": "components/validation/requirements.txt",
    "features": "components/features/requirements.txt",
    "training": "components/training/requirements.txt",
    "evaluation": "components/evaluation/requirements.txt",
    "deployment": "components/deployment/requirements.txt",
    "monitoring": "components/monitoring/requirements.txt",
    "serving": "serving/requirements.txt",
    # For bases with a glibc older than 2.39.
    "validation-fallback": "components/validation/requirements-fallback.txt",
    # For GPUs.
    "training-cuda": "components/training/requirements-cuda.txt",
    # For the nodes of training in several processes.
    "training-jax": "components/training/requirements-jax.txt",
}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def image(family: str) -> str:
    """Returns the image of a family, for example `kfloop/training:0.1.0`.

    Raises:
        InputError: If an environment variable asks for a variant or a file of digests that is not
            there, or the file has no digest of this image.
    """
    return reference(_chosen(family), image_digests())


def reference(name: str, digests: dict[str, str] | None = None) -> str:
    """Returns what an image is pulled by: its tag, or its digest when there are digests.

    Args:
        name: One of `IMAGES`.
        digests: Digests by name; without any, the tag is the version.

    Raises:
        InputError: If there are digests and none of this image.
    """
    family, _, variant = name.partition("-")
    place = f"{image_prefix()}/{family}"
    if not digests:
        return f"{place}:{VERSION}-{variant}" if variant else f"{place}:{VERSION}"
    if name not in digests:
        raise InputError(
            f"The file of KFLOOP_IMAGE_DIGESTS has no digest of the image {name!r}; push it with "
            f"`kfloop images push {name} --digests FILE`."
        )
    # Without the tag: not every runtime takes both.
    return f"{place}@{digests[name]}"


def image_prefix() -> str:
    """Returns what stands before the family's name: `KFLOOP_IMAGE_PREFIX`, or `kfloop`."""
    return os.environ.get("KFLOOP_IMAGE_PREFIX", "").rstrip("/") or "kfloop"


def image_digests(path: str | Path = "") -> dict[str, str]:
    """Reads digests by image name, such as `{"data": "sha256:…"}`.

    Args:
        path: The JSON file; by default the one of `KFLOOP_IMAGE_DIGESTS`. Without either there are
            no digests.

    Raises:
        InputError: If the file is not there or holds anything else.
    """
    chosen = str(path) or os.environ.get("KFLOOP_IMAGE_DIGESTS", "")
    if not chosen:
        return {}
    wanted = "it holds a JSON object of digests by image name, which `kfloop images push` writes"
    try:
        digests = json.loads(Path(chosen).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"The file of image digests {chosen} cannot be read ({error.strerror}); {wanted}."
        ) from error
    except ValueError as error:
        raise InputError(f"The file of image digests {chosen} is not JSON; {wanted}.") from error
    if not isinstance(digests, dict) or not digests:
        raise InputError(f"The file of image digests {chosen} names no image; {wanted}.")
    for name, digest in digests.items():
        if name not in IMAGES:
            raise InputError(
                f"The file of image digests {chosen} names {name!r}, which is no image; there is "
                f"{', '.join(IMAGES)}."
            )
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise InputError(
                f"The digest of {name!r} in {chosen} is {digest!r}; a digest is sha256: and 64 "
                "hexadecimal digits."
            )
    return digests


def _chosen(family: str) -> str:
    """Returns the family's image, or its variant that `KFLOOP_IMAGE_VARIANTS` asks for."""
    for choice in filter(None, os.environ.get("KFLOOP_IMAGE_VARIANTS", "").split(",")):
        chosen, _, variant = (part.strip() for part in choice.partition("="))
        name = f"{chosen}-{variant}"
        if name not in IMAGES:
            there = ", ".join(each.replace("-", "=") for each in IMAGES if "-" in each)
            raise InputError(f"KFLOOP_IMAGE_VARIANTS asks for {choice!r}; there is {there}.")
        if chosen == family:
            return name
    return family
