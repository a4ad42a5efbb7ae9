# SPDX-License-Identifier: Apache-2.0
"""TensorFlow for modules that only name it, such as TFDV's: imported once it is really used.

A dozen of TFDV's modules import TensorFlow for annotations and for readers of files that kfloop
does not use. That takes three quarters of TFDV's import, which is most of what a step of this
family does.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_TENSORFLOW = "tensorflow"


class _Named(type):
    """The class of what stands for an attribute of TensorFlow in an annotation: a class too."""

    def __getattr__(cls, name: str) -> "_Named":
        if name.startswith("_"):
            raise AttributeError(name)
        return _Named(f"{cls.__name__}.{name}", (), {})


class _Deferred(ModuleType):
    """Names while modules are imported, TensorFlow's own attributes from then on."""

    imported = False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if not self.imported:
            return _Named(f"{_TENSORFLOW}.{name}", (), {})
        return _Compat() if name == "compat" else getattr(_tensorflow(), name)


class _Compat:
    """`tf.compat`, of which TFDV's validation uses the one function that is here."""

    @staticmethod
    def as_bytes(text: str | bytes, encoding: str = "utf-8") -> bytes:
        return text.encode(encoding) if isinstance(text, str) else bytes(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(_tensorflow().compat, name)


def _tensorflow() -> Any:
    return importlib.import_module(_TENSORFLOW)


@contextmanager
def tensorflow_deferred() -> Iterator[None]:
    """Lets modules that are imported within it have TensorFlow later.

    What they keep of it while they are imported must only be compared or named; what they ask for
    when they run is the real thing.
    """
    if _TENSORFLOW in sys.modules:
        yield
        return
    deferred = _Deferred(_TENSORFLOW)
    sys.modules[_TENSORFLOW] = deferred
    try:
        yield
    finally:
        deferred.imported = True
        del sys.modules[_TENSORFLOW]
