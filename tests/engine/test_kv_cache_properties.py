"""The paged cache against a model of plain lists (kv_cache_model.py), one random verb after the other.

Beside the books, the machine keeps what a decoder would have written into each page, and reads it back through the real
page tables: a page shared, copied, evicted or handed on wrongly shows up as wrong content. What a page held when it
went to the second tier is what the machine puts into the page that it comes back to.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kv_cache_model import Entry, GroupModel, KvCacheModel

from llm_decoder._core import KvCache

PAGE = 16
SALTS = st.sampled_from([b"", b"a", b"a\0"])
# Runs of few different tokens, so that prefixes meet; lengths around the ends of pages.
RUNS = st.tuples(st.sampled_from([0, 1]), st.sampled_from([1, 5, PAGE - 1, PAGE, PAGE, PAGE + 1, 2 * PAGE]))
TOKENS = st.lists(RUNS, max_size=4).map(lambda runs: [token for token, n in runs for _ in range(n)])
COUNTS = st.sampled_from([0, 1, 1, 2, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE])

Content = tuple[bytes, tuple[int, ...]] | None  # what KV depends on: the salt and all tokens up to the position


def i32(values: list[int]) -> npt.NDArray[np.int32]:
    return np.array(values, np.int32)


def i64(values: list[int]) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


class CacheAgainstModel(RuleBasedStateMachine):
    """Every rule does the same to both; the invariants compare."""

    @initialize(
        groups=st.lists(
            st.tuples(
                st.integers(1, 12), st.sampled_from([0, 0, 0, 2, PAGE, PAGE + 4, 40]), st.sampled_from([0, 0, 1, 3, 8])
            ),
            min_size=1,
            max_size=3,
        ),
        hash_mask=st.sampled_from([0, 1, 3, 2**64 - 1]),
    )
    def start(self, groups: list[tuple[int, int, int]], hash_mask: int) -> None:
        n_pages, windows, n_slots = zip(*groups, strict=True)
        self.cache = KvCache(n_pages, PAGE, 0, 0, 0, window=windows, n_tier_slots=n_slots, hash_mask=hash_mask)
        self.model = KvCacheModel(PAGE, [GroupModel(n, PAGE, window, slots) for n, window, slots in groups])
        self.content: list[list[list[Content]]] = [[[None] * PAGE for _ in range(n)] for n in n_pages]
        self.place_of: list[dict[Entry, int]] = [{} for _ in groups]
        self.stored: list[dict[Entry, list[Content]]] = [{} for _ in groups]
        self.last_id = -1

    # ---- rules

    def groups(self) -> range:
        return range(len(self.model.groups))

    def table(self, seq_id: int, group: int) -> list[int]:
        pages: list[int] = self.cache.page_table(seq_id, group).tolist()
        return pages

    def new_id(self, seq_id: int) -> int:
        assert seq_id > self.last_id, "an id is never given twice"
        self.last_id = seq_id
        return seq_id

    @rule(requests=st.lists(st.tuples(TOKENS, SALTS, st.booleans(), st.booleans()), min_size=1, max_size=5))
    def serve(self, requests: list[tuple[list[int], bytes, bool, bool]]) -> None:
        """A request's whole walk, some times over: this is what fills the index and evicts."""
        for tokens, salt, with_tier, is_released in requests:
            seq_id = self.admit(tokens, salt, with_tier)
            rest = tokens[self.cache.length(seq_id) :]
            if self.reserve([seq_id], [len(rest)]):
                self.commit([seq_id], [rest])
            if is_released:
                self.release(seq_id)

    def admit(self, tokens: list[int], salt: bytes, with_tier: bool = True) -> int:
        seq_id, n_cached = self.cache.admit(i32(tokens), salt, with_tier)
        assert n_cached == self.model.admit(self.new_id(seq_id), tokens, salt, with_tier)
        return seq_id

    def reserve(self, seq_ids: list[int], counts: list[int]) -> bool:
        before = [(group, seq_id, self.table(seq_id, group)) for group in self.groups() for seq_id in seq_ids]
        answer = self.cache.reserve(i64(seq_ids), i32(counts))
        assert answer == self.model.reserve(seq_ids, counts)
        self.store_evicted()
        for group, seq_id, old in before:
            new = self.table(seq_id, group)
            assert answer or new == old
            entries = self.model.groups[group].tables[seq_id]
            for entry, page_before, page in zip(entries, old, new, strict=False):
                if page != page_before and page_before == -1:
                    self.load(group, entry, page)
                elif page != page_before:
                    self.content[group][page] = list(self.content[group][page_before])  # copied on write
        self.forget_evicted()
        return answer

    def store_evicted(self) -> None:
        """Pages that have just gone to the tier still have what they held, nobody has written to them yet."""
        for number, group in enumerate(self.model.groups):
            for entry, page in self.place_of[number].items():
                if entry in group.tier:
                    self.stored[number][entry] = list(self.content[number][page])
            assert set(group.tier) <= self.stored[number].keys()

    def load(self, group: int, entry: Entry, page: int) -> None:
        """Where another sequence has had it loaded, the page has its content, and this changes nothing."""
        assert self.place_of[group].setdefault(entry, page) == page
        if entry in self.stored[group]:
            self.content[group][page] = self.stored[group].pop(entry)

    def commit(self, seq_ids: list[int], batch: list[list[int]]) -> None:
        for seq_id, tokens in zip(seq_ids, batch, strict=True):
            self.write(seq_id, tokens)
        counts = [len(tokens) for tokens in batch]
        before = {seq_id: [self.table(seq_id, group) for group in self.groups()] for seq_id in seq_ids}
        self.cache.commit(i64(seq_ids), i32(counts), i32([token for tokens in batch for token in tokens]))
        for seq_id, tokens in zip(seq_ids, batch, strict=True):
            self.model.commit(seq_id, tokens)
            self.note_full_pages(seq_id, len(tokens), before[seq_id])

    def note_full_pages(self, seq_id: int, n_tokens: int, tables: list[list[int]]) -> None:
        """Where the pages are that its last n_tokens have filled, if nobody had filled the same before. A window may
        have passed them already."""
        sequence = self.model.sequences[seq_id]
        for page in range((len(sequence.tokens) - n_tokens) // PAGE, len(sequence.tokens) // PAGE):
            for places, table in zip(self.place_of, tables, strict=True):
                places.setdefault(sequence.prefix((page + 1) * PAGE), table[page])

    def write(self, seq_id: int, tokens: list[int]) -> None:
        """What a decoder does between reserve and commit; room past `tokens` gets nonsense, as after a failed step."""
        sequence = self.model.sequences[seq_id]
        length = len(sequence.tokens)
        for group in self.groups():
            table = self.table(seq_id, group)
            for i in range(sequence.n_reserved):
                known = (sequence.salt, (*sequence.tokens, *tokens[: i + 1]))
                page = self.content[group][table[(length + i) // PAGE]]
                page[(length + i) % PAGE] = known if i < len(tokens) else (b"nonsense", (seq_id,))

    def release(self, seq_id: int) -> None:
        self.write(seq_id, [])
        self.cache.release(seq_id)
        self.model.release(seq_id)
        with pytest.raises(ValueError, match="was released"):
            self.cache.length(seq_id)

    @rule(tokens=TOKENS, salt=SALTS, n=st.integers(1, 3))
    def admit_some(self, tokens: list[int], salt: bytes, n: int) -> None:
        for _ in range(n):
            self.admit(tokens, salt)

    def pick_batch(self, data: st.DataObject) -> tuple[list[int], list[int]]:
        seq_ids = data.draw(st.permutations(sorted(self.model.sequences)))
        seq_ids = seq_ids[: data.draw(st.integers(1, len(seq_ids)))]
        return seq_ids, [data.draw(COUNTS) for _ in seq_ids]

    @precondition(lambda self: self.model.sequences)
    @rule(data=st.data(), n_times=st.integers(1, 2))
    def reserve_some(self, data: st.DataObject, n_times: int) -> None:
        for _ in range(n_times):
            self.reserve(*self.pick_batch(data))

    @precondition(lambda self: self.model.sequences)
    @rule(data=st.data())
    def commit_some(self, data: st.DataObject) -> None:
        seq_ids, _ = self.pick_batch(data)
        batch: list[list[int]] = []
        for seq_id in seq_ids:
            n_reserved = self.model.sequences[seq_id].n_reserved
            n = data.draw(st.sampled_from([n_reserved, data.draw(st.integers(0, n_reserved))]))
            n_first = data.draw(st.sampled_from([0, n, n // 2]))
            batch.append([0] * n_first + [1] * (n - n_first))
        self.commit(seq_ids, batch)

    @precondition(lambda self: self.model.sequences)
    @rule(n=st.sampled_from([1, PAGE, PAGE + 3, 2 * PAGE]), token=st.sampled_from([0, 1]))
    def step_all(self, n: int, token: int) -> None:
        """The same tokens for every sequence in one commit, so that equal pages meet."""
        seq_ids = sorted(self.model.sequences)
        if self.reserve(seq_ids, [n] * len(seq_ids)):
            self.commit(seq_ids, [[token] * n] * len(seq_ids))

    @precondition(lambda self: self.model.sequences)
    @rule(data=st.data())
    def release_some(self, data: st.DataObject) -> None:
        for seq_id in self.pick_batch(data)[0]:
            self.release(seq_id)

    @precondition(lambda self: self.model.sequences)
    @rule(data=st.data(), n=st.integers(1, 3), n_more=st.sampled_from([0, 1, 2, PAGE + 1]))
    def fork_and_go_on(self, data: st.DataObject, n: int, n_more: int) -> None:
        """Some forks of one sequence, each going on with a token of its own, as beams do."""
        seq_id = data.draw(st.sampled_from(sorted(self.model.sequences)))
        if self.model.sequences[seq_id].n_reserved > 0:
            with pytest.raises(ValueError, match="commit first"):
                self.cache.fork(seq_id)
            return
        family = [seq_id]
        for _ in range(n):
            family.append(self.new_id(self.cache.fork(seq_id)))
            self.model.fork(seq_id, family[-1])
        family = data.draw(st.permutations(family))[: data.draw(st.integers(1, n + 1))]
        if self.reserve(family, [n_more] * len(family)):
            self.commit(family, [[i % 2] * n_more for i in range(len(family))])

    @rule(tokens=TOKENS, salt=SALTS)
    def pin(self, tokens: list[int], salt: bytes) -> None:
        assert self.cache.pin(i32(tokens), salt) == self.model.pin(tokens, salt)

    @rule(tokens=TOKENS, salt=SALTS)
    def unpin(self, tokens: list[int], salt: bytes) -> None:
        assert self.cache.unpin(i32(tokens), salt) == self.model.unpin(tokens, salt)

    @precondition(lambda self: self.model.pins)
    @rule(data=st.data(), more=TOKENS)
    def unpin_what_is_pinned(self, data: st.DataObject, more: list[int]) -> None:
        salt, prefix = data.draw(st.sampled_from(self.model.pins))
        self.unpin([*prefix, *more], salt)

    @rule()
    def clear_prefix_index(self) -> None:
        self.cache.clear_prefix_index()
        self.model.clear_prefix_index()

    @precondition(lambda self: self.model.sequences)
    @rule(data=st.data(), bad=st.sampled_from(["unknown", "twice", "negative", "too many"]))
    def a_wrong_call_changes_nothing(self, data: st.DataObject, bad: str) -> None:
        seq_ids, counts = self.pick_batch(data)
        if bad == "unknown":
            seq_ids, counts = [*seq_ids, self.last_id + 1], [*counts, 1]
        elif bad == "twice":
            seq_ids, counts = [*seq_ids, seq_ids[0]], [*counts, 1]
        else:
            counts[-1] = -1 if bad == "negative" else 2**31 - 1
        if bad != "too many":
            with pytest.raises(ValueError, match=r"\[KvCache\.reserve\]"):
                self.cache.reserve(i64(seq_ids), i32(counts))
        with pytest.raises(ValueError, match=r"\[KvCache\.commit\]"):
            self.cache.commit(i64(seq_ids), i32(counts), i32([]))

    # ---- comparisons

    @invariant()
    def the_cache_is_in_one_piece(self) -> None:
        self.cache.check_integrity()

    @invariant()
    def the_counts_are_those_of_the_model(self) -> None:
        assert self.cache.stats() == self.model.stats()

    @invariant()
    def each_page_is_told_with_who_holds_it(self) -> None:
        told = self.cache.pages()
        for number, group in enumerate(self.model.groups):
            page_of = {
                entry: page
                for seq_id, entries in group.tables.items()
                for entry, page in zip(entries, self.table(seq_id, number), strict=True)
                if page != -1
            }
            held = {page: (group.n_holders(entry), isinstance(entry, tuple)) for entry, page in page_of.items()}
            own = told["group"] == number
            found = dict(
                zip(
                    told["page"][own].tolist(),
                    zip(told["n_holders"][own].tolist(), told["is_indexed"][own].tolist(), strict=True),
                    strict=True,
                )
            )
            assert held.items() <= found.items()
            assert sum(n_holders > 0 for n_holders, _ in found.values()) == len(group.held())
            assert all(is_indexed for n_holders, is_indexed in found.values() if not n_holders)
            assert len(found) == group.n_pages - group.n_free()
            n_pinned = sum(self.model.is_pinned(group, entry) for entry in group.indexed)
            assert (told["n_pins"][own] > 0).sum() == n_pinned
        assert (told["idle_s"] <= told["taken_s"]).all()

    @invariant()
    def tables_share_exactly_the_pages_that_the_model_shares(self) -> None:
        for number, group in enumerate(self.model.groups):
            page_of: dict[Entry, int] = {}
            for seq_id, entries in group.tables.items():
                assert self.cache.length(seq_id) == len(self.model.sequences[seq_id].tokens)
                table = self.table(seq_id, number)
                waiting = group.waiting[seq_id]
                assert [page == -1 for page in table] == [
                    entry is None or index in waiting for index, entry in enumerate(entries)
                ]
                assert self.cache.n_tier_tokens(seq_id) == self.model.n_tier_tokens(seq_id)
                for entry, page in zip(entries, table, strict=True):
                    if page != -1:
                        assert page_of.setdefault(entry, page) == page
            assert len(set(page_of.values())) == len(page_of)

    @invariant()
    def a_page_in_the_index_never_moves(self) -> None:
        self.forget_evicted()
        for number, group in enumerate(self.model.groups):
            for seq_id, entries in group.tables.items():
                for entry, page in zip(entries, self.table(seq_id, number), strict=True):
                    if page != -1 and entry in group.indexed:
                        assert self.place_of[number].setdefault(entry, page) == page

    def forget_evicted(self) -> None:
        for number, group in enumerate(self.model.groups):
            places = self.place_of[number]
            self.place_of[number] = {entry: page for entry, page in places.items() if entry in group.indexed}
            stored = self.stored[number]
            self.stored[number] = {entry: content for entry, content in stored.items() if entry in group.tier}

    @invariant()
    def every_sequence_reads_what_was_written_for_its_tokens(self) -> None:
        for group in self.groups():
            for seq_id, sequence in self.model.sequences.items():
                table = self.table(seq_id, group)
                for position in range(len(sequence.tokens)):
                    page = table[position // PAGE]
                    if page != -1:
                        assert self.content[group][page][position % PAGE] == sequence.prefix(position + 1)


CacheAgainstModel.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=30,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
test_the_cache_does_what_a_model_of_plain_lists_does = CacheAgainstModel.TestCase


def run(cache: KvCache, tokens: list[int], salt: bytes = b"") -> tuple[int, int]:
    """A new sequence that holds all of `tokens`, and how many of them were found."""
    seq_id, n_cached = cache.admit(i32(tokens), salt)
    rest = tokens[n_cached:]
    assert cache.reserve(i64([seq_id]), i32([len(rest)]))
    cache.commit(i64([seq_id]), i32([len(rest)]), i32(rest))
    cache.check_integrity()
    return seq_id, n_cached


def test_a_chat_turn_finds_the_pages_of_the_turn_before() -> None:
    cache = KvCache(16, PAGE, 0, 0, 0)
    first_turn = list(range(40))
    seq_id, _ = run(cache, first_turn)
    cache.release(seq_id)
    _, n_cached = run(cache, [*first_turn, *range(100, 120)])
    assert n_cached == 2 * PAGE


def test_a_chat_turn_finds_in_the_tier_what_others_pushed_out() -> None:
    cache = KvCache(4, PAGE, 0, 0, 0, n_tier_slots=4)
    first_turn = list(range(40))
    cache.release(run(cache, first_turn)[0])
    cache.release(run(cache, list(range(100, 164)))[0])
    seq_id, n_cached = cache.admit(i32([*first_turn, 7]))
    assert (n_cached, cache.n_tier_tokens(seq_id)) == (2 * PAGE, 2 * PAGE)
    assert cache.page_table(seq_id).tolist() == [-1, -1]
    assert cache.reserve(i64([seq_id]), i32([9]))
    assert cache.n_tier_tokens(seq_id) == 0
    assert -1 not in cache.page_table(seq_id)
    assert cache.stats()["n_loaded"] == 2


def test_requests_of_other_salts_are_strangers() -> None:
    cache = KvCache(16, PAGE, 0, 0, 0)
    run(cache, [1] * 20, b"alice")
    assert run(cache, [1] * 20, b"bob")[1] == 0
    assert run(cache, [1] * 20, b"alice")[1] == PAGE


def test_a_full_cache_is_an_answer_and_not_an_error() -> None:
    cache = KvCache(2, PAGE, 0, 0, 0)
    seq_id, _ = run(cache, [1] * 20)
    other, _ = cache.admit(i32([2]))
    assert not cache.reserve(i64([other]), i32([1]))
    cache.release(seq_id)
    assert cache.reserve(i64([other]), i32([1]))


def test_storage_of_a_page_is_keys_values_and_scales_of_all_layers() -> None:
    f32 = KvCache(4, PAGE, layers=3, n_kv_heads=2, head_dim=40, dtype="f32")
    s8 = KvCache(4, PAGE, layers=3, n_kv_heads=2, head_dim=40, dtype="s8")
    assert f32.page_bytes()[0] == 3 * 2 * 2 * PAGE * 48 * 4  # head_dim is padded to 48
    assert s8.page_bytes()[0] == 3 * 2 * 2 * PAGE * (48 + 4)
    assert s8.stats()["pool_bytes"] == 4 * s8.page_bytes()[0]
    assert KvCache(4, PAGE, 0, 0, 0).page_bytes() == [0]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros(4, np.int64), "tokens must be int32, got int64"),
        (np.zeros(4, np.float32), "tokens must be int32, got float32"),
        (np.zeros((2, 2), np.int32), r"tokens must have shape \[any\], got \[2, 2\]"),
        (np.zeros(8, np.int32)[::2], "tokens must be C-contiguous"),
        (np.zeros(17, np.uint8)[1:].view(np.int32), "tokens must be aligned"),
    ],
)
def test_an_array_that_is_not_as_needed_is_refused_with_need_and_got(tokens: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=rf"\[KvCache.admit\] {message}"):
        KvCache(4, PAGE, 0, 0, 0).admit(tokens)


def test_a_list_is_no_array() -> None:
    with pytest.raises(TypeError):
        KvCache(4, PAGE, 0, 0, 0).admit([1, 2, 3])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_pages": 0}, "n_pages"),
        ({"page_size": 8}, "page_size"),
        ({"page_size": 40}, "multiple of 16"),
        ({"layers": 1}, "n_kv_heads"),
        ({"dtype": "f16"}, "'f32', 'bf16' or 's8', got 'f16'"),
        ({"window": -1}, "window"),
        ({"n_tier_slots": -1}, "n_tier_slots"),
        ({"n_tier_slots": [1, 2]}, "n_pages and n_tier_slots must have an entry for each group, got 1 and 2"),
    ],
)
def test_an_impossible_cache_is_refused_by_name(wrong: dict[str, Any], message: str) -> None:
    sizes: dict[str, Any] = {"n_pages": 4, "page_size": PAGE, "layers": 0, "n_kv_heads": 0, "head_dim": 0}
    with pytest.raises(ValueError, match=message):
        KvCache(**{**sizes, **wrong})


def test_memory_that_the_system_refuses_is_a_memory_error_with_its_size() -> None:
    with pytest.raises(MemoryError, match="67108864 pages"):
        KvCache(2**26, PAGE, layers=4096, n_kv_heads=4096, head_dim=16384)
