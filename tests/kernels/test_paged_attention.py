import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from page_pool import DEAD_ENTRIES, PagePool
from reference_attention import attention, bf16, int8_rows, weight_rounding_bound

DTYPES = ("f32", "bf16", "s8")

# Share of the largest value. A result is a weighted mean of values: float32 sums over at most a few thousand terms, and
# probabilities off by what exp by table (1.5e-7) and the rounding of scores up to 50 (6e-8 each) make of them.
F32_TOLERANCE = 2e-6
# Against the floats that were given: keys and values each rounded by at most 2^-9, on normal data.
BF16_TOLERANCE = 0.01
# Against the floats that were given, int8 keys, queries and values together, on normal data; measured 1.7 %.
S8_TOLERANCE = 0.03
TOLERANCES = {"f32": F32_TOLERANCE, "bf16": BF16_TOLERANCE, "s8": S8_TOLERANCE}


@dataclass(frozen=True)
class Case:
    """A sequence of n tokens, of which the last n_tokens are queried."""

    n: int
    n_tokens: int
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 32
    page_size: int = 16
    window: int = 0
    seed: int = 0

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5

    @property
    def position(self) -> int:
        return self.n - self.n_tokens

    def draw(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        rng = np.random.default_rng((self.seed, self.n, self.head_dim))
        q = rng.standard_normal((self.n_tokens, self.n_heads, self.head_dim), np.float32) * 2
        keys = rng.standard_normal((self.n, self.n_kv_heads, self.head_dim), np.float32)
        values = rng.standard_normal((self.n, self.n_kv_heads, self.head_dim), np.float32)
        return q, keys, values

    def pool(self, dtype: str, n_spare: int = 3) -> tuple[PagePool, NDArray[np.int32]]:
        pool = PagePool(dtype, -(-self.n // self.page_size) + n_spare, self.n_kv_heads, self.head_dim, self.page_size)
        return pool, pool.table(np.random.default_rng(self.seed), self.n)


def check(case: Case, isa: str, dtype: str) -> None:
    """The kernel against the formula, on what was given and on what the pages hold."""
    q, keys, values = case.draw()
    pool, table = case.pool(dtype)
    pool.append(isa, table, 0, keys, values)
    out = pool.attend(isa, q, table, case.position, case.scale, case.window)
    largest = np.abs(values).max()
    given = attention(q, keys, values, case.position, case.scale, case.window)
    np.testing.assert_allclose(out, given, rtol=0, atol=TOLERANCES[dtype] * largest)
    if dtype == "bf16":
        stored = attention(q, bf16(keys), bf16(values), case.position, case.scale, case.window)
        np.testing.assert_allclose(out, stored, rtol=0, atol=F32_TOLERANCE * largest)
    if dtype != "s8":
        return
    expected, bound = stored_reference(case, pool, table, q)
    assert (np.abs(out - expected) <= bound + F32_TOLERANCE * largest).all()


def stored_reference(
    case: Case, pool: PagePool, table: NDArray[np.int32], q: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The formula on the bytes and scales in the pages, and what rounding the weights may change in it."""
    key_bytes, key_scales, value_bytes, value_scales = pool.stored(table, case.n)
    q_bytes, q_scales = int8_rows(q)
    exact_q, exact_keys = q_bytes * q_scales[..., None], key_bytes * key_scales[..., None]
    expected = attention(
        exact_q, exact_keys, value_bytes * value_scales[..., None], case.position, case.scale, case.window
    )
    bound = weight_rounding_bound(
        exact_q, exact_keys, value_bytes, value_scales, case.page_size, case.position, case.scale, case.window
    )
    return expected, bound


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("page_size", [16, 48, 64])
@pytest.mark.parametrize("n", [1, 3, 15, 16, 17, 31, 33, 63, 64, 65, 127, 300])
def test_decode_matches_the_formula_at_every_length(isa, dtype, n, page_size):
    check(Case(n=n, n_tokens=1, page_size=page_size), isa, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [1, 5, 16, 31, 40, 64, 80, 128, 256])
@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(2, 2), (3, 1), (14, 2), (20, 1)])
def test_decode_matches_the_formula_at_every_shape(isa, dtype, head_dim, n_heads, n_kv_heads):
    check(Case(n=70, n_tokens=1, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, page_size=32), isa, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "n_tokens"), [(1, 1), (33, 33), (127, 127), (100, 31), (64, 3), (129, 65)])
@pytest.mark.parametrize("page_size", [16, 64])
def test_prefill_matches_the_formula(isa, dtype, n, n_tokens, page_size):
    check(Case(n=n, n_tokens=n_tokens, n_heads=3, n_kv_heads=1, page_size=page_size), isa, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [1, 2, 15, 16, 17, 31, 32, 33, 99, 100, 101])
@pytest.mark.parametrize("n_tokens", [1, 40])
def test_a_window_shows_its_last_positions_only(isa, dtype, window, n_tokens):
    check(Case(n=100, n_tokens=n_tokens, window=window), isa, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_more_heads_than_a_block_has_rows(isa, dtype):
    check(Case(n=40, n_tokens=2, n_heads=101, n_kv_heads=1, head_dim=16), isa, dtype)


def test_large_scores_of_a_sharp_softmax(isa):
    case = Case(n=100, n_tokens=5)
    q, keys, values = case.draw()
    pool, table = case.pool("f32")
    pool.append(isa, table, 0, keys, values)
    out = pool.attend(isa, q * 1000, table, case.position, case.scale)
    # Scores near 10^4 are themselves rounded to 5e-4.
    np.testing.assert_allclose(out, attention(q * 1000, keys, values, case.position, case.scale), atol=2e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [0, 21])
def test_any_chunking_gives_the_same_bits(isa, dtype, window):
    """Pages fill as the chunks come, so each chunk also proves that slots not yet written are not seen."""
    case = Case(n=130, n_tokens=130, n_heads=6, n_kv_heads=2, head_dim=40, page_size=32, window=window)
    q, keys, values = case.draw()
    pool, table = case.pool(dtype)
    pool.append(isa, table, 0, keys, values)
    whole = pool.attend(isa, q, table, 0, case.scale, window)
    for chunks in ([1] * 130, [7, 33, 60, 30], [32, 64, 34], [129, 1]):
        pool, table = case.pool(dtype)
        parts = []
        for begin, end in itertools.pairwise(np.cumsum([0, *chunks])):
            pool.append(isa, table, int(begin), keys[begin:end], values[begin:end])
            parts.append(pool.attend(isa, q[begin:end], table, int(begin), case.scale, window))
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mixed_batch_gives_every_sequence_what_it_gets_alone(isa, dtype):
    cases = [Case(n=n, n_tokens=n_tokens, seed=n) for n, n_tokens in [(1, 1), (50, 50), (77, 1), (100, 13), (16, 0)]]
    pool = PagePool(dtype, 30, 2, 32, 16)
    pages = np.random.default_rng(0).permutation(30).astype(np.int32)
    drawn = [case.draw() for case in cases]
    tables = []
    for case, (_, keys, values) in zip(cases, drawn, strict=True):
        n_pages = -(-case.n // 16)
        table, pages = pages[:n_pages], pages[n_pages:]
        pool.append(isa, table, 0, keys, values)
        tables.append(table)
    queries, positions = [q for q, _, _ in drawn], [case.position for case in cases]
    together = pool.attend_batch(isa, queries, tables, positions, cases[0].scale)
    for q, table, position, out in zip(queries, tables, positions, together, strict=True):
        np.testing.assert_array_equal(pool.attend(isa, q, table, position, cases[0].scale), out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ratio", [3, 7, 8])
def test_heads_that_share_keys_get_what_each_gets_alone(isa, dtype, ratio):
    case = Case(n=90, n_tokens=20, n_heads=ratio, n_kv_heads=1)
    q, keys, values = case.draw()
    pool, table = case.pool(dtype)
    pool.append(isa, table, 0, keys, values)
    together = pool.attend(isa, q, table, case.position, case.scale)
    for head in range(ratio):
        alone = pool.attend(isa, np.ascontiguousarray(q[:, head : head + 1]), table, case.position, case.scale)
        np.testing.assert_array_equal(alone, together[:, head : head + 1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_sequences_may_share_pages(isa, dtype):
    case = Case(n=48, n_tokens=1)
    q, keys, values = case.draw()
    pool, table = case.pool(dtype)
    pool.append(isa, table, 0, keys, values)
    fork = table[:4].copy()
    fork[2] = next(page for page in range(pool.n_pages) if page not in table)
    pool.append(isa, fork, 32, keys[:16], values[:16])
    own = pool.attend(isa, q, table, 47, case.scale)
    both = pool.attend_batch(isa, [q, q], [fork, table], [47, 47], case.scale)
    np.testing.assert_array_equal(both[1], own)
    forked = np.concatenate([keys[:32], keys[:16]]), np.concatenate([values[:32], values[:16]])
    tolerance = TOLERANCES[dtype]
    np.testing.assert_allclose(both[0], attention(q, *forked, 47, case.scale), atol=tolerance * np.abs(values).max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_tokens", [1, 20])
def test_pages_left_of_the_window_and_their_entries_are_not_read(isa, dtype, n_tokens):
    case = Case(n=100, n_tokens=n_tokens, window=33)
    q, keys, values = case.draw()
    pool, table = case.pool(dtype)
    pool.append(isa, table, 0, keys, values)
    before = pool.attend(isa, q, table, case.position, case.scale, case.window)
    first = (case.position - case.window + 1) // case.page_size
    assert first > 0
    for index in range(first):
        pool.poison(table[index])
        table[index] = DEAD_ENTRIES[index % len(DEAD_ENTRIES)]
    np.testing.assert_array_equal(pool.attend(isa, q, table, case.position, case.scale, case.window), before)


@pytest.mark.parametrize("window", [0, 5])
def test_a_later_token_with_nan_does_not_reach_the_tokens_before_it(isa, window):
    case = Case(n=40, n_tokens=40, window=window)
    q, keys, values = case.draw()
    pool, table = case.pool("f32")
    pool.append(isa, table, 0, keys, values)
    clean = pool.attend(isa, q, table, 0, case.scale, window)
    keys[21] = values[21] = np.nan
    pool.append(isa, table, 21, keys[21:22], values[21:22])
    poisoned = pool.attend(isa, q, table, 0, case.scale, window)
    sees_it = np.arange(40) >= 21
    if window:
        sees_it &= np.arange(40) < 21 + window
    np.testing.assert_array_equal(poisoned[~sees_it], clean[~sees_it])
    assert np.isnan(poisoned[sees_it]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", ["q", "key", "value"])
def test_a_nan_that_a_row_sees_shows_in_its_result(isa, dtype, where):
    case = Case(n=40, n_tokens=1)
    q, keys, values = case.draw()
    {"q": q, "key": keys, "value": values}[where][0, 1] = np.nan
    pool, table = case.pool(dtype)
    pool.append(isa, table, 0, keys, values)
    out = pool.attend(isa, q, table, case.position, case.scale)
    poisoned = [1] if where == "q" else [2, 3]  # one head, or the two heads that share KV head 1
    assert np.isnan(out[0, poisoned]).all()
    assert np.isfinite(np.delete(out[0], poisoned, axis=0)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_of_minus_infinity_weigh_nothing_and_alone_give_zero(isa, dtype):
    case = Case(n=40, n_tokens=1, n_heads=1, n_kv_heads=1)
    q, keys, values = case.draw()
    q[:], keys[:] = 1, -3e38
    pool, table = case.pool(dtype)
    pool.append(isa, table, 0, keys, values)
    np.testing.assert_array_equal(pool.attend(isa, q, table, 39, 1.0), np.zeros_like(q))
    keys[30] = 0
    pool.append(isa, table, 30, keys[30:31], values[30:31])
    tolerance = TOLERANCES[dtype]
    np.testing.assert_allclose(pool.attend(isa, q, table, 39, 1.0)[0, 0], values[30, 0], atol=tolerance)


def test_zero_values_do_not_coarsen_the_page_they_lie_in(isa):
    case = Case(n=16, n_tokens=1, n_heads=1, n_kv_heads=1)
    q, keys, values = case.draw()
    q[:] = 0
    values *= 1e-3
    values[::2] = 0
    pool, table = case.pool("s8")
    pool.append(isa, table, 0, keys, values)
    out = pool.attend(isa, q, table, 15, case.scale)[0, 0]
    np.testing.assert_allclose(out, values.mean(axis=0)[0], atol=S8_TOLERANCE * np.abs(values).max())


@pytest.mark.parametrize("needle", [0, 15_000, 32_767])
def test_int8_finds_a_needle_in_32k_tokens_and_keeps_the_flat_tail(isa, needle):
    """The tail is e^8 below the needle, far below 1/255 of it, and still holds nine tenths of the whole weight."""
    case = Case(n=32_768, n_tokens=1, n_heads=1, n_kv_heads=1, head_dim=16, page_size=64)
    q, keys, values = case.draw()
    values += 1
    q[:], keys[:] = 0, 0
    q[0, 0, 0], keys[needle, 0, 0] = 1 / case.scale, 8
    values[needle] = 50
    pool, table = case.pool("s8")
    pool.append(isa, table, 0, keys, values)
    out = pool.attend(isa, q, table, case.position, case.scale)
    given = attention(q, keys, values, case.position, case.scale)
    tail_share = (case.n - 1) / (case.n - 1 + np.exp(8))
    assert 0.9 < tail_share < 0.95
    np.testing.assert_allclose(given, 50 * (1 - tail_share) + tail_share, atol=0.1)
    expected, bound = stored_reference(case, pool, table, q)
    # 32768 terms in sixteen float32 sums.
    assert (np.abs(out - expected) <= bound + 1e-4).all()
    np.testing.assert_allclose(out, given, rtol=5e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case",
    [
        Case(n=100, n_tokens=100, n_heads=6, head_dim=40),
        Case(n=300, n_tokens=1, n_heads=14, head_dim=128, page_size=64),
        Case(n=77, n_tokens=30, head_dim=5, page_size=32, window=13),
    ],
)
def test_every_isa_gives_the_bits_of_generic(isa, dtype, case):
    q, keys, values = case.draw()
    results = []
    for name in (isa, "generic"):
        pool, table = case.pool(dtype)
        pool.append(name, table, 0, keys, values)
        results.append(pool.attend(name, q, table, case.position, case.scale, case.window))
    np.testing.assert_array_equal(results[0], results[1])
