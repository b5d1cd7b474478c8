"""A backend without a model: the real cache and the real sampler under logits that a sequence's tokens decide alone.

The tokens lie in a pool of pages beside the real page tables, as KV would, and are read back through them: a page
shared, copied, evicted or handed on wrongly shows up as a wrong history, and so as wrong logits.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from llm_decoder import _core
from llm_decoder.engine import Engine, EngineOptions
from llm_decoder.engine_core import EngineCore
from llm_decoder.grammars import GrammarCompiler
from llm_decoder.outputs import StreamEvent
from llm_decoder.sampling import SamplingParams, resolve_params
from llm_decoder.search.params import SearchParams
from llm_decoder.search.scorers import RequestScorer
from llm_decoder.search.scoring import Aside, at_once
from llm_decoder.sequence import Limits, Vocabulary, build_request
from llm_decoder.speculation import Speculation, SpeculationOptions
from llm_decoder.structured import as_structured_outputs

POISON = -7

Ints = npt.NDArray[np.int32]


class FakeCache(_core.KvCache):
    """The real cache, without storage, with the pool of tokens that the pages of its first group would hold. Further
    groups, (n_pages, window) each, only have to find room."""

    def __init__(self, n_pages: int, page_size: int, more_groups: Sequence[tuple[int, int]] = ()) -> None:
        groups = [(n_pages, 0), *more_groups]
        super().__init__(
            n_pages=[n for n, _ in groups],
            page_size=page_size,
            layers=0,
            n_kv_heads=1,
            head_dim=16,
            window=[window for _, window in groups],
        )
        self.pool = np.full((n_pages, page_size), POISON, np.int32)
        self.queue: Callable[[Callable[[], None]], None] = lambda operation: operation()

    def reserve(self, seq_ids: npt.NDArray[np.int64], counts: Ints) -> bool:
        before = [self.page_table(seq_id) for seq_id in seq_ids.tolist()]
        if not super().reserve(seq_ids, counts):
            return False
        for seq_id, old in zip(seq_ids.tolist(), before, strict=True):
            new = self.page_table(seq_id)
            n_new = self.length(seq_id) % self.page_size
            for i, page in enumerate(new.tolist()):
                if i >= len(old):
                    self.queue(functools.partial(self._take, page))
                elif page != old[i]:  # copied on write
                    self.queue(functools.partial(self._copy, old[i], page, n_new))
        return True

    def _take(self, page: int) -> None:
        self.pool[page] = POISON

    def _copy(self, old: int, page: int, n_tokens: int) -> None:
        self.pool[page] = POISON
        self.pool[page, :n_tokens] = self.pool[old, :n_tokens]


class FakeBackend:
    """The Backend of backends.py. Logits: float32 [n_rows, vocab_size], a hash of the sequence's tokens so far.

    spoil(history, logits) may change a row in place; before_step() may raise.
    """

    runs_ahead = False

    def __init__(
        self,
        n_pages: int = 64,
        page_size: int = 16,
        vocab_size: int = 258,
        max_model_len: int = 256,
        max_tokens_per_step: int = 64,
        more_groups: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.page_size = page_size
        self.vocab_size = vocab_size
        self.max_model_len = max_model_len
        self.max_tokens_per_step = max_tokens_per_step
        self.cache = FakeCache(n_pages, page_size, more_groups)
        self.spoil: Callable[[Ints, npt.NDArray[np.float32]], None] = lambda history, logits: None
        self.before_step: Callable[[], None] = lambda: None
        self.steps: list[list[tuple[int, int]]] = []  # of each step: (seq_id, count)
        self.is_closed = False
        self._logits = np.zeros((0, vocab_size), np.float32)

    def step(self, tokens: Ints, seq_ids: npt.NDArray[np.int64], counts: Ints, want: npt.NDArray[np.uint8]) -> int:
        self._check(tokens, seq_ids, counts)
        self._compute(tokens, self._places(seq_ids), counts.tolist(), want.tolist())
        return len(self._logits)

    def _check(self, tokens: Ints, seq_ids: npt.NDArray[np.int64], counts: Ints) -> None:
        self.before_step()
        self.cache.check_integrity()
        assert len(tokens) == counts.sum() <= self.max_tokens_per_step
        assert (counts > 0).all()
        assert len(set(seq_ids.tolist())) == len(seq_ids)
        self.steps.append(list(zip(seq_ids.tolist(), counts.tolist(), strict=True)))

    def _places(self, seq_ids: npt.NDArray[np.int64]) -> list[tuple[int, Ints]]:
        """How many tokens each has in its pages, and these."""
        return [(self.cache.length(seq_id), self.cache.page_table(seq_id)) for seq_id in seq_ids.tolist()]

    def _compute(self, tokens: Ints, places: list[tuple[int, Ints]], counts: list[int], want: list[int]) -> None:
        rows: list[npt.NDArray[np.float32]] = []
        start = 0
        for place, count, wanted in zip(places, counts, want, strict=True):
            history = self._write_and_read(*place, tokens[start : start + count])
            start += count
            first = {0: count, 1: count - 1, 2: 0}[wanted]
            rows.extend(self._row(history[: len(history) - count + i + 1]) for i in range(first, count))
        self._logits = np.array(rows, np.float32).reshape(len(rows), self.vocab_size)

    def _write_and_read(self, length: int, table: Ints, tokens: Ints) -> Ints:
        positions = np.arange(length, length + len(tokens))
        self.cache.pool[table[positions // self.page_size], positions % self.page_size] = tokens
        positions = np.arange(length + len(tokens))
        history = self.cache.pool[table[positions // self.page_size], positions % self.page_size]
        assert (history != POISON).all(), "a page was read that nobody wrote"
        return history

    def _row(self, history: Ints) -> npt.NDArray[np.float32]:
        logits = fake_logits(history, self.vocab_size)
        self.spoil(history, logits)
        return logits

    def sample(self, rows: Ints, params: dict[str, Any], n_top: int) -> Any:
        return _core.sample(self._logits, rows, params, n_top)

    def continuations(self, rows: Ints, params: dict[str, Any], n: int, n_top: int) -> Any:
        return _core.continuations(self._logits, rows, params, n, n_top)

    def log_probs(self, targets: Ints, n_top: int) -> Any:
        return _core.log_probs(self._logits, targets, n_top)

    def logits(self) -> npt.NDArray[np.float32]:
        return self._logits.copy()

    def hidden(self) -> npt.NDArray[np.float32]:
        return self._logits[:, :4].copy()

    def info(self) -> dict[str, Any]:
        return {"device": "fake"}

    def close(self) -> None:
        self.is_closed = True


class BrokenContract(BaseException):
    """An engine has asked for what AheadBackend does not promise. No Exception, as these may be told to a request."""


class FakeAheadBackend(FakeBackend):
    """The AheadBackend of backends.py over the same model. What is asked of it is queued, moves of pages too, and done
    when somebody waits for it: as late as on a device that is slow. before_end() may raise.

    n_ahead: steps that counted on a token that was not read."""

    runs_ahead = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.before_end: Callable[[], None] = lambda: None
        self.n_ahead = 0
        self._queue: deque[Callable[[], None]] = deque()
        self.cache.queue = self._queue.append
        self._begun: deque[list[Any]] = deque()  # of each draw that is not ended: what it gave, once it has run
        self._n_drawn = 0  # rows of the latest draw
        self._drawn: Ints = np.zeros(0, np.int32)  # its tokens, on the device

    def step(self, tokens: Ints, seq_ids: npt.NDArray[np.int64], counts: Ints, want: npt.NDArray[np.uint8]) -> int:
        numbers = -1 - tokens[tokens < 0]
        self._must(not numbers.size or numbers.max() < self._n_drawn, "a token is of the latest draw")
        self._must(len(set(numbers.tolist())) == numbers.size, "a draw is of one sequence")
        self._check(tokens, seq_ids, counts)
        self.n_ahead += numbers.size > 0
        asked = tokens.copy(), self._places(seq_ids), counts.tolist(), want.tolist()
        self._queue.append(lambda: self._compute(self._resolved(asked[0]), *asked[1:]))
        return sum({0: 0, 1: 1, 2: count}[wanted] for count, wanted in zip(asked[2], asked[3], strict=True))

    def _resolved(self, tokens: Ints) -> Ints:
        unread = tokens < 0
        tokens[unread] = np.maximum(self._drawn[-1 - tokens[unread]], 0)
        return tokens

    def begin_sample(self, rows: Ints, params: dict[str, Any], n_top: int) -> None:
        self._must(len(self._begun) < 2, "at most two draws are begun and not ended")
        self._begun.append([])
        self._n_drawn = len(rows)
        given, rows, params = self._begun[-1], rows.copy(), {name: values.copy() for name, values in params.items()}

        def draw() -> None:
            given.extend(_core.sample(self._logits, rows, params, n_top))
            self._drawn = given[0]

        self._queue.append(draw)

    def end_sample(self) -> Any:
        self._must(bool(self._begun), "a draw that is ended was begun")
        given = self._begun.popleft()
        self.before_end()
        while not given:
            self._queue.popleft()()
        return tuple(values.copy() for values in given)

    def _wait(self) -> None:
        self._must(not self._begun, "what a step gave is read with no draw begun")
        while self._queue:
            self._queue.popleft()()

    @staticmethod
    def _must(condition: bool, what: str) -> None:
        if not condition:
            raise BrokenContract(what)

    def sample(self, rows: Ints, params: dict[str, Any], n_top: int) -> Any:
        self._wait()
        return super().sample(rows, params, n_top)

    def continuations(self, rows: Ints, params: dict[str, Any], n: int, n_top: int) -> Any:
        self._wait()
        return super().continuations(rows, params, n, n_top)

    def log_probs(self, targets: Ints, n_top: int) -> Any:
        self._wait()
        return super().log_probs(targets, n_top)

    def logits(self) -> npt.NDArray[np.float32]:
        self._wait()
        return super().logits()

    def hidden(self) -> npt.NDArray[np.float32]:
        self._wait()
        return super().hidden()


def fake_logits(history: Ints, vocab_size: int) -> npt.NDArray[np.float32]:
    """Numbers from -4 to 4 that every token of the history, and its place, has a part in."""
    key = np.uint64(0)
    with np.errstate(over="ignore"):
        powers = np.cumprod(np.full(len(history), 0x9E3779B97F4A7C15, np.uint64))
        key = ((history.astype(np.uint64) + np.uint64(1)) * powers).sum(dtype=np.uint64)
        z = key + np.arange(1, vocab_size + 1, dtype=np.uint64) * np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(31)
        z *= np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(29)
    return ((z >> np.uint64(40)).astype(np.float32) / np.float32(1 << 21) - np.float32(4.0)).astype(np.float32)


class ByteTokenizer:
    """256 bytes, an end token and a beginning token; ids past them decode to nothing."""

    eos_token_id = 256
    bos_token_id = 257

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return frozenset({self.eos_token_id})

    def __len__(self) -> int:
        return 258

    @property
    def n_ids(self) -> int:
        return 258

    @functools.cache  # noqa: B019 - as long as the tests
    def to_json(self) -> str:
        """The same as a byte-level tokenizer of the tokenizers library."""
        vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        tokenizer.add_special_tokens(["<end>", "<begin>"])
        return str(tokenizer.to_str())

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [self.bos_token_id] * add_special_tokens + list(text.encode())

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return bytes(token for token in ids if 0 <= token < 256).decode("utf-8", errors="replace")

    def apply_chat_template(
        self, messages: Sequence[dict[str, str]], add_generation_prompt: bool = True, **_: Any
    ) -> list[int]:
        text = "".join(f"<{message['role']}>{message['content']}\n" for message in messages)
        return self.encode(text + "<assistant>" * add_generation_prompt)


def _byte_characters() -> list[str]:
    """How byte-level tokenizers spell the bytes 0 to 255 (Radford et al. 2019)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte) if byte in visible else chr(256 + hidden.index(byte)) for byte in range(256)]


