"""Best of n: whole answers that are sampled beside each other, and ranked."""

from __future__ import annotations

from dataclasses import fields, replace

from llm_decoder.outputs import RequestOutput
from llm_decoder.sampling import SamplingParams
from llm_decoder.search.params import SearchParams

__all__ = ["ranked", "samples_of"]


def samples_of(params: SearchParams) -> SamplingParams:
    """What asks for all `width` answers of a search with method "sample"."""
    given = {field.name: getattr(params, field.name) for field in fields(SamplingParams)}
    return SamplingParams(**given | {"n": params.width})


def ranked(output: RequestOutput, params: SearchParams) -> RequestOutput:
    """The best n of the answers, by their log probability over a power of their length; the first come, among
    equals."""
    for completion in output.outputs:
        length = max(1, len(completion.token_ids))
        completion.beam_score = completion.cumulative_logprob / length**params.length_penalty
    best = sorted(output.outputs, key=lambda completion: -(completion.beam_score or 0.0))[: params.n]
    return replace(output, outputs=[replace(completion, index=i) for i, completion in enumerate(best)])
