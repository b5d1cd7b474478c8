"""How much of a prompt a step takes while somebody reads along.

A step of decodes alone is short, one with 512 tokens of a prompt beside them many times as long, and everybody who
reads an answer sees it stop for so long. Smaller chunks cost the prompt some time and the step next to nothing, for
the decodes beside them pay for the reading of the weights anyway.
"""

from __future__ import annotations

from llm_decoder.speculation import StepCost

__all__ = ["Pace"]


class Pace:
    """The largest chunk that leaves a step at most STRETCH times as long as its decodes alone would be, by what steps
    have taken so far. It decides when a prompt is computed, and never what is answered."""

    STRETCH = 3.0
    # A prompt that waits for less than that would take a second for what is done in a tenth.
    LEAST_TOKENS = 64
    _FADE = 1 / 8

    __slots__ = ("_prompt_token_s", "_step_cost")

    def __init__(self, step_cost: StepCost) -> None:
        self._step_cost = step_cost
        self._prompt_token_s = 0.0

    def learn(self, n_decodes: int, n_prompt_tokens: int, seconds: float) -> None:
        """A step with tokens of prompts took so long; of drafts it had none."""
        token_s = max(0.0, seconds - self._step_cost.seconds(n_decodes)) / n_prompt_tokens
        if not self._prompt_token_s:
            self._prompt_token_s = token_s
        else:
            token_s = min(token_s, 2.0 * self._prompt_token_s)  # more is an interruption
            self._prompt_token_s += self._FADE * (token_s - self._prompt_token_s)

    def most_prompt_tokens(self, n_decodes: int, limit: int) -> int:
        """Beside so many decodes; `limit` while too little is known."""
        decode_s = self._step_cost.seconds(n_decodes)
        if not decode_s or not self._prompt_token_s:
            return limit
        return min(limit, max(self.LEAST_TOKENS, int((self.STRETCH - 1.0) * decode_s / self._prompt_token_s)))
