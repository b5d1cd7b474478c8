"""llm-decoder web: the chat page, and every endpoint, on Flask."""

from __future__ import annotations

import importlib

from llm_decoder.cli import _open
from llm_decoder.cli._options import ModelOptions, SamplingDefaults, ServerOptions
from llm_decoder.cli.serve import warn_if_open

PORT = 5000
# By name: apps never meet, and nothing of Flask is imported before a server is wanted.
_APP = "llm_decoder.web.app"


def web(*, server: ServerOptions, sampling: SamplingDefaults, model: ModelOptions) -> int:
    """Serve a chat page for the browser, and the OpenAI API beside it. The page is there before the model is loaded.

    llm-decoder web --model ./folder --port 5000
    """
    from llm_decoder.serving.logs import set_up

    service = _open.make_service(model, server, sampling, port=PORT)
    set_up(service.settings)
    warn_if_open(service.settings)
    code: int = importlib.import_module(_APP).serve(service)
    return code
