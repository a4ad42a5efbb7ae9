# SPDX-License-Identifier: Apache-2.0
"""`${NAME}` in a URI: what only the place where a step runs knows, such as a secret."""

import os
import re

from kfloop.components.contracts.errors import InputError

REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
# user:password@ and ?password=, unless a variable stands there.
_PASSWORD = re.compile(r"://[^:/@]*:(?!\$\{)[^@]+@|[?&](?:password|pwd)=(?!\$\{)", re.IGNORECASE)


def expand(text: str, what: str) -> str:
    """Replaces every `${NAME}` by the environment variable NAME.

    The result may be a secret: it belongs in no log, message or metadata.

    Args:
        text: The setting.
        what: What it is, for the error.

    Raises:
        InputError: If a variable is not set or empty; the message names it.
    """

    def value(found: re.Match[str]) -> str:
        known = os.environ.get(found[1], "")
        if not known:
            raise InputError(
                f"{what} needs the environment variable {found[1]}, which is not set where this "
                "step runs; set it there, on a cluster from a Secret."
            )
        return known

    return REFERENCE.sub(value, text)


def holds_password(uri: str) -> bool:
    """Tells whether a URI holds a password itself, rather than a variable's name."""
    return bool(_PASSWORD.search(uri))
