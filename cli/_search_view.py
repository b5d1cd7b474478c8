"""A search as it goes: what is decided, the beams that may still win, and counts."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from llm_decoder.cli._output import note, without_controls

if TYPE_CHECKING:
    from rich.console import RenderableType

    from llm_decoder.outputs import StreamEvent
    from llm_decoder.search.frontier import LiveBeam

_TAIL = 60  # characters of a beam
_DECIDED = 500


class SearchView:
    """What the events of a search have told so far. text: what all answers begin with that may still be the best."""

    def __init__(self) -> None:
        self.text = ""
        self.beams: Sequence[LiveBeam] = ()
        self.n_steps = 0
        self.n_finished = 0
        self.n_pruned = 0

    def take(self, event: StreamEvent, beams: Sequence[LiveBeam]) -> None:
        """beams: those that are live after it."""
        if event.index == 0:
            self.text += event.text
        if event.search is not None:
            self.beams = beams
            self.n_steps, self.n_finished = event.search.step, event.search.n_finished
            self.n_pruned += len(event.search.pruned)

    @property
    def counts(self) -> str:
        return f"step {self.n_steps}: {len(self.beams)} live, {self.n_finished} finished, {self.n_pruned} let go"

    def drawn(self) -> RenderableType:
        """For a terminal."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        beams = Table.grid(padding=(0, 2, 0, 0))
        for beam in self.beams:
            tail = _end(without_controls(beam.tail).replace("\n", "↵"), _TAIL)
            beams.add_row(Text(f"{beam.score:9.3f}", style="dim"), Text(tail, overflow="ellipsis", no_wrap=True))
        decided = Text(_end(without_controls(self.text).strip(), _DECIDED))
        return Group(decided, beams, Text(self.counts, style="dim"))


def _end(text: str, n_chars: int) -> str:
    return text if len(text) <= n_chars else "…" + text[-n_chars + 1 :]


@contextlib.contextmanager
def showing() -> Iterator[Callable[[StreamEvent, Sequence[LiveBeam]], None]]:
    """What events and the beams live after them are handed to: drawn anew each time on a terminal's standard error, and
    gone at the end; elsewhere a line a step."""
    view = SearchView()
    if not sys.stderr.isatty():

        def tell(event: StreamEvent, beams: Sequence[LiveBeam]) -> None:
            view.take(event, beams)
            if event.search is not None:
                note(f"{view.counts} | {view.text.strip()!r}")

        yield tell
        return
    from rich.console import Console
    from rich.live import Live

    lines = Console(
        stderr=True, highlight=False
    )  # unlike `console`, it wraps: what is drawn again must know its height
    with Live(console=lines, transient=True, refresh_per_second=12) as live:

        def draw(event: StreamEvent, beams: Sequence[LiveBeam]) -> None:
            view.take(event, beams)
            live.update(view.drawn())

        yield draw
