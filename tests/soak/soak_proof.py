"""Proves, while an engine runs, that its cache is whole."""

from __future__ import annotations

from llm_decoder.engine_core import EngineCore
from llm_decoder.llm import LLM


class Proof:
    """Proves after every `every`-th step that no page is lost: each is free, held or cached."""

    def __init__(self, core: EngineCore, every: int = 1) -> None:
        self.n_checks = 0
        self._core = core
        self._every = every
        self._n_steps = 0
        self._step = core.step
        core.step = self._checked_step  # type: ignore[method-assign]

    def _checked_step(self) -> bool:
        has_worked = self._step()
        self._n_steps += 1
        if self._n_steps % self._every == 0:
            self._core.backend.cache.check_integrity()
            self.n_checks += 1
        return has_worked

    def lost(self) -> dict[str, int]:
        """What the cache still holds; nothing when nobody asks."""
        stats = self._core.backend.cache.stats()
        return {name: stats[name] for name in ("n_held", "n_sequences", "n_pinned") if stats[name]}


def core_of(llm: LLM) -> EngineCore:
    core = llm._engine._worker.core
    assert core is not None
    return core
