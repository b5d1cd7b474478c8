"""What crosses into the core each step, in arrays that are made once: the ragged batch, and the sampler's
parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llm_decoder.sequence import Sequence

__all__ = ["SamplingBatch", "StepBatch", "has_penalty"]

WANT_NONE, WANT_LAST, WANT_ALL = 0, 1, 2


class StepBatch:
    """One ragged step: prompt chunks and single tokens alike.

    tokens int32 [n_tokens], sequences one after the other, below 0 where one is not read yet (Sequence.next_token);
    seq_ids int64 [n_seqs]; counts int32 [n_seqs]; want uint8 [n_seqs]: 0 no logits, 1 of the last token, 2 of every
    token. All are views, good until the next fill.
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
            if sequence.wants_rows or sequence.n_drafted:
                self._want[i] = WANT_ALL
            else:
                is_complete = sequence.n_computed + count == sequence.n_tokens + sequence.n_unread
                self._want[i] = WANT_LAST if is_complete else WANT_NONE
        self.sequences = list(sequences)
        self.tokens = self._tokens[:n_tokens]
        self.seq_ids = self._seq_ids[: len(sequences)]
        self.counts = self._counts[: len(sequences)]
        self.want = self._want[: len(sequences)]

    def put_tokens(self, drawn: npt.NDArray[np.int32]) -> None:
        """`drawn` is what was not read when the batch was filled."""
        unread = self.tokens < 0
        self.tokens[unread] = drawn[-1 - self.tokens[unread]]


class SamplingBatch:
    """The `params` that the core's sampler takes, for the sequences that draw a token this step.

    While the same sequences draw again, most of it is kept; positions, and for the sequences that need them histories,
    bans and masks, are made anew each step.
    """

    # One number a sequence; everything else has runs of ids.
    _NUMBERS = (
        *("temperature", "top_k", "top_p", "min_p"),
        *("repetition_penalty", "presence_penalty", "frequency_penalty", "seed"),
    )

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []
        self._params: dict[str, npt.NDArray[Any]] = {}  # a row a sequence
        self._has_ids = False
        self._has_histories = False
        self._has_moving_bans = False
        self._has_masks = False
        self.n_top = 0

    def params(self, sequences: list[Sequence]) -> dict[str, npt.NDArray[Any]]:
        """A row a sequence, behind the token that is not read yet where there is one, and a row for each token it has
        drafted: of what would be drawn behind that. The arrays are good until the next call."""
        if sequences != self._sequences:
            self._rebuild(sequences)
        rows = [
            (sequence, n_ahead)
            for sequence in sequences
            for n_ahead in range(sequence.n_unread, sequence.n_unread + 1 + sequence.n_drafted)
        ]
        params = self._params if len(rows) == len(sequences) else self._expanded(sequences, rows)
        params["position"] = np.array([sequence.n_generated + n for sequence, n in rows], np.int64)
        if self._has_histories:
            _add_histories(params, rows)
        if self._has_moving_bans:
            params["banned_offsets"], params["banned_ids"] = _ragged([_banned(*row) for row in rows])
        if self._has_masks:
            params["mask_of_draw"], params["masks"] = _masks(rows)
        return params

    def _rebuild(self, sequences: list[Sequence]) -> None:
        self._sequences = list(sequences)
        asked = [sequence.request.params for sequence in sequences]

        def floats(name: str) -> npt.NDArray[np.float32]:
            return np.array([getattr(params, name) for params in asked], np.float32)

        self._params = {
            "temperature": floats("temperature"),
            "top_k": np.array([params.top_k for params in asked], np.int32),
            "top_p": floats("top_p"),
            "min_p": floats("min_p"),
            "repetition_penalty": floats("repetition_penalty"),
            "presence_penalty": floats("presence_penalty"),
            "frequency_penalty": floats("frequency_penalty"),
            "seed": np.array([sequence.seed for sequence in sequences], np.uint64),
            **_ids_of(sequences),
        }
        requests = [sequence.request for sequence in sequences]
        self._has_ids = any(len(r.bias_ids) or len(r.banned_ids) or len(r.allowed_ids) for r in requests)
        self._has_histories = any(has_penalty(sequence) for sequence in sequences)
        self._has_moving_bans = any(
            s.request.bad_runs or s.n_generated < s.request.params.min_tokens for s in sequences
        )
        self._has_masks = any(sequence.follower is not None for sequence in sequences)
        self.n_top = max((params.logprobs or 0 for params in asked), default=0)

    def _expanded(self, sequences: list[Sequence], rows: list[tuple[Sequence, int]]) -> dict[str, npt.NDArray[Any]]:
        counts = np.array([1 + sequence.n_drafted for sequence in sequences])
        params = {name: self._params[name].repeat(counts) for name in self._NUMBERS}
        return params | (_ids_of([sequence for sequence, _ in rows]) if self._has_ids else _no_ids(len(rows)))


