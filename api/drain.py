"""SIGTERM and Ctrl-C: new requests are refused at once, those inside end first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from llm_decoder.serving.service import Service

__all__ = ["drain_on_signals"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


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
    for number in _SIGNALS:
        signal.signal(number, _draining(service, before[number]))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _draining(service: Service, server_s: Any) -> Callable[[int, FrameType | None], None]:
    def handle(number: int, frame: FrameType | None) -> None:
        threading.Thread(target=service.close, name="llm_decoder-drain", daemon=True).start()
        if callable(server_s):
            server_s(number, frame)

    return handle
