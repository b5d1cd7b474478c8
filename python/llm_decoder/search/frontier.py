"""The live beams of a search as its events tell of them: their scores, and the texts that they have so far."""

from __future__ import annotations

from dataclasses import dataclass

from llm_decoder.detokenizer import Detokenizer, TextDecoder
from llm_decoder.outputs import SearchStep, StreamEvent

__all__ = ["Frontier", "LiveBeam"]


@dataclass(frozen=True, slots=True)
class LiveBeam:
    """leaf: its node of the tree. score: of that node. tail: its text behind what has left the search as events."""

    leaf: int
    score: float
    tail: str


class Frontier:
    """For one search. decoder: makes texts of tokens, None = beams have none."""

    def __init__(self, decoder: TextDecoder | None) -> None:
        self._decoder = decoder
        # Of the live beams, by their nodes: what goes on with a beam's text, the text, the score.
        self._beams: dict[int, tuple[Detokenizer | None, str, float]] = {}
        self._n_sent_chars = 0

    def take(self, event: StreamEvent) -> dict[int, str]:
        """What each node that the event brings adds to the text of those above it."""
        if event.index == 0:
            self._n_sent_chars += len(event.text)
        if event.search is None:
            return {}
        if not self._beams:
            root = None if self._decoder is None else Detokenizer(self._decoder, event.prompt_token_ids[-16:])
            self._beams[0] = (root, "", 0.0)
        return self._grow(event.search)

    def _grow(self, step: SearchStep) -> dict[int, str]:
        texts: dict[int, str] = {}
        grown = self._beams.copy()
        for node in step.nodes:
            above, text, _ = grown[node.parent]
            detokenizer = None if above is None else above.copy()
            texts[node.id] = "" if detokenizer is None else detokenizer.push((node.token_id,))
            grown[node.id] = (detokenizer, text + texts[node.id], node.score)
        self._beams = {node: grown[node] for node in step.live}
        return texts

    @property
    def live(self) -> list[LiveBeam]:
        """Those that go on, in the order of the search."""
        beams = self._beams.items()
        return [LiveBeam(leaf, score, text[self._n_sent_chars :]) for leaf, (_, text, score) in beams]
