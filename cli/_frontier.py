"""A search as it goes: what is decided, the beams that may still win, and counts."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from llm_decoder.cli._output import note, without_controls
from llm_decoder.detokenizer import Detokenizer, TextDecoder

if TYPE_CHECKING:
    from rich.console import RenderableType

    from llm_decoder.outputs import SearchStep, StreamEvent

_TAIL = 60  # characters of a beam
_DECIDED = 500


class Frontier:
    """What the events of a search have told so far.

    text: what all answers begin with that may still be the best. beams: (score, what a beam has beyond that text), in
    the order of the search.
    """

    def __init__(self, tokenizer: TextDecoder) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, tuple[Detokenizer, str]] = {}
        self.text = ""
        self.beams: list[tuple[float, str]] = []
        self.n_steps = 0
        self.n_finished = 0
        self.n_pruned = 0
        self._scores: dict[int, float] = {}

    def take(self, event: StreamEvent) -> None:
        if event.index:
            return
        self.text += event.text
        if event.search is not None:
            self._take_step(event.search, event)

    def _take_step(self, step: SearchStep, event: StreamEvent) -> None:
        if not self._texts:
            self._texts[0] = Detokenizer(self._tokenizer, event.prompt_token_ids[-16:]), ""
        for node in step.nodes:
            above, text = self._texts[node.parent]
            detokenizer = above.copy()
            self._texts[node.id] = detokenizer, text + detokenizer.push((node.token_id,))
            self._scores[node.id] = node.score
        self._texts = {node: self._texts[node] for node in step.live}
        self._scores = {node: self._scores[node] for node in step.live}
        self.beams = [(self._scores[node], self._texts[node][1][len(self.text) :]) for node in step.live]
        self.n_steps, self.n_finished = step.step, step.n_finished
        self.n_pruned += len(step.pruned)

    @property
    def counts(self) -> str:
        return f"step {self.n_steps}: {len(self.beams)} live, {self.n_finished} finished, {self.n_pruned} let go"

    def drawn(self) -> RenderableType:
        """For a terminal."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        beams = Table.grid(padding=(0, 2, 0, 0))
        for score, text in self.beams:
            tail = _end(without_controls(text).replace("\n", "↵"), _TAIL)
            beams.add_row(Text(f"{score:9.3f}", style="dim"), Text(tail, overflow="ellipsis", no_wrap=True))
        decided = Text(_end(without_controls(self.text).strip(), _DECIDED))
        return Group(decided, beams, Text(self.counts, style="dim"))


def _end(text: str, n_chars: int) -> str:
    return text if len(text) <= n_chars else "…" + text[-n_chars + 1 :]


@contextlib.contextmanager
def showing(tokenizer: TextDecoder) -> Iterator[Callable[[StreamEvent], None]]:
    """What events are handed to: drawn anew each time on a terminal's standard error, and gone at the end; elsewhere a
    line a step."""
    frontier = Frontier(tokenizer)
    if not sys.stderr.isatty():

        def tell(event: StreamEvent) -> None:
            frontier.take(event)
            if event.search is not None:
                note(f"{frontier.counts} | {frontier.text.strip()!r}")

        yield tell
        return
    from rich.console import Console
    from rich.live import Live

    lines = Console(
        stderr=True, highlight=False
    )  # unlike `console`, it wraps: what is drawn again must know its height
    with Live(console=lines, transient=True, refresh_per_second=12) as live:

        def draw(event: StreamEvent) -> None:
            frontier.take(event)
            live.update(frontier.drawn())

        yield draw
