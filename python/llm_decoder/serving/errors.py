"""Errors as clients of the OpenAI API know them: a status, and {"error": {message, type, param, code}}."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llm_decoder.errors import (
    EngineClosedError,
    InvalidRequestError,
    LLMDecoderError,
    NotEnoughMemoryError,
    QueueFullError,
    RequestFailedError,
)
from llm_decoder.serving.exchange import Reply

__all__ = ["HttpError", "as_http_error", "engine_died", "no_method", "no_route"]

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "overloaded_error",
    431: "invalid_request_error",
    500: "server_error",
    501: "unsupported_error",
    503: "unavailable_error",
}


class HttpError(LLMDecoderError):
    """An answer that refuses. `retry_after_s` becomes the header Retry-After."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["retry-after"] = str(retry_after_s)

    def body(self) -> dict[str, Any]:
        """What the client reads, also as an event of a stream that has begun."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def reply(self) -> Reply:
        return Reply.of_json(self.body(), self.status, self.headers)


def engine_died() -> HttpError:
    """No later request will do better: there is no Retry-After."""
    return HttpError(503, "[server] its engine has died; the server's log says why", code="failed")


def no_route(path: str) -> HttpError:
    return HttpError(404, f"[path] there is no route {path[:100]}; /docs lists them", code="no_such_route")


def no_method(method: str, path: str, allowed: Iterable[str]) -> HttpError:
    """allowed: the methods that the path has."""
    methods = ", ".join(sorted(allowed))
    text = f"[method] {path[:100]} takes {methods}, got {method[:20]}"
    return HttpError(405, text, code="no_such_method", headers={"allow": methods})


def as_http_error(error: BaseException) -> HttpError:
    """What a client is told of `error`. Of an error that is not ours it learns nothing: its text may hold paths,
    addresses, or another's words; the log has it."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, InvalidRequestError) and error.code == "no_tokenizer":
        # The error itself names the model's folder.
        text = f"[{error.param}] the model came without a tokenizer; give token ids, and stop_token_ids for stop"
        return HttpError(400, text, param=error.param, code=error.code)
    if isinstance(error, InvalidRequestError):
        return HttpError(400, str(error), param=error.param, code=error.code)
    if isinstance(error, RequestFailedError) and error.param is not None and _is_ours(error):
        return HttpError(400, str(error), param=error.param, code="cannot_be_answered")
    if isinstance(error, QueueFullError):
        return HttpError(429, str(error), code="queue_full", retry_after_s=1)
    if isinstance(error, EngineClosedError) and error.__cause__ is not None:
        return engine_died()
    if isinstance(error, EngineClosedError):
        return HttpError(503, "[server] it is shutting down; try another one", code="closing", retry_after_s=5)
    if isinstance(error, NotEnoughMemoryError):
        return HttpError(400, str(error), code="not_enough_memory")
    return HttpError(500, "[server] the request failed on our side; the server's log has the reason", code="failed")


def _is_ours(error: RequestFailedError) -> bool:
    """Not what a scorer has raised: that stands in the error's text."""
    return error.__cause__ is None or isinstance(error.__cause__, LLMDecoderError)
