# SPDX-License-Identifier: Apache-2.0
"""glibc's memory allocator, told to keep what every training step asks for again.

Without it glibc may give freed memory back to the system at every step and fault it in anew at the
next: 2.2 million page faults for an epoch of a million rows, which then takes twice as long. It
depends on the sizes that were freed before, so it comes and goes.
"""

import ctypes

# From <malloc.h>.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
# The largest that glibc takes; arrays above are mapped, and given back, by themselves.
_MAPPED_FROM = 32 << 20
_KEPT = 1 << 30
# A thread's whole heap: an empty one is then not given back.
_PAD = 64 << 20


def keep_freed_memory() -> None:
    """Keeps up to 1 GiB of freed memory in this process; does nothing without glibc.

    To be called before TensorFlow's first operation: once its threads have heaps it has no effect.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM)
    mallopt(_M_TRIM_THRESHOLD, _KEPT)
    mallopt(_M_TOP_PAD, _PAD)
