"""llm-decoder web: the chat page, and every endpoint, on Flask."""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

from llm_decoder.cli import _open
from llm_decoder.cli._options import ModelOptions
from llm_decoder.cli._output import note

# By name: apps never meet, and nothing of Flask is imported before a server is wanted.
_APP = "llm_decoder.web.app"


def web(
    *,
    host: Annotated[str, typer.Option(metavar="NAME", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 = any free one.")] = 5000,
    model: ModelOptions,
) -> None:
    """Serve the chat page in a browser.

    llm-decoder web --port 5000
    """
    from llm_decoder.serving.logs import set_up
    from llm_decoder.serving.service import Service
    from llm_decoder.serving.settings import ServerSettings

    settings = ServerSettings(host=host, port=port)
    set_up(settings)
    app = importlib.import_module(_APP)
    app.serve(Service(lambda: _open.open_llm(model), settings), lambda address: note(f"chat page: {address}"))
