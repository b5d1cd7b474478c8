"""SIGTERM and Ctrl-C: new requests are refused at once, those inside end first."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from llm_decoder.serving.service import Service

__all__ = ["drain_on_signals"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# For the last bytes of answers that are ended, until the server cuts connections.
_LAST_BYTES_S = 5.0


@contextlib.contextmanager
def drain_on_signals(service: Service) -> Iterator[None]:
    """Before the server's own handler of a signal runs, the service begins to close. A server waits for its open
    connections, so it ends when the service has let the last answer go: after drain_s seconds at most.

    Signals belong to the main thread; a server that runs on another is ended by whoever runs it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    end = _End(service)
    for number in _SIGNALS:
        signal.signal(number, end.handler(before[number]))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _End:
    """What the first signal begins, Ctrl-C again hastens: answers are ended, their clients are told so, and only who
    does not read it is cut off. SIGTERM again changes nothing."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._n_signals = 0
        self._is_hasty = False

    def handler(self, server_s: Any) -> Callable[[int, FrameType | None], None]:
        def tell_server(number: int, frame: FrameType | None = None) -> None:
            if callable(server_s):
                server_s(number, frame)

        def end_now(number: int) -> None:
            self._service.close(0.0)
            time.sleep(_LAST_BYTES_S)
            tell_server(number)

        def handle(number: int, frame: FrameType | None) -> None:
            self._n_signals += 1
            if self._n_signals == 1:
                _in_background(self._service.close)
                tell_server(number, frame)
            elif number == signal.SIGINT and not self._is_hasty:
                self._is_hasty = True
                _in_background(lambda: end_now(number))
            elif number == signal.SIGINT:
                tell_server(number, frame)

        return handle


def _in_background(function: Callable[[], None]) -> None:
    threading.Thread(target=function, name="llm_decoder-drain", daemon=True).start()
