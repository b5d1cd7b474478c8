"""A search as it goes: what all answers have in common that may still be the best, and what each turn did."""

from __future__ import annotations

from llm_decoder.detokenizer import Detokenizer, StopMatcher, TextDecoder
from llm_decoder.outputs import CandidateScores, Completion, SearchStep, StreamEvent
from llm_decoder.search.group import SearchGroup
from llm_decoder.sequence import Request

__all__ = ["SearchStream"]


class SearchStream:
    """Makes the events of one search. The texts of index 0, joined, are the text of the best answer: what has left is
    common to all that can still become it, so nothing is ever taken back."""

    def __init__(self, request: Request, tokenizer: TextDecoder) -> None:
        params = request.params
        self._request = request
        self._detokenizer = Detokenizer(tokenizer, request.prompt_token_ids[-16:], params.skip_special_tokens)
        self._matcher = StopMatcher(params.stop, params.include_stop_str_in_output) if params.stop else None
        self._n_tokens = 0
        self._n_chars = 0
        self._n_steps = 0

    def after_turn(self, group: SearchGroup) -> StreamEvent:
        """What the last turn has decided and done."""
        n_tokens = group.n_decided(self._n_tokens)
        tokens = group.decided_tokens(n_tokens)[self._n_tokens :]
        text = "".join(self._text_of(token, self._n_tokens + 1 + i) for i, token in enumerate(tokens))
        self._n_chars += len(text)
        event = StreamEvent(0, text, tokens, prompt_token_ids=self._request.prompt_token_ids)
        if self._request.params.logprobs is not None:
            event.logprobs = group.decided_entries(n_tokens)[self._n_tokens :]
        self._n_tokens = n_tokens
        self._n_steps += 1
        pruned, group.pruned = tuple(group.pruned), []
        event.search = SearchStep(
            step=self._n_steps,
            nodes=tuple(group.tree.nodes[node] for node in group.new_nodes),
            pruned=pruned,
            live=tuple(beam.node for beam in group.live),
            n_finished=len(group.answers()),
        )
        return event

    def _text_of(self, token: int, n_tokens: int) -> str:
        """What the n-th token adds to the text; nothing what ends it."""
        request = self._request
        if token in request.stop_ids and not request.params.include_stop_str_in_output:
            return ""
        text = self._detokenizer.push((token,))
        if self._matcher is not None and n_tokens >= request.params.min_tokens:
            text, _ = self._matcher.push(text)
        return text

    def last(
        self, completions: list[Completion], rerank: tuple[CandidateScores, ...] | None = None
    ) -> list[StreamEvent]:
        """The scores where there are any, the rest of the best answer, and the others whole."""
        events: list[StreamEvent] = []
        if rerank is not None:
            events.append(StreamEvent(0, "", [], prompt_token_ids=self._request.prompt_token_ids, rerank=rerank))
        for completion in completions:
            n_chars, n_tokens = (self._n_chars, self._n_tokens) if completion.index == 0 else (0, 0)
            events.append(
                StreamEvent(
                    completion.index,
                    completion.text[n_chars:],
                    completion.token_ids[n_tokens:],
                    completion.finish_reason,
                    None if completion.logprobs is None else completion.logprobs[n_tokens:],
                    stop_reason=completion.stop_reason,
                    prompt_token_ids=self._request.prompt_token_ids,
                )
            )
        return events
