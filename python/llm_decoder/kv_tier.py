"""Is what lies in the second tier of the KV cache brought back, or computed again?

A token in the tier costs the bytes of its keys and values on the bus; computed again it costs its share of a step. Both
are measured as they come, and what costs less is done, for sequences that gave way and come back (that is the choice
between preemption by swap and by recompute) and for prefixes of new ones alike. It decides the speed and never what is
answered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_decoder.pace import Pace

if TYPE_CHECKING:
    from llm_decoder.backends import KvCache
    from llm_decoder.sequence import Sequence

__all__ = ["KvTier"]


class KvTier:
    """n_swapped, n_recomputed: sequences that gave way and came back, with pages out of the tier and without."""

    def __init__(self, cache: KvCache, pace: Pace | None) -> None:
        """pace: None = what is in the tier is always brought back."""
        self._cache = cache
        self._pace = pace
        self._token_bytes = sum(cache.page_bytes()) / cache.page_size
        self.n_swapped = self.n_recomputed = 0

    @property
    def is_worth_loading(self) -> bool:
        """Until both costs are known a load is tried: that measures one of them."""
        n_bytes, seconds = self._cache.load_times()
        if not n_bytes or self._pace is None or not self._pace.prompt_token_s:
            return True
        return self._token_bytes * seconds / n_bytes <= self._pace.prompt_token_s

    def note_admission(self, sequence: Sequence) -> None:
        """It has pages again, or is about to have them."""
        if not sequence.gave_way:
            return
        sequence.gave_way = False
        if self._cache.n_tier_tokens(sequence.seq_id):
            self.n_swapped += 1
        else:
            self.n_recomputed += 1
