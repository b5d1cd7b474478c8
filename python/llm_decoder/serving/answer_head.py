"""What every answer and every chunk of a stream begins with."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

import llm_decoder
from llm_decoder.serving.service import Service

__all__ = ["AnswerHead", "fingerprint"]


def fingerprint() -> str:
    """OpenAI's `system_fingerprint`: answers with one seed are the same as long as it is."""
    return f"llm_decoder-{llm_decoder.__version__}"


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """id, object, created, model, system_fingerprint of an answer. created_s: seconds since 1970."""

    id: str
    object: str
    created_s: int
    model: str

    @classmethod
    def make(cls, prefix: str, kind: str, service: Service, request_id: str | None = None) -> AnswerHead:
        """request_id: the client's own name for it."""
        return cls(prefix + (request_id or secrets.token_hex(12)), kind, int(time.time()), service.model_name)

    def body(self, choices: list[dict[str, Any]], kind: str | None = None) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind or self.object,
            "created": self.created_s,
            "model": self.model,
            "system_fingerprint": fingerprint(),
            "choices": choices,
        }
