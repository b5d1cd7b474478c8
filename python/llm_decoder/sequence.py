"""A request on its way through the engine, and the sequences of tokens that answer it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from collections.abc import Sequence as AnySequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from llm_decoder.detokenizer import Detokenizer, StopMatcher, TextDecoder
from llm_decoder.errors import ContextLengthExceededError, InvalidRequestError, NotEnoughMemoryError
from llm_decoder.fit import available_memory_bytes
from llm_decoder.grammars import Grammar, Masks
from llm_decoder.outputs import Completion, FinishReason, RequestMetrics, RequestOutput, StreamEvent, TokenLogprob
from llm_decoder.sampling import SamplingParams, derive_seed
from llm_decoder.search.params import SearchParams
from llm_decoder.speculation import Speculation

if TYPE_CHECKING:
    from llm_decoder.search.group import SearchGroup
    from llm_decoder.search.scorers import RequestScorer
    from llm_decoder.search.search import Search
    from llm_decoder.search.steps import StepGroup
    from llm_decoder.search.stream import SearchStream

__all__ = ["MAX_PRIORITY", "Limits", "Request", "Rows", "Sequence", "Sink", "Vocabulary", "build_request"]

Ints = npt.NDArray[np.int32]
Sink = Callable[[StreamEvent | RequestOutput | Exception], None]
# What a request wants of every prompt token instead of an answer: the rows themselves.
Rows = Literal["logits", "hidden"]

_EMPTY: Ints = np.zeros(0, np.int32)

# Bytes of a TokenLogprob with its numbers, and of each of its alternatives.
_LOGPROB_BYTES, _ALTERNATIVE_BYTES = 200, 125
_SMALL_BYTES = 16 << 20  # results up to this are not worth asking the system

MAX_PRIORITY = 100


class Vocabulary(TextDecoder, Protocol):
    """What the engine needs of a tokenizer."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine can hold. max_kv_tokens: of one sequence that has the KV pool to itself. max_num_seqs: sequences
    that hold pages at once."""

    vocab_size: int
    max_model_len: int
    max_kv_tokens: int
    max_num_seqs: int = 64


@dataclass(eq=False, slots=True)
class Request:
    """A checked request. Sampling fields of `params` are all filled (sampling.resolve_params)."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    seed: int
    max_new: int  # tokens an answer may have, the end of the context considered
    sink: Sink
    stream: bool = False  # events as they come, or only the RequestOutput
    rows: Rows | None = None
    dropped_messages: int = 0
    priority: int = 0  # its turn is as if it had come so many seconds later
    text_decoder: TextDecoder | None = None  # makes its text; None = the engine's tokenizer
    eos_token_ids: frozenset[int] = frozenset()
    # As the sampler takes them.
    stop_ids: frozenset[int] = frozenset()  # end an answer: the model's own and stop_token_ids
    end_ids: Ints = field(default_factory=lambda: _EMPTY)  # banned while there are fewer than min_tokens
    bias_ids: Ints = field(default_factory=lambda: _EMPTY)
    bias_values: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    banned_ids: Ints = field(default_factory=lambda: _EMPTY)
    allowed_ids: Ints = field(default_factory=lambda: _EMPTY)
    bad_runs: tuple[tuple[int, ...], ...] = ()  # banned runs of two tokens or more
    grammar: Grammar | None = None  # that every answer follows
    # What compares its sequences before they are whole: as beams, which only go on together, or at the end of steps.
    beams: SearchGroup | None = None
    steps: StepGroup | None = None
    search_stream: SearchStream | None = None
    scorer: RequestScorer | None = None  # of the answers of a search, once they are whole
    # What has happened so far.
    sequences: list[Sequence] = field(default_factory=list)
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    submitted_s: float = field(default_factory=time.perf_counter)
    admitted_s: float = 0.0  # when it first got pages; 0: not yet
    first_token_s: float = 0.0
    answered_s: float = 0.0  # when its last token was drawn, where a scorer came after that; 0: not yet
    finished: bool = False
    prompt_logprobs: list[TokenLogprob | None] | None = None
    completions: list[Completion] | None = None  # of a search that is over, or is being scored: all answers
    collected: npt.NDArray[np.float32] | None = None  # [n_tokens, vocab_size or hidden_size], filled chunk by chunk

    @property
    def turn_s(self) -> float:
        """Requests are served in this order."""
        return self.submitted_s + self.priority

    @property
    def salt(self) -> bytes:
        return (self.params.cache_salt or "").encode("utf-8", "surrogatepass")

    @property
    def group(self) -> Search | None:
        """None: it has answers that nobody compares before they are whole."""
        return self.steps if self.beams is None else self.beams

    @property
    def n_sequences(self) -> int:
        """Sequences that draw their first token behind its prompt."""
        params = self.params
        if not isinstance(params, SearchParams):
            return params.n
        return params.width * params.branches if params.method == "steps" else params.width

    @property
    def tells_deltas(self) -> bool:
        """Whether each sequence tells what it gains as it gains it: those of a search do not, as they may lose."""
        return self.stream and self.search_stream is None

    @property
    def n_side_by_side(self) -> int:
        """Sequences that its generated tokens are spread over."""
        return len(self.sequences) if self.group is None else self.n_sequences

    @property
    def collects(self) -> bool:
        """Whether every prompt token's row is wanted, so that the prompt must be computed whole."""
        return self.rows is not None or self.params.prompt_logprobs is not None

    def output(self) -> RequestOutput:
        completions = self.completions
        if completions is None:
            completions = [] if self.rows is not None else [sequence.completion() for sequence in self.sequences]
        # Of one that was cancelled half way the rest of `collected` was never written.
        has_all_rows = self.rows is not None and not self.sequences[0].wants_rows
        return RequestOutput(
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            outputs=completions,
            metrics=self.metrics,
            prompt_logprobs=self.prompt_logprobs,
            dropped_messages=self.dropped_messages,
            request_id=self.request_id,
            rows=self.collected if has_all_rows else None,
            tree=None if self.group is None else self.group.tree,
        )


