"""A server's log: a line a request, as text or as JSON, with the id that the client was told and without prompts."""

from __future__ import annotations

import datetime
import json
import logging
import re
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_decoder.outputs import RequestOutput
from llm_decoder.serving.settings import ServerSettings

__all__ = ["LOGGER", "RequestLine", "request_id_of", "set_up"]

LOGGER = logging.getLogger("llm_decoder.server")
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:+/=-]{1,128}")
# Machines ask for these every few seconds; that all is well is no news.
_PROBED = frozenset({"/health", "/ready", "/metrics"})
_MAX_SHOWN = 200  # characters of what a client has chosen
_PLAIN = re.compile(r"[A-Za-z0-9_.:/+@%~-]+")


def request_id_of(headers: Mapping[str, str]) -> str:
    """The client's x-request-id where it is one that can stand in headers and logs, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"


@dataclass(slots=True)
class RequestLine:
    """What the log says of one request. path: without the query, which may hold a prompt."""

    request_id: str
    method: str
    path: str
    client: str = ""
    status: int = 0
    duration_s: float = 0.0
    n_sent_bytes: int = 0
    end: str = "complete"  # or "cancelled": the client went away; "failed": an error after the first byte
    code: str | None = None
    ignored_fields: str | None = None
    body: str | None = None  # only with log_prompts
    tokens: dict[str, Any] = field(default_factory=dict)

    def note_outputs(self, outputs: Sequence[RequestOutput]) -> None:
        """Counts of what the engine did for it."""
        if outputs:
            metrics = [output.metrics for output in outputs]
            self.tokens = {
                "n_prompt_tokens": sum(item.n_prompt_tokens for item in metrics),
                "n_cached_tokens": sum(item.n_cached_tokens for item in metrics),
                "n_generated_tokens": sum(item.n_generated_tokens for item in metrics),
                "queue_s": round(max(item.queue_s for item in metrics), 6),
                "time_to_first_token_s": round(max(item.time_to_first_token_s for item in metrics), 6),
            }

    def write(self) -> None:
        fields = {
            "request_id": self.request_id,
            "method": self.method[:_MAX_SHOWN],
            "path": self.path[:_MAX_SHOWN],
            "status": self.status,
            "duration_s": round(self.duration_s, 6),
            "end": self.end,
            "client": self.client,
            "n_sent_bytes": self.n_sent_bytes,
            **self.tokens,
            "code": self.code,
            "ignored_fields": self.ignored_fields,
            "body": self.body,
        }
        is_probe = self.path in _PROBED and self.status == 200
        LOGGER.log(
            logging.DEBUG if is_probe else logging.INFO,
            "request",
            extra={"fields": {name: value for name, value in fields.items() if value is not None}},
        )


def set_up(settings: ServerSettings) -> None:
    """Writes the log to standard error. For the program that is the server: a library leaves logging alone."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if settings.log_format == "json" else _TextLines())
    for name in ("llm_decoder", "uvicorn", "waitress"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.INFO)


def _time(record: logging.LogRecord) -> str:
    time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return getattr(record, "fields", {})


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class _TextLines(logging.Formatter):
    """name=value, quoted where a value has anything but plain characters: nobody writes lines of his own."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={_quoted(value)}" for name, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname.lower()} {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _quoted(value: Any) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
