"""What an engine does for the searches among its requests: begins them, makes offers of rows, gathers the answers."""

from __future__ import annotations

from collections.abc import Sequence as AnySequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from llm_decoder.batch import SamplingBatch
from llm_decoder.detokenizer import TextDecoder
from llm_decoder.outputs import Completion, FinishReason, TokenLogprob
from llm_decoder.search.beam_text import BeamText, text_of
from llm_decoder.search.group import Answer, Offer, SearchGroup
from llm_decoder.search.params import SearchParams
from llm_decoder.search.ranking import by_beam_score, with_beam_scores
from llm_decoder.search.stream import SearchStream
from llm_decoder.sequence import Request, Sequence

if TYPE_CHECKING:
    from llm_decoder.backends import Backend
    from llm_decoder.scheduler import Scheduler

__all__ = ["begin_search", "candidates_of", "make_offers"]


def begin_search(request: Request, root: Sequence, tokenizer: TextDecoder, scheduler: Scheduler) -> None:
    """Gives the request its group, with one beam at the prompt. Samples have none: nobody compares them before they
    are whole."""
    params = cast(SearchParams, request.params)
    if params.method == "beam":
        root.speculation = None
        text = BeamText(request, tokenizer)
        request.group = SearchGroup(request, params, root, text, fork=scheduler.fork, release=scheduler.remove)
    if request.stream:
        request.search_stream = SearchStream(request, tokenizer)


def make_offers(
    backend: Backend, sequences: AnySequence[Sequence], rows: AnySequence[int], sampling: SamplingBatch
) -> list[Offer]:
    """An offer for each of these beams, whose logits are in `rows` of the last step."""
    groups = [cast(SearchGroup, sequence.request.group) for sequence in sequences]
    wanted = [-1 if group.params.logprobs is None else group.params.logprobs for group in groups]
    n = min(backend.vocab_size, max(group.n_offered for group in groups))
    params = sampling.params(list(sequences))
    found = backend.continuations(np.array(rows, np.int32), params, n, max(wanted))
    offers: list[Offer] = []
    for i, (group, n_top) in enumerate(zip(groups, wanted, strict=True)):
        tokens, scores, keys, logprobs, ranks, top_ids, top_logprobs = (values[i] for values in found)
        count = group.n_offered
        entries = None if n_top < 0 else _entries(tokens, logprobs, ranks, top_ids[:n_top], top_logprobs[:n_top])
        offers.append(Offer(tokens[:count], scores[:count], keys[:count], logprobs[:count], entries))
    return offers


def _entries(tokens: npt.NDArray[np.int32], logprobs: Any, ranks: Any, top_ids: Any, top: Any) -> list[TokenLogprob]:
    alternatives = tuple(zip(top_ids.tolist(), top.tolist(), strict=True))
    return [
        TokenLogprob(token, logprob, rank, alternatives)
        for token, logprob, rank in zip(tokens.tolist(), logprobs.tolist(), ranks.tolist(), strict=True)
        if token >= 0
    ]


def candidates_of(request: Request, tokenizer: TextDecoder, reason: FinishReason) -> list[Completion]:
    """All whole answers, the best first. A search that was ended by `reason` before it had n of them has those of its
    live beams too."""
    group = request.group
    if group is None:
        params = cast(SearchParams, request.params)
        return by_beam_score(with_beam_scores([sequence.completion() for sequence in request.sequences], params))
    answers = group.answers()
    if len(answers) < request.params.n:
        answers += group.unfinished(reason)
    return by_beam_score([_completion(request, answer, tokenizer) for answer in answers])


def _completion(request: Request, answer: Answer, tokenizer: TextDecoder) -> Completion:
    return Completion(
        index=0,
        text=text_of(request, tokenizer, answer.tokens, answer.reason),
        token_ids=answer.tokens,
        cumulative_logprob=answer.cumulative_logprob,
        logprobs=None if request.params.logprobs is None else list(answer.entries),
        finish_reason=answer.reason,
        stop_reason=answer.stop_reason,
        beam_score=answer.score,
        tree_leaf=answer.node,
    )
