"""What a server may be told beside its model."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ServerSettings"]


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """api_keys: any of them opens the routes; none = all are open. served_model_name: the model's name for clients.
    cors_origins: pages of other origins that may call, "*" = any. allowed_hosts: names by which the server may be
    called beside its own address ("*" = any); against DNS rebinding. max_body_bytes, max_header_bytes: of a request.
    read_timeout_s: from the first byte of a request to its last. max_requests: open engine requests before 429.
    max_prompts: in a list. max_n: answers a prompt. max_answer_tokens: a request may ask for, over all its answers.
    ping_s: silence in a stream before a comment is sent. drain_s: how long a server that ends lets answers go on.
    resume_s: how long a page's stream goes on when its reader is gone. log_prompts: prompts and answers may stand in
    the log. log_format: "text" or "json".
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    served_model_name: str | None = None
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    max_body_bytes: int = 8 << 20
    max_header_bytes: int = 64 << 10
    read_timeout_s: float = 30.0
    max_requests: int = 256
    max_prompts: int = 256
    max_n: int = 128
    max_answer_tokens: int = 1 << 20
    ping_s: float = 15.0
    drain_s: float = 30.0
    resume_s: float = 15.0
    log_prompts: bool = False
    log_format: str = "text"