def make_engine(backend: FakeBackend | None = None, **options: Any) -> Engine:
    """An engine over a fake backend, with the byte tokenizer."""
    made = backend or FakeBackend()
    return Engine(lambda: made, ByteTokenizer(), EngineOptions(eos_token_ids=frozenset({256}), **options))


class Desk:
    """An EngineCore without a thread, with what each request has sent so far: scheduling as a plain sequence of
    calls."""

    def __init__(
        self,
        backend: FakeBackend | None = None,
        max_num_seqs: int = 64,
        tokenizer: Vocabulary | None = None,
        start_speculation: Callable[[], Speculation | None] = lambda: SpeculationOptions().start(),
        aside: Aside = at_once,
    ) -> None:
        self.backend = backend or FakeBackend()
        self.tokenizer = tokenizer or ByteTokenizer()
        self.core = EngineCore(self.backend, self.tokenizer, max_num_seqs, start_speculation, aside)
        self.grammars = GrammarCompiler(ByteTokenizer(), self.backend.vocab_size, frozenset({256}))
        self.sent: dict[str, list[Any]] = {}

    def add(
        self,
        prompt: str | bytes | Sequence[int],
        *,
        stream: bool = False,
        rows: Any = None,
        priority: int = 0,
        **params: Any,
    ) -> str:
        request_id = f"request-{len(self.sent)}"
        items: list[Any] = []
        backend = self.backend
        resolved = resolve_params(SearchParams(**params) if "width" in params else SamplingParams(**params))
        asked = resolved.structured_outputs
        scorer = None
        if isinstance(resolved, SearchParams) and resolved.is_scored:
            assert callable(resolved.scorer), "names are the LLM's"
            scorer = RequestScorer("of a test", resolved.query or "prompt", resolved.scorer)
        request = build_request(
            list(prompt.encode() if isinstance(prompt, str) else prompt),
            resolved,
            Limits(backend.vocab_size, backend.max_model_len, backend.cache.max_tokens(backend.max_tokens_per_step)),
            self.tokenizer,
            request_id=request_id,
            seed=params.get("seed") or 0,
            sink=items.append,
            eos_token_ids=frozenset({ByteTokenizer.eos_token_id}),
            stream=stream,
            rows=rows,
            priority=priority,
            grammar=None if asked is None else self.grammars.compile(as_structured_outputs(asked)),
            scorer=scorer,
        )
        self.sent[request_id] = items
        self.core.add(request)
        return request_id

    def run(self) -> None:
        while self.core.step():
            pass
        assert not self.core.requests

    def last(self, request_id: str) -> Any:
        """Its RequestOutput, or the exception it failed with; None while it is not over."""
        item = self.sent[request_id][-1] if self.sent[request_id] else None
        return item.output if isinstance(item, StreamEvent) else item

    def ask(self, prompt: Any, **params: Any) -> Any:
        """Runs one request to its end, whatever else is there."""
        request_id = self.add(prompt, **params)
        self.run()
        return self.last(request_id)

    def assert_nothing_is_held(self) -> None:
        stats = self.backend.cache.stats()
        assert stats["n_held"] == 0
        assert stats["n_sequences"] == 0
        assert stats["n_free"] + stats["n_cached"] == stats["n_pages"]
        self.backend.cache.check_integrity()


def alone(prompt: Any, **params: Any) -> Any:
    """The RequestOutput of a request that has an engine for itself."""
    return Desk().ask(prompt, **params)