class Sequence:
    """One answer: its tokens (prompt first), how many of them are computed, and its text.

    0 ........ n_computed ........ n_tokens ........ n_tokens + n_drafted
    | KV is in pages | pending: next   | guessed, and computed in the same step to be kept or not |

    A decode has one pending token, a prefill has more. Only a decode drafts. Behind n_tokens there may be one more that
    is drawn and not read yet: n_unread is 1 then, draw_number its place in its draw. It is pending, and has no id yet.
    """

    __slots__ = (
        "_tokens",
        "completion_logprobs",
        "cumulative_logprob",
        "detokenizer",
        "draft_masks",
        "draw_number",
        "finish_reason",
        "follower",
        "gave_way",
        "index",
        "is_parked",
        "last_token_s",
        "n_computed",
        "n_decoded",
        "n_drafted",
        "n_prompt",
        "n_rejected",
        "n_scheduled",
        "n_sent",
        "n_tokens",
        "n_unread",
        "request",
        "seed",
        "seq_id",
        "speculation",
        "stop_matcher",
        "stop_reason",
        "text",
        "unsent_text",
        "wants_rows",
    )

    def __init__(
        self, request: Request, index: int, tokenizer: TextDecoder, speculation: Speculation | None = None
    ) -> None:
        params = request.params
        prompt = request.prompt_token_ids
        self.request = request
        self.index = index
        self.n_prompt = self.n_tokens = len(prompt)
        self._tokens = np.empty(len(prompt) + min(request.max_new, 256), np.int32)
        self._tokens[: self.n_tokens] = prompt
        self.seq_id = -1  # of the cache; -1 while it holds no pages
        self.gave_way = False  # its pages were taken, and it has not been admitted again
        self.is_parked = False  # it waits for something else than its turn to be computed (Scheduler.park)
        self.n_computed = 0
        self.n_scheduled = 0  # tokens of the step being made, drafts included
        self.n_drafted = 0
        self.n_rejected = 0  # tokens of the step being made that are thrown away, drafts above all
        self.n_unread = self.draw_number = 0
        self.speculation = speculation
        self.follower = None if request.grammar is None else request.grammar.follow()
        self.draft_masks: Masks | None = None  # of what the grammar allows behind each draft
        self.wants_rows = request.collects
        self.seed = derive_seed(request.seed, index)
        self.detokenizer = Detokenizer(tokenizer, prompt[-16:], params.skip_special_tokens)
        self.stop_matcher = StopMatcher(params.stop or (), params.include_stop_str_in_output) if params.stop else None
        self.text: list[str] = []
        self.unsent_text = ""
        self.n_decoded = 0  # generated tokens that have gone through the detokenizer
        self.n_sent = 0  # generated tokens that an event has told of
        self.last_token_s = 0.0  # when its last token was drawn; 0: none yet
        self.cumulative_logprob = 0.0
        self.completion_logprobs: list[TokenLogprob] | None = None if params.logprobs is None else []
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None

    @property
    def n_pending(self) -> int:
        return self.n_tokens + self.n_unread - self.n_computed

    @property
    def n_generated(self) -> int:
        return self.n_tokens - self.n_prompt

    @property
    def is_drawn(self) -> bool:
        """Whether the token that is not read yet is the last that it may have."""
        return self.n_unread > 0 and self.n_generated + 1 >= self.request.max_new

    @property
    def tokens(self) -> Ints:
        """int32 [n_tokens], a view."""
        return self._tokens[: self.n_tokens]

    @property
    def prompt_tokens(self) -> Ints:
        return self._tokens[: self.n_prompt]

    @property
    def generated_tokens(self) -> Ints:
        return self._tokens[self.n_prompt : self.n_tokens]

    def scheduled_tokens(self) -> Ints:
        return self._tokens[self.n_computed : self.n_computed + self.n_scheduled]

    def next_token(self) -> int:
        """An id, or below 0 one that is not read: -1 - its place in its draw."""
        return int(self._tokens[self.n_computed]) if self.n_computed < self.n_tokens else -1 - self.draw_number

    def history(self, n_ahead: int) -> Ints:
        """The generated tokens and the first n_ahead drafts behind them."""
        return self._tokens[self.n_prompt : self.n_tokens + n_ahead]

    @property
    def drafted_tokens(self) -> Ints:
        return self._tokens[self.n_tokens : self.n_tokens + self.n_drafted]

    def append(self, token: int) -> None:
        self._make_room(1)
        self._tokens[self.n_tokens] = token
        self.n_tokens += 1

    def draft(self) -> None:
        """Guesses what comes next, as far as speculation allows. The last token of an answer is drawn, not drafted; a
        sequence that holds no pages waits, and will have more to compute than a decode."""
        speculation = self.speculation
        if speculation is None or self.seq_id < 0:
            return
        forced = [] if self.follower is None else self.follower.forced()
        if speculation.pause and not forced:
            speculation.pause -= 1
            return
        draft = speculation.draft(self.tokens, self.request.max_new - self.n_generated - 1, forced)
        if draft is not None and self.follower is not None:
            self.draft_masks = self.follower.look_ahead(draft.tolist())
            draft = draft[: len(self.draft_masks)]
        if draft is not None:
            self._make_room(len(draft))
            self.n_drafted = len(draft)
            self._tokens[self.n_tokens : self.n_tokens + self.n_drafted] = draft

    def _make_room(self, count: int) -> None:
        if self.n_tokens + count > len(self._tokens):
            self._tokens = np.resize(self._tokens, 2 * len(self._tokens) + count)

    def fork(self) -> Sequence:
        """Another that goes on from here, without pages so far."""
        other = copy.copy(self)
        other._tokens = self._tokens.copy()
        other.seq_id, other.n_computed, other.is_parked, other.gave_way = -1, 0, False, False
        other.detokenizer, other.text = self.detokenizer.copy(), list(self.text)
        if self.stop_matcher is not None:
            other.stop_matcher = self.stop_matcher.copy()
        if self.follower is not None:
            other.follower = self.follower.copy()
        if self.completion_logprobs is not None:
            other.completion_logprobs = list(self.completion_logprobs)
        return other

    def forget_pages(self) -> None:
        """Its pages are gone: all tokens are to be computed again."""
        self.seq_id = -1
        self.n_computed = 0
        self.n_drafted = 0
        if self.wants_rows:
            self.request.prompt_logprobs = None  # rows in `collected` are written again at the same places

    def completion(self) -> Completion:
        return Completion(
            index=self.index,
            text="".join(self.text),
            token_ids=self.generated_tokens.tolist(),
            cumulative_logprob=self.cumulative_logprob,
            logprobs=self.completion_logprobs,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )


