"""Server-sent events out of bytes that come in pieces (HTML living standard, section 9.2)."""

from __future__ import annotations

__all__ = ["DONE", "EventReader"]

DONE = b"[DONE]"
_MAX_EVENT_BYTES = 64 << 20


class EventReader:
    """Keeps what is not a whole line yet. Every line of data is an event, as servers of the OpenAI API send them."""

    def __init__(self) -> None:
        self._rest = b""
        self._name = ""

    def push(self, piece: bytes) -> list[bytes]:
        """The data of the events that `piece` completes. Raises ValueError for a line that never ends."""
        return [data for _, data in self.push_named(piece)]

    def push_named(self, piece: bytes) -> list[tuple[str, bytes]]:
        """The same with the names of the events, "" of those that have none."""
        lines = (self._rest + piece).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > _MAX_EVENT_BYTES:
            raise ValueError(f"an event of more than {_MAX_EVENT_BYTES >> 20} MiB")
        events = []
        for line in lines:
            if line.startswith(b"event:"):
                self._name = line[6:].strip().decode("utf-8", "replace")
            elif line.startswith(b"data:"):
                events.append((self._name, line[5:].strip()))
                self._name = ""
        return events
