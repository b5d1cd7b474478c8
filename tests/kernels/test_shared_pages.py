"""Sequences whose page tables begin alike read those pages together, and nobody's bits change by it."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from page_pool import DEAD_ENTRIES, PagePool

from llm_decoder import _core

SPAN = 256  # positions
PAGE_SIZE = 64
DTYPES = ("f32", "bf16", "s8")


@dataclass
class Asking:
    """A sequence on its pages: `n` tokens, of which the last n_tokens ask."""

    table: NDArray[np.int32]
    n: int
    n_tokens: int

    @property
    def position(self) -> int:
        return self.n - self.n_tokens


@dataclass
class Tree:
    """Sequences that share pages as forks do: each takes leading pages of an earlier one and goes on with its own."""

    page_size: int
    sequences: list[Asking]
    n_pages: int


@st.composite
def trees(draw: st.DrawFn, longest: int = 5 * SPAN) -> Tree:
    page_size = draw(st.sampled_from([16, 48, 64, 256]))
    sequences: list[Asking] = []
    n_pages = 0
    for _ in range(draw(st.integers(1, 6))):
        n_tokens = draw(st.sampled_from([1, 1, 1, 2, 5, 40]))
        n = draw(st.integers(n_tokens, longest))
        n_kept = 0
        parent: NDArray[np.int32] = np.empty(0, np.int32)
        if sequences:
            parent = draw(st.sampled_from(sequences)).table
            # The tokens that ask have pages of their own, as after a copy on write.
            n_kept = draw(st.integers(0, min(len(parent), (n - n_tokens) // page_size)))
        n_own = -(-n // page_size) - n_kept
        table = np.concatenate([parent[:n_kept], np.arange(n_pages, n_pages + n_own)]).astype(np.int32)
        n_pages += n_own
        sequences.append(Asking(table, n, n_tokens))
    return Tree(page_size, sequences, n_pages)


def random_pool(dtype: str, n_pages: int, n_kv_heads: int, head_dim: int, page_size: int) -> PagePool:
    pool = PagePool(dtype, n_pages, n_kv_heads, head_dim, page_size)
    rng = np.random.default_rng(n_pages)
    shape = (n_pages * page_size, n_kv_heads, head_dim)
    every_page = np.arange(n_pages, dtype=np.int32)
    pool.append(_core.isas()[0], every_page, 0, *rng.standard_normal((2, *shape), np.float32))
    return pool


def poison_what_nobody_sees(pool: PagePool, tree: Tree, window: int) -> None:
    seen: set[tuple[int, int]] = set()
    for sequence in tree.sequences:
        first = max(0, sequence.position - window + 1) if window else 0
        seen |= {(int(sequence.table[p // tree.page_size]), p % tree.page_size) for p in range(first, sequence.n)}
        sequence.table[: first // tree.page_size] = DEAD_ENTRIES[0]
    fresh = PagePool(pool.dtype, 1, pool.n_kv_heads, pool.head_dim, pool.page_size)
    for page, slot in itertools.product(range(pool.n_pages), range(pool.page_size)):
        if (page, slot) in seen:
            continue
        if pool.dtype != "s8":
            pool.k[page, :, :, slot] = pool.v[page, :, slot] = fresh.k[0, 0, 0, 0]
        else:
            assert pool.k_scale is not None
            assert pool.v_scale is not None
            pool.k[page, :, :, slot], pool.v[page, :, slot // 4, :, slot % 4] = fresh.k[0, 0, 0, 0, 0], -113
            pool.k_scale[page, :, slot] = pool.v_scale[page, :, slot] = np.nan


@pytest.mark.parametrize("isa", _core.isas())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    tree=trees(),
    dtype=st.sampled_from(DTYPES),
    window=st.sampled_from([0, 0, 70, 300]),
    heads=st.sampled_from([(3, 1), (4, 2)]),
    n_threads=st.sampled_from([1, 2, 3, 16]),
)
def test_a_batch_that_shares_pages_gives_every_sequence_the_bits_it_gets_alone(
    isa: str, tree: Tree, dtype: str, window: int, heads: tuple[int, int], n_threads: int
) -> None:
    n_heads, n_kv_heads = heads
    pool = random_pool(dtype, tree.n_pages, n_kv_heads, 24, tree.page_size)
    poison_what_nobody_sees(pool, tree, window)
    rng = np.random.default_rng(len(tree.sequences))
    queries = [rng.standard_normal((s.n_tokens, n_heads, 24), np.float32) for s in tree.sequences]
    tables, positions = [s.table for s in tree.sequences], [s.position for s in tree.sequences]
    together = pool.attend_batch(isa, queries, tables, positions, 0.3, window, n_threads=n_threads)
    for q, sequence, out in zip(queries, tree.sequences, together, strict=True):
        assert np.isfinite(out).all()
        np.testing.assert_array_equal(out, pool.attend(isa, q, sequence.table, sequence.position, 0.3, window))


def items_of(tree: Tree, n_kv_heads: int = 1, window: int = 0, n_threads: int = 1) -> list[tuple[int, list, list]]:
    width = max(len(s.table) for s in tree.sequences)
    tables = np.full((len(tree.sequences), width), DEAD_ENTRIES[0], np.int32)
    for row, sequence in zip(tables, tree.sequences, strict=True):
        row[: len(sequence.table)] = sequence.table
    begins = np.cumsum([0] + [s.n_tokens for s in tree.sequences]).astype(np.int32)
    positions = np.array([s.position for s in tree.sequences], np.int32)
    return _core.kernels.attention_items(
        tables, begins, positions, 3 * n_kv_heads, n_kv_heads, tree.page_size, window, n_threads
    )


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(tree=trees(), n_kv_heads=st.integers(1, 3), n_threads=st.sampled_from([1, 2, 5, 64]))
def test_every_token_meets_each_of_its_pages_once_for_every_kv_head(
    tree: Tree, n_kv_heads: int, n_threads: int
) -> None:
    met: dict[tuple[int, int], list[int]] = {}
    for kv_head, runs, pages in items_of(tree, n_kv_heads, n_threads=n_threads):
        for begin, n in runs:
            for token in range(begin, begin + n):
                met.setdefault((kv_head, token), []).extend(pages)
    begin = 0
    for sequence in tree.sequences:
        for i in range(sequence.n_tokens):
            n_seen = (sequence.position + i) // tree.page_size + 1
            for kv_head in range(n_kv_heads):
                # An item's pages are those that any of its tokens sees.
                pages = met[kv_head, begin + i]
                assert len(pages) == len(set(pages))
                assert set(sequence.table[:n_seen].tolist()) <= set(pages) <= set(sequence.table.tolist())
        begin += sequence.n_tokens


def fork(parent: Asking, n_shared_pages: int, n: int, first_free_page: int) -> Asking:
    n_own = -(-n // PAGE_SIZE) - n_shared_pages
    own = np.arange(first_free_page, first_free_page + n_own)
    return Asking(np.concatenate([parent.table[:n_shared_pages], own]).astype(np.int32), n, 1)


def reads_of(items: list[tuple[int, list, list]]) -> dict[int, int]:
    """How often each page is read."""
    pages = list(itertools.chain.from_iterable(pages for _, _, pages in items))
    return {page: pages.count(page) for page in pages}


@pytest.mark.parametrize("n_threads", [1, 2, 8])
def test_pages_that_eight_sequences_share_are_read_once(n_threads: int) -> None:
    trunk = Asking(np.arange(34, dtype=np.int32), 2100, 1)
    forks = [fork(trunk, 32, 2060 + 9 * i, 100 + 10 * i) for i in range(7)]
    reads = reads_of(items_of(Tree(PAGE_SIZE, [trunk, *forks], 200), n_threads=n_threads))
    assert {reads[page] for page in range(32)} == {1}


def test_pages_that_some_of_the_sharers_share_further_are_read_once_a_branch() -> None:
    trunk = Asking(np.arange(17, dtype=np.int32), 1040, 1)
    branch = fork(trunk, 8, 1050, 100)
    leaves = [fork(branch, 16, 1100, 200), fork(trunk, 12, 1100, 300)]
    reads = reads_of(items_of(Tree(PAGE_SIZE, [branch, leaves[0], trunk, leaves[1]], 400)))
    assert {reads[page] for page in [*range(12), *range(100, 108)]} == {1}
    assert {reads[page] for page in range(12, 16)} == {1}  # of the trunk alone
    assert reads[108] == 1


def test_more_threads_than_shared_spans_split_the_rows() -> None:
    trunk = Asking(np.arange(5, dtype=np.int32), 270, 1)
    sequences = [trunk, *(fork(trunk, 4, 270, 10 + i) for i in range(31))]
    shared = [item for item in items_of(Tree(PAGE_SIZE, sequences, 50), n_threads=64) if 0 in item[2]]
    assert len(shared) > 1
    assert sorted(begin for _, runs, _ in shared for begin, _ in runs) == list(range(32))