def build_request(
    prompt_token_ids: AnySequence[int],
    params: SamplingParams,
    limits: Limits,
    tokenizer: Vocabulary,
    *,
    request_id: str,
    seed: int,
    sink: Sink,
    prompt: str | None = None,
    eos_token_ids: frozenset[int] = frozenset(),
    stream: bool = False,
    rows: Rows | None = None,
    dropped_messages: int = 0,
    priority: int = 0,
    grammar: Grammar | None = None,
    text_decoder: TextDecoder | None = None,
    scorer: RequestScorer | None = None,
) -> Request:
    """The request; `params` must be resolved. Raises InvalidRequestError for an empty prompt, an id that is no token of
    the model, params that leave no token to draw, ContextLengthExceededError for what cannot fit, NotEnoughMemoryError
    when there is no memory for the rows or log probabilities that it wants.
    """
    vocab_size = limits.vocab_size
    if isinstance(params, SearchParams) and params.method == "beam" and params.width > limits.max_num_seqs:
        raise InvalidRequestError(
            f"[SearchParams] width must be at most max_num_seqs = {limits.max_num_seqs}, got {params.width}; search "
            "narrower, or raise max_num_seqs",
            param="width",
        )
    ids = _checked_ids("prompt_token_ids", prompt_token_ids, vocab_size)
    if not ids:
        raise InvalidRequestError("[prompt] needs at least one token, got none; give some text", param="prompt")
    max_new = _max_new(len(ids), params if rows is None else replace(params, max_tokens=0, min_tokens=0), limits)
    params = _with_alternatives_that_exist(params, vocab_size)
    _check_memory(len(ids), params, rows, vocab_size)
    eos_token_ids = frozenset(token for token in eos_token_ids if token < vocab_size)
    own_ends = frozenset() if params.ignore_eos else eos_token_ids
    stop_token_ids = _checked_ids("stop_token_ids", params.stop_token_ids or (), vocab_size)
    end_ids = eos_token_ids.union(stop_token_ids)
    bias = params.logit_bias or {}
    single, runs = _bad_words(params.bad_words or (), tokenizer, vocab_size)
    banned = single.union(_checked_ids("bad_token_ids", params.bad_token_ids or (), vocab_size))
    allowed = _checked_ids("allowed_token_ids", params.allowed_token_ids or (), vocab_size)
    if max_new:
        _check_something_is_left(params, allowed, banned.union(end_ids if params.min_tokens else ()), vocab_size)
    return Request(
        request_id=request_id,
        prompt=prompt,
        prompt_token_ids=ids,
        params=params,
        seed=seed,
        max_new=max_new,
        sink=sink,
        stream=stream,
        rows=rows,
        dropped_messages=dropped_messages,
        priority=_checked_priority(priority),
        text_decoder=text_decoder,
        scorer=scorer,
        eos_token_ids=own_ends,
        stop_ids=own_ends.union(stop_token_ids),
        end_ids=np.array(sorted(end_ids), np.int32),
        bias_ids=np.array(_checked_ids("logit_bias", tuple(bias), vocab_size), np.int32),
        bias_values=np.array(list(bias.values()), np.float32),
        banned_ids=np.array(sorted(banned), np.int32),
        allowed_ids=np.array(sorted(allowed), np.int32),
        bad_runs=runs,
        grammar=grammar,
    )


