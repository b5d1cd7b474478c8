"""Server-sent events out of bytes that come in pieces (HTML living standard, section 9.2)."""

from __future__ import annotations

__all__ = ["DONE", "EventReader"]

DONE = b"[DONE]"
_MAX_EVENT_BYTES = 64 << 20


class EventReader:
    """Keeps what is not a whole line yet. Only `data` is looked at; every line of it is an event, as servers of the
    OpenAI API send them."""

    def __init__(self) -> None:
        self._rest = b""

    def push(self, piece: bytes) -> list[bytes]:
        """The data of the events that `piece` completes. Raises ValueError for a line that never ends."""
        lines = (self._rest + piece).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > _MAX_EVENT_BYTES:
            raise ValueError(f"an event of more than {_MAX_EVENT_BYTES >> 20} MiB")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]
