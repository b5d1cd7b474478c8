"""How likely the model itself finds an answer behind a query: a scorer without a second model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from llm_decoder.engine import RequestHandle

__all__ = ["likelihoods"]


def likelihoods(
    submit: Callable[[list[int]], RequestHandle], prefix: list[int], answers: Sequence[list[int]], vocab_size: int
) -> list[float]:
    """The mean log probability, of the raw logits, of the tokens of each answer behind those of `prefix`. An answer
    without tokens counts as a token drawn blindly: -log(vocab_size).

    submit: asks for the log probabilities of a prompt. Raises what the requests fail with.
    """
    handles = {tuple(answer): submit([*prefix, *answer]) for answer in answers if answer}
    means = {answer: _mean(handle, len(prefix)) for answer, handle in handles.items()}
    return [means.get(tuple(answer), -math.log(vocab_size)) for answer in answers]


def _mean(handle: RequestHandle, n_prefix: int) -> float:
    entries = (handle.result().prompt_logprobs or [])[n_prefix:]
    return math.fsum(entry.logprob for entry in entries if entry is not None) / len(entries)