def _checked_priority(priority: object) -> int:
    if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) > MAX_PRIORITY:
        raise InvalidRequestError(
            f"[priority] need an integer from {-MAX_PRIORITY} to {MAX_PRIORITY}, got {priority!r:.50}", param="priority"
        )
    return priority


def _checked_ids(name: str, ids: AnySequence[int], vocab_size: int) -> list[int]:
    array = np.asarray(ids)
    if array.size == 0:
        return []
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise InvalidRequestError(
            f"[{name}] must be a flat list of integers, got {array.dtype} {list(array.shape)}", param=name
        )
    bad = array[(array < 0) | (array >= vocab_size)]
    if bad.size:
        raise InvalidRequestError(
            f"[{name}] token ids must be from 0 to {vocab_size - 1}, got {int(bad[0])}; is it this model's tokenizer?",
            param=name,
        )
    result: list[int] = array.tolist()
    return result


def _max_new(n_prompt: int, params: SamplingParams, limits: Limits) -> int:
    """Tokens that may be generated: max_tokens, or what the context (or the whole KV pool) leaves."""
    at_least = 0 if params.max_tokens == 0 else max(1, params.min_tokens)
    # The last token of an answer is never computed, so it needs no place in the pool.
    capacity = min(limits.max_model_len, limits.max_kv_tokens + (1 if at_least else 0))
    if n_prompt + at_least > capacity:
        answer = f" and at least {at_least} of an answer" if at_least else ""
        where = (
            "the context" if capacity == limits.max_model_len else "the KV cache, which is smaller than the context,"
        )
        raise ContextLengthExceededError(
            f"[prompt] {where} holds {capacity} tokens (n_ctx = {limits.max_model_len}), the prompt has "
            f"{n_prompt}{answer}; shorten the prompt, or raise max_model_len or kv_cache_bytes"
        )
    left = capacity - n_prompt
    return left if params.max_tokens is None else min(params.max_tokens, left)


