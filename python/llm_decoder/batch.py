"""What crosses into the core each step, in arrays that are made once: the ragged batch, and the sampler's
parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llm_decoder.sequence import Sequence

__all__ = ["SamplingBatch", "StepBatch"]

WANT_NONE, WANT_LAST, WANT_ALL = 0, 1, 2


class StepBatch:
    """One ragged step: prompt chunks and single tokens alike.

    tokens int32 [n_tokens], sequences one after the other; seq_ids int64 [n_seqs]; counts int32 [n_seqs]; want uint8
    [n_seqs]: 0 no logits, 1 of the last token, 2 of every token. All are views, good until the next fill.
    """

    def __init__(self, max_tokens_per_step: int) -> None:
        self._tokens = np.empty(max_tokens_per_step, np.int32)
        self._seq_ids = np.empty(max_tokens_per_step, np.int64)
        self._counts = np.empty(max_tokens_per_step, np.int32)
        self._want = np.empty(max_tokens_per_step, np.uint8)
        self.fill([])

    def fill(self, sequences: list[Sequence]) -> None:
        """Takes n_scheduled tokens of each sequence."""
        n_tokens = 0
        for i, sequence in enumerate(sequences):
            count = sequence.n_scheduled
            if count == 1:
                self._tokens[n_tokens] = sequence.next_token()
            else:
                self._tokens[n_tokens : n_tokens + count] = sequence.scheduled_tokens()
            n_tokens += count
            self._seq_ids[i] = sequence.seq_id
            self._counts[i] = count
            if sequence.wants_rows:
                self._want[i] = WANT_ALL
            else:
                self._want[i] = WANT_LAST if sequence.n_computed + count == sequence.n_tokens else WANT_NONE
        self.sequences = list(sequences)
        self.tokens = self._tokens[:n_tokens]
        self.seq_ids = self._seq_ids[: len(sequences)]
        self.counts = self._counts[: len(sequences)]
        self.want = self._want[: len(sequences)]


class SamplingBatch:
    """The `params` that the core's sampler takes, for the sequences that draw a token this step.

    While the same sequences draw again, only positions move; histories and bans are made anew each step, for the
    sequences that need them.
    """

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []
        self._params: dict[str, npt.NDArray[Any]] = {}
        self._has_histories = False
        self._has_moving_bans = False
        self.n_top = 0

    def params(self, sequences: list[Sequence]) -> dict[str, npt.NDArray[Any]]:
        """One row a sequence. The arrays are good until the next call."""
        if sequences == self._sequences:
            self._params["position"] += 1
        else:
            self._rebuild(sequences)
        if self._has_histories:
            self._add_histories()
        if self._has_moving_bans:
            self._params["banned_offsets"], self._params["banned_ids"] = _ragged([_banned(s) for s in sequences])
        return self._params

    def _rebuild(self, sequences: list[Sequence]) -> None:
        self._sequences = list(sequences)
        asked = [sequence.request.params for sequence in sequences]
        requests = [sequence.request for sequence in sequences]

        def floats(name: str) -> npt.NDArray[np.float32]:
            return np.array([getattr(params, name) for params in asked], np.float32)

        bias_offsets, bias_ids = _ragged([request.bias_ids for request in requests])
        banned_offsets, banned_ids = _ragged([request.banned_ids for request in requests])
        allowed_offsets, allowed_ids = _ragged([request.allowed_ids for request in requests])
        nothing = np.zeros(len(sequences) + 1, np.int64)
        self._params = {
            "temperature": floats("temperature"),
            "top_k": np.array([params.top_k for params in asked], np.int32),
            "top_p": floats("top_p"),
            "min_p": floats("min_p"),
            "repetition_penalty": floats("repetition_penalty"),
            "presence_penalty": floats("presence_penalty"),
            "frequency_penalty": floats("frequency_penalty"),
            "seed": np.array([sequence.seed for sequence in sequences], np.uint64),
            "position": np.array([sequence.n_generated for sequence in sequences], np.int64),
            "prompt_offsets": nothing,
            "prompt_tokens": np.zeros(0, np.int32),
            "output_offsets": nothing,
            "output_tokens": np.zeros(0, np.int32),
            "bias_offsets": bias_offsets,
            "bias_ids": bias_ids,
            "bias_values": np.concatenate([request.bias_values for request in requests]).astype(np.float32),
            "banned_offsets": banned_offsets,
            "banned_ids": banned_ids,
            "allowed_offsets": allowed_offsets,
            "allowed_ids": allowed_ids,
        }
        self._has_histories = any(_has_penalty(sequence) for sequence in sequences)
        self._has_moving_bans = any(
            s.request.bad_runs or s.n_generated < s.request.params.min_tokens for s in sequences
        )
        self.n_top = max((params.logprobs or 0 for params in asked), default=0)

    def _add_histories(self) -> None:
        empty = np.zeros(0, np.int32)
        penalised = [(sequence, _has_penalty(sequence)) for sequence in self._sequences]
        self._params["prompt_offsets"], self._params["prompt_tokens"] = _ragged(
            [sequence.prompt_tokens if has_penalty else empty for sequence, has_penalty in penalised]
        )
        self._params["output_offsets"], self._params["output_tokens"] = _ragged(
            [sequence.generated_tokens if has_penalty else empty for sequence, has_penalty in penalised]
        )


def _has_penalty(sequence: Sequence) -> bool:
    params = sequence.request.params
    return params.repetition_penalty != 1.0 or bool(params.presence_penalty) or bool(params.frequency_penalty)


def _banned(sequence: Sequence) -> npt.NDArray[np.int32]:
    """Ids that this sequence must not draw next."""
    request = sequence.request
    banned = request.banned_ids
    if sequence.n_generated < request.params.min_tokens:
        banned = np.union1d(banned, request.end_ids)
    if request.bad_runs:
        answer = sequence.generated_tokens
        ends = [run[-1] for run in request.bad_runs if _ends_with(answer, run[:-1])]
        if ends:
            banned = np.union1d(banned, ends)
    return banned.astype(np.int32)


def _ends_with(tokens: npt.NDArray[np.int32], run: tuple[int, ...]) -> bool:
    return len(tokens) >= len(run) and tuple(tokens[len(tokens) - len(run) :].tolist()) == run


def _ragged(rows: list[npt.NDArray[np.int32]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """(offsets int64 [n_rows + 1], the rows one after the other int32)"""
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return offsets, np.concatenate(rows).astype(np.int32, copy=False)
