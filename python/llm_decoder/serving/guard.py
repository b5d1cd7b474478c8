"""Who may come in: by which name the server was called, from which page, with which key."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import socket
from typing import Literal

from llm_decoder.serving.errors import HttpError
from llm_decoder.serving.exchange import Incoming, Reply
from llm_decoder.serving.keys import ApiKeys
from llm_decoder.serving.sessions import CSRF_HEADER, Sessions
from llm_decoder.serving.settings import ServerSettings

__all__ = ["EXPOSED_HEADERS", "Guard"]

# What a page of another origin may read of an answer, beside what every page may.
EXPOSED_HEADERS = "x-request-id, x-ignored-fields, retry-after"
# Probes call by whatever name they know; the answer tells no secret.
_FOR_EVERYBODY = frozenset({"/health"})
_SAFE_METHODS = frozenset({"GET", "HEAD"})
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::([0-9]{1,5}))?")
_HEADER_NAMES = re.compile(r"[A-Za-z0-9_, -]{1,1000}")


class Guard:
    """Both servers ask it before anything else of a request is looked at. `sessions`: the page opens them at a
    log-in."""

    def __init__(self, settings: ServerSettings) -> None:
        self._keys = ApiKeys(settings.api_keys)
        self.sessions = Sessions(self._keys)
        own_names = {"localhost", settings.host, socket.gethostname()}
        self._hosts = frozenset(name.lower().strip("[]") for name in (*own_names, *settings.allowed_hosts) if name)
        self._salt_secret = secrets.token_bytes(32) if settings.salt_by_key and self._keys else None
        self._origins = frozenset(origin.lower().rstrip("/") for origin in settings.cors_origins)

    @property
    def needs_key(self) -> bool:
        return bool(self._keys)

    def check(self, incoming: Incoming, access: Literal["key", "open"] = "key") -> None:
        """access: of the endpoint; "key" where there is none, so that who has no key learns nothing. The body is not
        looked at. Raises HttpError: 400, 401 or 403."""
        if incoming.path in _FOR_EVERYBODY:
            return
        self._check_host(incoming)
        self._check_origin(incoming, access)
        if access == "key" and self._keys:
            self._check_key(incoming)

    def salted(self, cache_salt: str | None, incoming: Incoming) -> str | None:
        """A request's own cache_salt, made different for each key and each session where the settings ask for it."""
        if self._salt_secret is None:
            return cache_salt
        _, _, key = incoming.headers.get("authorization", "").partition(" ")
        session = None if key else self.sessions.find(incoming.headers)
        who = key.strip() or (session.token if session is not None else "")
        text = f"{len(who)}:{who}{cache_salt or ''}"
        return hmac.new(self._salt_secret, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()

    def cors_headers(self, incoming: Incoming) -> dict[str, str]:
        """What lets a page of another origin, if it is one of ours, read the answer. No cookies: such a page brings a
        key."""
        origin = incoming.headers.get("origin")
        if not self._origins or origin is None:
            return {}
        if not self._is_listed(origin):
            return {"vary": "origin"}
        return {
            "access-control-allow-origin": origin,
            "access-control-expose-headers": EXPOSED_HEADERS,
            "vary": "origin",
        }

    def preflight(self, incoming: Incoming) -> Reply | None:
        """The answer to a browser that asks whether a page of another origin may call; None when it does not ask."""
        asked = incoming.headers.get("access-control-request-method")
        if incoming.method != "OPTIONS" or asked is None or "origin" not in incoming.headers:
            return None
        if not self._is_listed(incoming.headers["origin"]):
            return _foreign_origin().reply()
        headers = self.cors_headers(incoming) | {
            "access-control-allow-methods": "GET, POST, DELETE",
            "access-control-max-age": "600",
        }
        wanted = incoming.headers.get("access-control-request-headers", "")
        if _HEADER_NAMES.fullmatch(wanted):
            headers["access-control-allow-headers"] = wanted
        return Reply(b"", 204, headers=headers)

    # -- one question each

    def _check_host(self, incoming: Incoming) -> None:
        """A page whose name was made to point at this machine (DNS rebinding) calls us by that name. A number in its
        place cannot be made to point anywhere."""
        host = incoming.headers.get("host")
        if host is None or "*" in self._hosts:  # HTTP/1.0 has none, and no browser speaks it
            return
        match = _HOST.fullmatch(host.lower())
        if match is None:
            raise HttpError(400, "[host] need a name or an address", code="bad_host")
        name = match[1].strip("[]").rstrip(".")
        if name in self._hosts or _is_address(name) or self._is_below(name):
            return
        raise HttpError(
            403,
            f"[host] {name[:100]!r} is none of the names of this server; start it with --allowed-hosts to add it",
            code="unknown_host",
        )

    def _is_below(self, name: str) -> bool:
        """*.example.com stands for what is below example.com."""
        return any(pattern.startswith("*.") and name.endswith(pattern[1:]) for pattern in self._hosts)

    def _check_origin(self, incoming: Incoming, access: str) -> None:
        origin = incoming.headers.get("origin")
        if origin is not None:
            is_foreign = not (self._is_listed(origin) or _is_own(origin, incoming.headers.get("host", "")))
        else:
            # An image, a frame or a link of another page: it has no Origin, and would make the model work.
            is_embedded = incoming.headers.get("sec-fetch-site") in ("cross-site", "same-site")
            is_foreign = is_embedded and access == "key" and "*" not in self._origins
        if is_foreign:
            raise _foreign_origin()

    def _is_listed(self, origin: str) -> bool:
        return "*" in self._origins or origin.lower() in self._origins

    def _check_key(self, incoming: Incoming) -> None:
        scheme, _, key = incoming.headers.get("authorization", "").partition(" ")
        if key:
            if scheme.lower() == "bearer" and self._keys.accepts(key.strip().encode("latin-1", "replace")):
                return
            raise _unauthorized("[authorization] the API key is none of this server's")
        session = self.sessions.find(incoming.headers)
        if session is None:
            raise _unauthorized("[authorization] need an API key, in the header Authorization: Bearer KEY")
        if incoming.method not in _SAFE_METHODS:
            given = incoming.headers.get(CSRF_HEADER, "").encode("latin-1", "replace")
            if not hmac.compare_digest(given, session.csrf.encode()):
                raise HttpError(403, f"[{CSRF_HEADER}] need the page's token; load the page again", code="csrf")


def _unauthorized(message: str) -> HttpError:
    return HttpError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def _foreign_origin() -> HttpError:
    return HttpError(
        403, "[origin] pages of another origin may not call; start the server with --cors-origins", code="origin"
    )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_own(origin: str, host: str) -> bool:
    """Whether the page came from this server: the same name and port, as the browser calls it."""
    scheme, _, place = origin.lower().partition("://")
    port = f":{_DEFAULT_PORTS.get(scheme, '')}"
    return bool(place) and place.removesuffix(port) == host.lower().removesuffix(port)