def _ids_of(sequences: list[Sequence]) -> dict[str, npt.NDArray[Any]]:
    """The ids that each sequence's request names once for all its draws; histories are left empty."""
    requests = [sequence.request for sequence in sequences]
    params = _no_ids(len(sequences))
    params["bias_offsets"], params["bias_ids"] = _ragged([request.bias_ids for request in requests])
    params["bias_values"] = np.concatenate([request.bias_values for request in requests]).astype(np.float32)
    params["banned_offsets"], params["banned_ids"] = _ragged([request.banned_ids for request in requests])
    params["allowed_offsets"], params["allowed_ids"] = _ragged([request.allowed_ids for request in requests])
    return params


def _no_ids(n_rows: int) -> dict[str, npt.NDArray[Any]]:
    nowhere, nothing = np.zeros(n_rows + 1, np.int64), np.zeros(0, np.int32)
    params: dict[str, npt.NDArray[Any]] = {"bias_values": np.zeros(0, np.float32)}
    for name in ("bias", "banned", "allowed"):
        params[f"{name}_offsets"], params[f"{name}_ids"] = nowhere, nothing
    for name in ("prompt", "output"):
        params[f"{name}_offsets"], params[f"{name}_tokens"] = nowhere, nothing
    return params


def _add_histories(params: dict[str, npt.NDArray[Any]], rows: list[tuple[Sequence, int]]) -> None:
    empty = np.zeros(0, np.int32)
    penalised = [(*row, has_penalty(row[0])) for row in rows]
    params["prompt_offsets"], params["prompt_tokens"] = _ragged(
        [sequence.prompt_tokens if is_penalised else empty for sequence, _, is_penalised in penalised]
    )
    params["output_offsets"], params["output_tokens"] = _ragged(
        [sequence.history(n_ahead) if is_penalised else empty for sequence, n_ahead, is_penalised in penalised]
    )


def has_penalty(sequence: Sequence) -> bool:
    """Whether the tokens it has so far change what it draws."""
    params = sequence.request.params
    return params.repetition_penalty != 1.0 or bool(params.presence_penalty) or bool(params.frequency_penalty)


def _banned(sequence: Sequence, n_ahead: int) -> npt.NDArray[np.int32]:
    """Ids that this sequence must not draw behind its first n_ahead drafts."""
    request = sequence.request
    banned = request.banned_ids
    if sequence.n_generated + n_ahead < request.params.min_tokens:
        banned = np.union1d(banned, request.end_ids)
    if request.bad_runs:
        answer = sequence.history(n_ahead)
        ends = [run[-1] for run in request.bad_runs if _ends_with(answer, run[:-1])]
        if ends:
            banned = np.union1d(banned, ends)
    return banned.astype(np.int32)


def _masks(rows: list[tuple[Sequence, int]]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint32]]:
    """What the grammars of these sequences allow behind so many of their drafts: (which mask is each row's, -1 = none,
    int32 [n_rows]; the masks uint32 [n_masks, n_words])"""
    followers = [sequence.follower for sequence, _ in rows]
    n_words = next(follower.n_words for follower in followers if follower is not None)
    has_mask = np.array([follower is not None for follower in followers])
    masks = np.empty((np.count_nonzero(has_mask), n_words), np.uint32)
    of_row = np.where(has_mask, np.cumsum(has_mask) - 1, -1).astype(np.int32)
    for (sequence, n_ahead), follower, i in zip(rows, followers, of_row.tolist(), strict=True):
        if follower is None:
            continue
        if n_ahead == 0:
            follower.fill(masks[i])
        else:
            assert sequence.draft_masks is not None
            masks[i] = sequence.draft_masks[n_ahead - 1]
    return of_row, masks


def _ends_with(tokens: npt.NDArray[np.int32], run: tuple[int, ...]) -> bool:
    return len(tokens) >= len(run) and tuple(tokens[len(tokens) - len(run) :].tolist()) == run


def _ragged(rows: list[npt.NDArray[np.int32]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """(offsets int64 [n_rows + 1], the rows one after the other int32)"""
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return offsets, np.concatenate(rows).astype(np.int32, copy=False)
