"""The Flask server: the page and every endpoint. `python web/app.py` is `llm-decoder web`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask

    from llm_decoder.serving.service import Service

__all__ = ["create_app", "serve"]


def create_app(service: Service | None = None) -> Flask:
    """A WSGI application over a service, whose model may still be loading.

    None: over what LLM_DECODER_* and the settings files ask for, which begins to load. So a WSGI server with threads,
    in one process, can be given `llm_decoder.web.app:create_app`.
    """
    from flask import Flask

    from llm_decoder.serving.routes import all_endpoints
    from llm_decoder.web import adapter, page

    if service is None:
        from llm_decoder.serving.opening import service_from_environment

        service = service_from_environment()
        service.start()
    app = Flask("llm_decoder.web", static_folder=None)
    adapter.mount(app, service, (*all_endpoints(), *page.endpoints()))
    return app


def serve(service: Service) -> int:
    """Serves under waitress until a signal, or until it turns out that the model cannot be loaded; returns the exit
    code. Raises ConfigError when the port is not to be had."""
    from llm_decoder.web.server import Server

    return Server(create_app(service), service).run_as_program()


if __name__ == "__main__":
    room = Path(__file__).resolve().parent
    # Python put this folder first on the path: its page.py or server.py must not hide somebody else's module.
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != room]
    run = runpy.run_path(str(room.parent / "cli" / "_checkout.py"))["run"]
    sys.exit(run(["web", *sys.argv[1:]]))
