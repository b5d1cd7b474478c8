"""The FastAPI application under uvicorn, as one program."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterable
from socket import socket
from types import FrameType

import uvicorn

from llm_decoder.api.app import create_app
from llm_decoder.api.protocol import GuardedProtocol
from llm_decoder.serving.exchange import Endpoint
from llm_decoder.serving.logs import LOGGER
from llm_decoder.serving.service import Service
from llm_decoder.serving.settings import ServerSettings

__all__ = ["run"]

EXIT_OK, EXIT_ERROR, EXIT_INTERRUPTED = 0, 1, 130
_KEEP_ALIVE_S = 30
# Connections that wait to be taken, where the system allows as many: a burst is answered with 429, not with a reset.
_BACKLOG = 2048
# The service ends the answers itself, after drain_s; what is left after that are clients that do not read theirs.
_GRACE_S = 10


def run(service: Service, extra_endpoints: Iterable[Endpoint] = ()) -> int:
    """Serves until a signal, or until it turns out that the model cannot be loaded; returns the exit code."""
    settings = service.settings
    server = _Server(
        uvicorn.Config(
            create_app(service, extra_endpoints),
            host=settings.host,
            port=settings.port,
            http=GuardedProtocol.of(settings),
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(settings.drain_s) + _GRACE_S,
        )
    )
    logging.getLogger("uvicorn.error").addFilter(lambda record: _in_our_words(record, settings))
    threading.Thread(target=_watch, args=(service, server), name="llm_decoder-watch", daemon=True).start()
    try:
        server.run()
    except SystemExit:  # the port is not to be had; the log has said so
        return EXIT_ERROR
    if service.failure is not None:
        return EXIT_ERROR
    return EXIT_INTERRUPTED if server.is_interrupted else EXIT_OK


class _Server(uvicorn.Server):
    """Says where it listens, and ends with an exit code rather than by the signal that it was sent."""

    is_interrupted = False

    async def startup(self, sockets: list[socket] | None = None) -> None:
        await super().startup(sockets)
        for server in self.servers if self.started else ():
            for listener in server.sockets:
                host, port = listener.getsockname()[:2]
                place = f"[{host}]" if ":" in host else host
                LOGGER.info("listening", extra={"fields": {"url": f"http://{place}:{port}"}})

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        is_ctrl_c = sig == signal.SIGINT
        self.is_interrupted = self.is_interrupted or is_ctrl_c
        self.force_exit = self.should_exit and is_ctrl_c
        self.should_exit = True


def _in_our_words(record: logging.LogRecord, settings: ServerSettings) -> bool:
    if isinstance(record.msg, OSError):  # the port is not to be had
        record.msg = str(settings.cannot_listen(record.msg))
    return True


def _watch(service: Service, server: _Server) -> None:
    if service.wait():
        LOGGER.info("ready", extra={"fields": service.told_when_ready()})
    elif service.failure is not None:
        LOGGER.error("the model could not be loaded: %s", service.failure)
        server.should_exit = True
