"""Who lets the engine run ahead: launch a step before it has read the tokens that the step before drew."""

from __future__ import annotations

from llm_decoder.batch import has_penalty
from llm_decoder.sequence import Sequence

__all__ = ["waits_for_tokens"]


def waits_for_tokens(sequence: Sequence, guesses_pay: bool = False) -> bool:
    """Whether all tokens drawn so far must be read before a step with this sequence is planned, and that step's own
    before the next one. guesses_pay: they save more steps lately than waiting costs (speculation.Gain).

    How many tokens it has is known ahead, so min_tokens and max_tokens are no reason. What an end token or a stop
    string ends is computed once more, and what that draws is thrown away.
    """
    request = sequence.request
    if (
        sequence.wants_rows  # the rows themselves are read, while the decoder has them
        or request.group is not None  # what beams and steps go on from is chosen by their tokens
        or sequence.n_drafted  # what was guessed stands behind the last token, and as many are right as are drawn
    ):
        return True
    if not sequence.n_unread:
        return False
    return (
        sequence.seq_id < 0  # it is looked up in the prefix index by its tokens
        or sequence.follower is not None  # what the grammar allows next follows from the last token
        or bool(request.bad_runs)  # as does which of these runs would be complete
        or has_penalty(sequence)  # every token counts
        or (guesses_pay and sequence.speculation is not None)  # a guess behind it would come one step late
    )
