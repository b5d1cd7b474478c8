"""Paged attention against the formula over everything that can be asked for.

A pairwise cover of dtypes, scales, sizes, features and kinds of batches, seeded; LLM_DECODER_GRID=all (`make grid`)
takes every combination of the pages' dtype, scales, features and batches instead, the queries' dtype and small sizes in
turn; LLM_DECODER_GRID=few, for sanitizers, takes so much of the cover that every level is there, and the whole cover of
GPU kernels on the host machine, of whose accesses nobody else knows.
"""

from __future__ import annotations

import functools
import itertools
import os
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from attention_cases import KV_HEADS, Batch, Case, make_batch
from attention_reference import paged_attention_reference
from attention_tolerance import LSE, Plain, check_close, int8_rows, plain_attention
from element_codes import decode
from implementations import IMPLEMENTATIONS, Implementation
from pairwise import cover, pairwise_cover

FEATURES = {
    "scales": ("none", "all", "head", "slot"),
    "causal": (True, False),
    # Edges of pages and one beside them, on either side of the token.
    "window": ((-1, -1), (0, 0), (15, -1), (16, 3), (70, -1), (-1, 17)),
    "softcap": (0.0, 5.0),
    "alibi": (False, True),
    "sinks": (False, True),
    "batch": ("decode", "prompt", "chunk", "mixed", "shared", "empty"),
}
SIZES = {
    "head_dim": (8, 40, 64, 80, 112, 128, 192, 256),
    "ratio": tuple(KV_HEADS),
    "page_size": (16, 48, 256),
    "layout": ("nhd", "joint", "hnd"),
    "lse": (True, False),
}
# With every combination of features: few heads and channels, for the formula takes its time.
SMALL_SIZES = {**SIZES, "head_dim": (8, 40, 64), "ratio": (1, 2, 5)}
# What takes more than two factors: tokens of early runs that see the keys after them.
CORNERS = tuple(
    Case("bfloat16", "bfloat16", batch="long", ratio=5, causal=False, window=window) for window in ((-1, -1), (30, 40))
)


def cases_of(implementation: Implementation) -> list[Case]:
    if os.environ.get("LLM_DECODER_GRID") == "all":
        rows = every_combination(implementation)
    else:
        rows_of = pairwise_cover if implementation.is_gpu_on_host else cover
        rows = rows_of({"dtypes": implementation.dtypes, **features_of(implementation), **SIZES}, seed=0)
    return [*CORNERS, *(_case(row, seed) for seed, row in enumerate(rows))]


def features_of(implementation: Implementation) -> dict[str, tuple[Any, ...]]:
    return {**FEATURES, "scales": implementation.scales}


def every_combination(implementation: Implementation) -> list[dict[str, Any]]:
    pairs = {kv: [pair for pair in implementation.dtypes if pair[1] == kv] for _, kv in implementation.dtypes}
    sizes = itertools.cycle(pairwise_cover(SMALL_SIZES, seed=0))
    return [
        {"dtypes": pairs[kv][number % len(pairs[kv])], **dict(zip(FEATURES, levels, strict=True)), **next(sizes)}
        for kv in pairs
        for number, levels in enumerate(itertools.product(*features_of(implementation).values()))
    ]


def _case(row: dict[str, Any], seed: int) -> Case:
    q_dtype, kv_dtype = row.pop("dtypes")
    return Case(q_dtype=q_dtype, kv_dtype=kv_dtype, **row, seed=seed)


def case_name(case: Case) -> str:
    flags = [name for name in ("causal", "alibi", "sinks", "lse") if getattr(case, name)]
    softcap = ["softcap"] if case.softcap else []
    left, right = case.window
    size = f"d{case.head_dim}-r{case.ratio}-p{case.page_size}-{case.layout}"
    return "-".join([case.q_dtype, case.kv_dtype, case.scales, size, case.batch, f"w{left},{right}", *flags, *softcap])


@functools.lru_cache(maxsize=4)
def batch_of(case: Case) -> Batch:
    """Which nobody changes."""
    return make_batch(case)


@functools.lru_cache(maxsize=4)
def judgement(
    case: Case, p_dtype: str, rounds_queries: bool
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], Plain]:
    """(out, log-sum-exp) of the formula, and plain attention."""
    batch = batch_of(case)
    q = decode(batch.q, batch.q_dtype)
    q = int8_rows(q) if rounds_queries else q
    pages = {name: decode(getattr(batch, name), batch.kv_dtype) for name in ("k_cache", "v_cache")}
    out, lse = paged_attention_reference(**{**batch.arguments(), **pages, "q": q})
    return out, lse, plain_attention(batch, q, p_dtype or case.q_dtype)


# Implementations that judge alike follow each other on one case, so that it is judged once.
GRID = sorted(
    ((case, number) for number, one in enumerate(IMPLEMENTATIONS) for case in cases_of(one)),
    key=lambda entry: (entry[0].seed, entry[1]),
)


@pytest.mark.parametrize(
    ("case", "implementation"),
    [
        pytest.param(
            case,
            IMPLEMENTATIONS[number],
            id=f"{IMPLEMENTATIONS[number].name}-{case_name(case)}",
            marks=[pytest.mark.device] * IMPLEMENTATIONS[number].needs_device,
        )
        for case, number in GRID
    ],
)
def test_attention_over_pages_follows_the_formula(case: Case, implementation: Implementation) -> None:
    rounds_queries = implementation.int8_is_vnni and case.kv_dtype == "int8"
    reference, reference_lse, plain = judgement(case, implementation.p_dtype, rounds_queries)
    batch = batch_of(case)
    out, lse = implementation.attend(batch)
    check_close(decode(out, case.q_dtype), reference, plain, batch, implementation.int8_is_vnni)
    if lse is not None:
        np.testing.assert_allclose(lse, reference_lse, rtol=1e-6, atol=LSE)
