"""API keys, compared so that an answer's time tells nothing about them."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

__all__ = ["ApiKeys"]


class ApiKeys:
    """The keys that open a server; without any it is open, and this is false. Kept as digests: all have one length, and
    a dump of the process shows no key."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(_digest(key) for key in keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accepts(self, key: str | bytes) -> bool:
        """Every key is compared, whichever it is."""
        digest = _digest(key)
        is_known = False
        for own in self._digests:
            is_known |= hmac.compare_digest(own, digest)
        return is_known


def _digest(key: str | bytes) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key).digest()
