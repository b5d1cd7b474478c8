"""How the engine's thread wakes what waits on an event loop: once a step for all of them, not once a token."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

__all__ = ["Bell", "Wakeups"]


class Bell:
    """What one task waits at. Rung while nobody waits, it is heard at the next wait."""

    __slots__ = ("_is_rung", "_waiter")

    def __init__(self) -> None:
        self._is_rung = False
        self._waiter: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """On the loop's thread."""
        self._is_rung = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        if not self._is_rung:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._is_rung = False


class Wakeups:
    """The bells of one event loop. A step of the engine rings those of all its sequences in one go: the loop is told
    of the first, and rings whatever has come when it gets to it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: deque[Bell] = deque()
        self._is_told = False

    def wake(self, bell: Bell) -> None:
        """On any thread; does not block."""
        self._due.append(bell)
        if not self._is_told:
            self._is_told = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._ring)

    def _ring(self) -> None:
        self._is_told = False  # before the look: a bell that comes after it tells the loop again
        while self._due:
            self._due.popleft().ring()
