# SPDX-License-Identifier: Apache-2.0
"""An artifact as tests give it to a component and get it back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Artifact:
    """A file or directory that is there, with what is said about it.

    Attributes:
        path: Where it is.
        type: KFP schema title, for example `system.Dataset`.
        metadata: JSON values.
    """

    path: Path
    type: str = "system.Artifact"
    metadata: Mapping[str, Any] = field(default_factory=dict)
