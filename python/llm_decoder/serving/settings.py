"""What a server may be told beside its model."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from llm_decoder.errors import ConfigError

__all__ = ["ServerSettings"]

_MAX_KEY_CHARS = 512
_AT_LEAST_ONE = (
    "max_requests",
    "max_prompts",
    "max_inputs",
    "max_n",
    "max_beam_width",
    "max_answer_tokens",
    "max_body_bytes",
    "max_header_bytes",
)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """api_keys: any of them opens the routes; none = all are open. served_model_name: the model's name for clients.
    cors_origins: pages of other origins that may call, "*" = any. allowed_hosts: names by which the server may be
    called beside its own address ("*" = any); against DNS rebinding. max_body_bytes, max_header_bytes: of a request.
    read_timeout_s: from the first byte of a request to its last, and for a client that does not read what it is sent.
    max_requests: open engine requests before 429. max_prompts: in a list. max_inputs: texts to make vectors of, or to
    score, in a list. max_n: answers a prompt. max_beam_width: beams of a search. max_answer_tokens: a request may ask
    for, over all its answers and beams. ping_s: silence in a stream before a comment is sent. drain_s: how long a
    server that ends lets answers go on. resume_s: how long a page's stream goes on when its reader is gone.
    salt_by_key: who comes with another key, or in another session of the page, finds no prefixes cached for others: how
    soon an answer begins tells nothing of theirs. log_prompts: bodies of requests may stand in the log. debug_kv: GET
    /debug/kv tells of each page of the KV cache. log_format: "text" or "json". Raises ConfigError.
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
    max_inputs: int = 2048
    max_n: int = 128
    max_beam_width: int = 64
    max_answer_tokens: int = 1 << 20
    ping_s: float = 15.0
    drain_s: float = 30.0
    resume_s: float = 15.0
    salt_by_key: bool = False
    log_prompts: bool = False
    debug_kv: bool = False
    log_format: str = "text"

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            _check(name, getattr(self, name) >= 1, "at least 1", getattr(self, name))
        for name in ("read_timeout_s", "ping_s"):
            _check(name, getattr(self, name) > 0, "more than 0 seconds", getattr(self, name))
        for name in ("drain_s", "resume_s"):
            _check(name, getattr(self, name) >= 0, "0 seconds or more", getattr(self, name))
        _check("port", 0 <= self.port <= 65535, "a port from 0 to 65535", self.port)
        _check("log_format", self.log_format in ("text", "json"), "text or json", self.log_format)
        for key in self.api_keys:
            is_key = key.isprintable() and key == key.strip() and 1 <= len(key) <= _MAX_KEY_CHARS
            _check("api_key", is_key, f"1 to {_MAX_KEY_CHARS} printable characters without spaces around", "another")
        for origin in self.cors_origins:
            is_origin = origin == "*" or ("://" in origin and origin.rstrip("/").count("/") == 2)
            _check("cors_origins", is_origin, "origins such as https://app.example, or *", repr(origin))

    def cannot_listen(self, error: OSError) -> ConfigError:
        """What `error`, of binding the port, means to who chose it."""
        why = str(error.strerror).rpartition(": ")[2]  # asyncio puts words of its own before
        return ConfigError(f"[port] cannot listen on {self.host}, port {self.port}: {why}; choose another")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can call."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def _check(name: str, is_good: bool, need: str, got: object) -> None:
    if not is_good:
        raise ConfigError(f"[{name}] need {need}, got {got}")
