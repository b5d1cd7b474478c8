"""A server's memory stays what its largest request took, not that much for each thread that has read one."""

from __future__ import annotations

import contextlib
import ctypes

__all__ = ["give_back", "share_one_heap"]

_ARENA_MAX = -8  # M_ARENA_MAX of glibc's malloc.h


def share_one_heap() -> None:
    """Lets all threads of the process allocate from one heap. glibc gives each thread one of its own, up to eight a
    core, and each keeps what was once freed there. Elsewhere: nothing, as for heaps that are there already."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(_ARENA_MAX, 1)


def give_back() -> None:
    """Free pages in the middle of the heap go to the system too: glibc gives back only those at its end, and one small
    thing that was allocated last keeps all that a large request took before it. Takes milliseconds. Elsewhere:
    nothing."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
