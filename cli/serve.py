"""llm-decoder serve: the OpenAI API over HTTP, and the chat page."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING

from llm_decoder.cli import _open
from llm_decoder.cli._options import ModelOptions, SamplingDefaults, ServerOptions
from llm_decoder.cli._output import complain

if TYPE_CHECKING:
    from llm_decoder.serving.settings import ServerSettings

PORT = 8000
# By name: apps never meet, and nothing of FastAPI is imported before a server is wanted.
_SERVER = "llm_decoder.api.server"
_PAGE = "llm_decoder.web.page"


def serve(*, server: ServerOptions, sampling: SamplingDefaults, model: ModelOptions) -> int:
    """Serve the model: the OpenAI API, and a chat page at /. The port is open before the model is loaded.

    llm-decoder serve --model ./folder --port 8000 --api-key KEY
    """
    from llm_decoder.serving.logs import set_up

    service = _open.make_service(model, server, sampling, port=PORT)
    set_up(service.settings)
    warn_if_open(service.settings)
    page = importlib.import_module(_PAGE).endpoints() if importlib.util.find_spec(_PAGE) else ()
    code: int = importlib.import_module(_SERVER).run(service, page)
    return code


def warn_if_open(settings: ServerSettings) -> None:
    """Says loudly that anybody who reaches this machine can use the model."""
    if not settings.is_local and not settings.api_keys:
        complain(
            "warning",
            f"[--host {settings.host}] other machines can call, and there is no API key: whoever reaches port "
            f"{settings.port} can use the model. Add --api-key KEY or --api-key-file FILE, or listen on 127.0.0.1.",
        )
