"""Who is logged in at the page: a signed cookie that an API key has opened, and the token that proves a request is the
page's own."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llm_decoder.serving.keys import ApiKeys

__all__ = ["COOKIE", "CSRF_HEADER", "LIFETIME_S", "Session", "Sessions"]

COOKIE = "llm_decoder_session"
CSRF_HEADER = "x-csrf-token"
LIFETIME_S = 7 * 24 * 3600
_MAX_TOKEN_CHARS = 200


@dataclass(frozen=True, slots=True)
class Session:
    """token: the cookie's value. csrf: what the page sends in the header x-csrf-token with everything but GET and
    HEAD."""

    token: str
    csrf: str


class Sessions:
    """Sessions of one process: they end with it, at a logout, or after `lifetime_s` seconds. Safe to use from several
    threads."""

    def __init__(
        self, keys: ApiKeys, *, lifetime_s: float = LIFETIME_S, now_s: Callable[[], float] = time.time
    ) -> None:
        self._keys = keys
        self._lifetime_s = lifetime_s
        self._now_s = now_s
        self._secret = secrets.token_bytes(32)
        self._closed: dict[str, float] = {}  # token -> when it would have ended
        self._lock = threading.Lock()

    def open(self, key: str) -> Session | None:
        """A session for who knows a key; None for who does not."""
        if not self._keys.accepts(key):
            return None
        claim = f"{int(self._now_s())}.{secrets.token_urlsafe(18)}"
        return self._session(f"{claim}.{self._sign('session', claim)}")

    def find(self, headers: Mapping[str, str]) -> Session | None:
        """The session whose cookie a request has; None when it has none that is good. Names of headers in lower
        case."""
        for token in _cookies(headers.get("cookie", ""), COOKIE):
            if self._is_good(token):
                return self._session(token)
        return None

    def close(self, session: Session) -> None:
        """The cookie is worth nothing from here on, whoever has kept it."""
        now_s = self._now_s()
        with self._lock:
            self._closed = {token: end_s for token, end_s in self._closed.items() if end_s > now_s}
            self._closed[session.token] = _issued_s(session.token) + self._lifetime_s

    def cookie(self, session: Session, *, secure: bool = False) -> str:
        """The header Set-Cookie that gives the session to a browser. secure: it came over TLS."""
        return f"{COOKIE}={session.token}; Max-Age={int(self._lifetime_s)}{_attributes(secure)}"

    @staticmethod
    def no_cookie(*, secure: bool = False) -> str:
        """The header Set-Cookie that takes it away."""
        return f"{COOKIE}=; Max-Age=0{_attributes(secure)}"

    def _session(self, token: str) -> Session:
        return Session(token, self._sign("csrf", token))

    def _is_good(self, token: str) -> bool:
        claim, _, signature = token.rpartition(".")
        if len(token) > _MAX_TOKEN_CHARS or not token.isascii():
            return False
        if not hmac.compare_digest(signature, self._sign("session", claim)):
            return False
        with self._lock:
            is_closed = token in self._closed
        return not is_closed and self._now_s() < _issued_s(token) + self._lifetime_s

    def _sign(self, purpose: str, text: str) -> str:
        return hmac.new(self._secret, f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()


def _attributes(secure: bool) -> str:
    return "; Path=/; HttpOnly; SameSite=Strict" + "; Secure" * secure


def _issued_s(token: str) -> int:
    return int(token.partition(".")[0])


def _cookies(header: str, name: str) -> list[str]:
    """Every value of `name`: a browser may send several, of other paths or domains."""
    pairs = (part.strip().partition("=") for part in header.split(";"))
    return [value.strip('"') for found, _, value in pairs if found == name]