def _with_alternatives_that_exist(params: SamplingParams, vocab_size: int) -> SamplingParams:
    """A model with fewer tokens than alternatives are asked for gives all it has."""
    if max(params.logprobs or 0, params.prompt_logprobs or 0) <= vocab_size:
        return params

    def capped(count: int | None) -> int | None:
        return None if count is None else min(count, vocab_size)

    return replace(params, logprobs=capped(params.logprobs), prompt_logprobs=capped(params.prompt_logprobs))


def _check_memory(n_tokens: int, params: SamplingParams, rows: Rows | None, vocab_size: int) -> None:
    """Refuses what would be taken from the memory of all other requests. Rows of hidden states are narrow: about as
    large as the prompt's KV."""
    if rows == "logits":
        what, need_bytes = f"logits of {n_tokens} tokens x {vocab_size}", 4 * n_tokens * vocab_size
    elif rows is None and params.prompt_logprobs is not None:
        what = f"prompt_logprobs={params.prompt_logprobs} of {n_tokens} tokens"
        need_bytes = n_tokens * (_LOGPROB_BYTES + params.prompt_logprobs * _ALTERNATIVE_BYTES)
    else:
        return
    if need_bytes > _SMALL_BYTES and need_bytes > (available := available_memory_bytes()):
        raise NotEnoughMemoryError(
            f"[{rows or 'prompt_logprobs'}] {what} need {need_bytes} bytes, this machine has {available} free; ask for "
            "fewer tokens or alternatives at once"
        )


def _check_something_is_left(params: SamplingParams, allowed: list[int], banned: set[int], vocab_size: int) -> None:
    """Refuses a request whose first token could be none. `banned`: all that it may not be."""
    if any(token not in banned for token in allowed or range(vocab_size)):
        return
    name = "allowed_token_ids" if allowed else "bad_token_ids"
    whole = "allowed_token_ids" if allowed else f"the model's {vocab_size} tokens"
    ends = f", or ends the answer before min_tokens = {params.min_tokens}" if params.min_tokens else ""
    raise InvalidRequestError(
        f"[{name}] needs a token that may be drawn, got none: each of {whole} is among bad_token_ids or bad_words"
        f"{ends}; allow another one",
        param=name,
    )


def _bad_words(
    words: AnySequence[str], tokenizer: Vocabulary, vocab_size: int
) -> tuple[set[int], tuple[tuple[int, ...], ...]]:
    """Each word as it is at the start of a text and after a space: banned single tokens, and banned longer runs.

    A tokenizer may know tokens that the model has no logit for; what needs one of these is never generated anyway.
    """
    runs = {
        tuple(tokenizer.encode(form, add_special_tokens=False))
        for word in words
        for form in (word, " " + word.lstrip())
    }
    runs = {run for run in runs if all(token < vocab_size for token in run)}
    single = {run[0] for run in runs if len(run) == 1}
    return single, tuple(sorted(run for run in runs if len(run) > 1))
