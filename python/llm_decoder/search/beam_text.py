"""Whether a beam's answer is over: end tokens, stop strings and grammars, followed along each branch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from llm_decoder.detokenizer import Detokenizer, StopMatcher, TextDecoder
from llm_decoder.grammars import Follower
from llm_decoder.sequence import Request

__all__ = ["BeamText", "text_of"]


class BeamText:
    """Of one beam, or of a continuation that may become one. It is never changed: `grown` makes another."""

    __slots__ = ("_detokenizer", "_matcher", "_n_tokens", "_request", "finish_reason", "follower", "stop_reason")

    def __init__(self, request: Request, tokenizer: TextDecoder) -> None:
        params = request.params
        self._request = request
        self._n_tokens = 0
        self._matcher = StopMatcher(params.stop) if params.stop else None
        self._detokenizer = Detokenizer(tokenizer, request.prompt_token_ids[-16:], params.skip_special_tokens)
        self.follower: Follower | None = None if request.grammar is None else request.grammar.follow()
        self.finish_reason: Literal["stop"] | None = None
        self.stop_reason: str | int | None = None

    def grown(self, token: int) -> BeamText:
        """One token later. Raises RequestFailedError when the grammar cannot be followed."""
        request = self._request
        other = BeamText.__new__(BeamText)
        other._request = request
        other._n_tokens = self._n_tokens + 1
        other._matcher, other._detokenizer, other.follower = self._matcher, self._detokenizer, self.follower
        other.finish_reason, other.stop_reason = None, None
        if other.follower is not None:
            other.follower = other.follower.copy()
            other.follower.advance(token)
            other._end_if(other.follower.is_complete)
        if token in request.stop_ids:
            other._end_if(True, None if token in request.eos_token_ids else token)
        elif self._matcher is not None:
            other._matcher, other._detokenizer = self._matcher.copy(), self._detokenizer.copy()
            text = other._detokenizer.push((token,))
            if other._n_tokens >= request.params.min_tokens:
                _, stop = other._matcher.push(text)
                other._end_if(stop is not None, stop)
        return other

    def _end_if(self, is_over: bool, stop_reason: str | int | None = None) -> None:
        if is_over:
            self.finish_reason = "stop"
            self.stop_reason = stop_reason


def text_of(request: Request, tokenizer: TextDecoder, tokens: Sequence[int], reason: str) -> str:
    """The text of an answer, without its end token or stop string unless these are asked for."""
    params = request.params
    detokenizer = Detokenizer(tokenizer, request.prompt_token_ids[-16:], params.skip_special_tokens)
    if reason == "stop" and tokens[-1] in request.stop_ids and not params.include_stop_str_in_output:
        tokens = tokens[:-1]
    n_before = max(0, params.min_tokens - 1)  # tokens among which no stop string ends an answer
    text = detokenizer.push(tokens[:n_before])
    rest = detokenizer.push(tokens[n_before:]) + detokenizer.flush()
    if not params.stop:
        return text + rest
    matcher = StopMatcher(params.stop, params.include_stop_str_in_output)
    found, stop = matcher.push(rest)
    return text + found + ("" if stop is not None else matcher.flush())
