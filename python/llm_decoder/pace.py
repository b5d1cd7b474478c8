"""How much of a prompt a step takes while somebody reads along.

A step of decodes alone is short, one with 512 tokens of a prompt beside them many times as long, and everybody who
reads an answer sees it stop for so long. Smaller chunks cost the prompt some time and the step next to nothing, for
the decodes beside them pay for the reading of the weights anyway.
"""

from __future__ import annotations

from llm_decoder.speculation import StepCost

__all__ = ["Pace"]


class Pace:
    """The largest chunk that leaves a step at most STRETCH times as long as one in which everybody who is here decodes,
    by what steps have taken so far. It decides when a prompt is computed, and never what is answered.

    Everybody, those too whose prompts are not computed yet: where the few that decode set the measure, steps are short,
    prompts wait longer, and fewer still decode.
    """

    # Steps with chunks are the long ones among the times between tokens: their p99 stays below three times the median.
    STRETCH = 2.75
    # A prompt that waits for less than that would take a second for what is done in a tenth.
    LEAST_TOKENS = 64
    _FADE = 1 / 8

    __slots__ = ("_step_cost", "prompt_token_s")

    def __init__(self, step_cost: StepCost) -> None:
        self._step_cost = step_cost
        self.prompt_token_s = 0.0  # that a token of a prompt adds to a step; 0: not known yet

    def learn(self, n_decodes: int, n_prompt_tokens: int, seconds: float) -> None:
        """A step with tokens of prompts took so long; of drafts it had none."""
        token_s = max(0.0, seconds - self._step_cost.seconds(n_decodes)) / n_prompt_tokens
        if not self.prompt_token_s:
            self.prompt_token_s = token_s
        else:
            token_s = min(token_s, 2.0 * self.prompt_token_s)  # more is an interruption
            self.prompt_token_s += self._FADE * (token_s - self.prompt_token_s)

    def most_prompt_tokens(self, n_decodes: int, n_sequences: int, limit: int) -> int:
        """Beside n_decodes of the n_sequences that are here; `limit` while too little is known."""
        decode_s = self._step_cost.seconds(n_decodes)
        if not decode_s or not self.prompt_token_s:
            return limit
        most_s = self.STRETCH * self._step_cost.seconds(n_sequences)
        return min(limit, max(self.LEAST_TOKENS, int((most_s - decode_s) / self.prompt_token_s)))
