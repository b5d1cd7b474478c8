"""On the CPU a token's result is the same bits whatever is computed beside it."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from attention_cases import BATCHES, Batch, Case, make_batch
from implementations import attend_on_cpu

from llm_decoder import _core

PAGES = ("float32", "bfloat16", "float16", "fp8", "int8")
EVERYTHING = Case(
    kv_dtype="float32", head_dim=40, ratio=5, window=(40, -1), softcap=5.0, alibi=True, sinks=True, batch="prompt"
)
PLAIN = Case(head_dim=40, ratio=5, batch="prompt")
FREE = dataclasses.replace(EVERYTHING, causal=False, window=(20, 9))


def of(case: Case, kv_dtype: str, batch: str) -> Batch:
    scales = "slot" if kv_dtype in ("fp8", "int8") else "none"
    return make_batch(dataclasses.replace(case, kv_dtype=kv_dtype, scales=scales, batch=batch))


def assert_same_bits(got: tuple[np.ndarray, np.ndarray | None], want: tuple[np.ndarray, np.ndarray | None]) -> None:
    np.testing.assert_array_equal(got[0], want[0])
    assert got[1] is not None
    np.testing.assert_array_equal(got[1], want[1])


@pytest.mark.parametrize("case", [PLAIN, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("kv_dtype", PAGES)
@pytest.mark.parametrize("chunks", [[1] * 70, [7, 33, 30], [64, 6]], ids=["tokens", "odd", "pages"])
def test_any_chunking_of_a_prompt_gives_the_same_bits(case, kv_dtype, chunks):
    prompt = of(case, kv_dtype, "prompt").sequence(2)
    whole = attend_on_cpu(prompt)
    for begin, end in itertools.pairwise(np.cumsum([0, *chunks])):
        chunk = dataclasses.replace(
            prompt,
            q=prompt.q[begin:end],
            seq_lens=np.array([end], np.int32),
            cu_seqlens_q=np.array([0, end - begin], np.int32),
        )
        assert whole[1] is not None
        assert_same_bits(attend_on_cpu(chunk), (whole[0][begin:end], whole[1][begin:end]))


@pytest.mark.parametrize("case", [PLAIN, EVERYTHING, FREE], ids=["plain", "everything", "free"])
@pytest.mark.parametrize("kv_dtype", PAGES)
@pytest.mark.parametrize("kind", BATCHES)
def test_a_batch_gives_every_sequence_the_bits_it_gets_alone_on_any_number_of_threads(case, kv_dtype, kind):
    batch = of(case, kv_dtype, kind)
    one_thread = attend_on_cpu(batch, n_threads=1)
    for n_threads in (2, 3, 16):
        assert_same_bits(attend_on_cpu(batch, n_threads=n_threads), one_thread)
    for number, (begin, end) in enumerate(itertools.pairwise(batch.cu_seqlens_q)):
        assert one_thread[1] is not None
        alone = attend_on_cpu(batch.sequence(number), n_threads=1)
        assert_same_bits(alone, (one_thread[0][begin:end], one_thread[1][begin:end]))


@pytest.mark.parametrize("case", [PLAIN, EVERYTHING, FREE], ids=["plain", "everything", "free"])
@pytest.mark.parametrize("kv_dtype", PAGES)
@pytest.mark.parametrize("isa", _core.isas())
def test_every_isa_gives_the_bits_of_generic(case, kv_dtype, isa):
    batch = of(case, kv_dtype, "mixed")
    assert_same_bits(attend_on_cpu(batch, isa=isa), attend_on_cpu(batch, isa="generic"))
