"""Image names: one image per family, tagged with the package version."""

import os

VERSION = "0.1.0"


def image(family: str) -> str:
    """Returns the image of a family, for example `kfloop/training:0.1.0`.

    The prefix before the family comes from `KFLOOP_IMAGE_PREFIX` at compile time, so that a
    platform team compiles for its own registry.
    """
    return f"{os.environ.get('KFLOOP_IMAGE_PREFIX', 'kfloop').rstrip('/')}/{family}:{VERSION}"
