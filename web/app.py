"""The Flask server: the page and every endpoint. `python web/app.py` is `llm-decoder web`."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask

    from llm_decoder.serving.service import Service

__all__ = ["create_app", "serve"]


def create_app(service: Service) -> Flask:
    """A WSGI application over a service, whose model may still be loading."""
    from flask import Flask

    from llm_decoder.serving.routes import all_endpoints
    from llm_decoder.web import adapter, page

    app = Flask("llm_decoder.web", static_folder=None)
    adapter.mount(app, service, (*all_endpoints(), *page.endpoints()))
    return app


def serve(service: Service, on_ready: Callable[[str], None]) -> None:
    """Serves under waitress until a signal ends it. on_ready: called with the page's address once the port is open."""
    from llm_decoder.web.server import Server

    server = Server(create_app(service), service)
    with server.stopping_on_signals():
        service.start()
        on_ready(server.address)
        server.run()


if __name__ == "__main__":
    room = Path(__file__).resolve().parent
    # Python put this folder first on the path: its page.py or server.py must not hide somebody else's module.
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != room]
    run = runpy.run_path(str(room.parent / "cli" / "_checkout.py"))["run"]
    sys.exit(run(["web", *sys.argv[1:]]))
