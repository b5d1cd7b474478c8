"""On a GPU, with torch's tensors: streams, graphs, pinned memory. What is computed is judged by the other tests; here
it is whether it is computed on what torch has, when torch has it."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from paged_batch import PagedBatch
from test_fused_moe_op import check, problem

from llm_decoder import ops

pytestmark = pytest.mark.device
HEADS = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 64}


@pytest.fixture
def torch() -> ModuleType:
    found = pytest.importorskip("torch")
    if not found.cuda.is_available():
        pytest.skip("this torch knows no GPU")
    return found


def there(torch: Any, array: np.ndarray, dtype: str | None = None) -> Any:
    """A copy on the device; dtype: torch's name of what 16-bit codes stand for."""
    if dtype is None:
        return torch.from_numpy(array.copy()).cuda()
    return torch.from_numpy(array.view(np.int16).copy()).view(getattr(torch, dtype)).cuda()


def codes(torch: Any, tensor: Any) -> np.ndarray:
    return tensor.view(torch.int16).cpu().numpy().view(np.uint16)


def on_device(torch: Any, batch: PagedBatch) -> list[Any]:
    halves = [there(torch, array, "bfloat16") for array in batch.arguments()[:3]]
    return [*halves, there(torch, batch.block_table), batch.seq_lens, batch.cu_seqlens_q]


def test_results_are_torchs_and_on_its_device(torch: Any) -> None:
    batch = PagedBatch()
    out, lse = ops.paged_attention(*on_device(torch, batch), return_lse=True)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    assert out.is_cuda
    batch.check(codes(torch, out), lse.cpu().numpy())


def test_lengths_may_be_there_too(torch: Any) -> None:
    batch = PagedBatch(((2, 20), (1, 300)))
    lengths = [there(torch, array) for array in (batch.seq_lens, batch.cu_seqlens_q)]
    out, lse = ops.paged_attention(*on_device(torch, batch)[:4], *lengths, return_lse=True)
    batch.check(codes(torch, out), lse.cpu().numpy())


def test_pools_of_more_than_2_to_the_31_elements(torch: Any) -> None:
    batch = PagedBatch(((1, 300), (20, 40)))
    q, *caches, table, seq_lens, cu_seqlens_q = on_device(torch, batch)
    n_before = 1 << 20  # pages of 2048 elements
    pools = [
        torch.empty((n_before + len(cache), *cache.shape[1:]), dtype=cache.dtype, device="cuda") for cache in caches
    ]
    for pool, cache in zip(pools, caches, strict=True):
        pool[n_before:] = cache
    table = torch.where(table >= 0, table + n_before, table)
    out, lse = ops.paged_attention(q, *pools, table, seq_lens, cu_seqlens_q, return_lse=True)
    batch.check(codes(torch, out), lse.cpu().numpy())


def test_a_call_on_another_stream_sees_what_was_written_there_before_it(torch: Any) -> None:
    batch = PagedBatch(((1, 3000), (1, 900)))
    tensors = on_device(torch, batch)
    q = torch.zeros_like(tensors[0])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # cycles, before q is written
        q.copy_(tensors[0])
        out, lse = ops.paged_attention(q, *tensors[1:], return_lse=True)
    stream.synchronize()
    batch.check(codes(torch, out), lse.cpu().numpy())


def test_a_graph_is_replayed_with_other_queries(torch: Any) -> None:
    batch, other = PagedBatch(((1, 3000), (1, 900))), PagedBatch(((1, 3000), (1, 900)), seed=5)
    tensors = on_device(torch, batch)
    plan = ops.plan_attention(batch.seq_lens, batch.cu_seqlens_q, device="cuda", **HEADS)
    out = torch.empty_like(tensors[0])

    def call() -> None:
        ops.paged_attention(*tensors, plan=plan, out=out)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    tensors[0].copy_(there(torch, other.q, "bfloat16"))
    out.zero_()
    graph.replay()
    torch.cuda.synchronize()
    batch.q = other.q
    lse = batch.reference()[1].astype(np.float32)
    batch.check(codes(torch, out), lse)


def test_a_plan_made_once_serves_calls_on_two_streams_in_turn(torch: Any) -> None:
    batch = PagedBatch(((1, 3000), (7, 900)))
    tensors = on_device(torch, batch)
    plan = ops.plan_attention(batch.seq_lens, batch.cu_seqlens_q, device="cuda", **HEADS)
    for _ in range(2):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            out, lse = ops.paged_attention(*tensors, plan=plan, return_lse=True)
        torch.cuda.current_stream().wait_stream(stream)
        batch.check(codes(torch, out), lse.cpu().numpy())


def test_pages_are_written_copied_swapped_out_and_in_and_attended_to(torch: Any) -> None:
    batch = PagedBatch(((1, 40),))
    q, k_pages, v_pages, table, *lengths = on_device(torch, batch)
    order = table[0, :3].long()
    key, value = (pages[order].reshape(48, 2, 64)[:40].contiguous() for pages in (k_pages, v_pages))
    k_cache, v_cache = (torch.full((6, 16, 2, 64), float("nan"), dtype=torch.bfloat16, device="cuda") for _ in "kv")
    slots = torch.arange(40, device="cuda") + 16
    ops.reshape_and_cache(key, value, k_cache, v_cache, slots)
    ops.copy_blocks([k_cache], [v_cache], np.array([[2, 5]]))
    host = [torch.empty((4, 16, 2, 64), dtype=torch.bfloat16, pin_memory=True) for _ in "kv"]
    for here, cache in zip(host, (k_cache, v_cache), strict=True):
        ops.swap_blocks(cache, here, np.array([[1, 3], [3, 0]]))
        cache[1] = cache[3] = float("nan")
        ops.swap_blocks(here, cache, np.array([[3, 1], [0, 3]]))
        cache[2] = float("nan")
    moved = torch.tensor([[1, 5, 3]], dtype=torch.int32, device="cuda")
    out, lse = ops.paged_attention(q, k_cache, v_cache, moved, *lengths, return_lse=True)
    batch.check(codes(torch, out), lse.cpu().numpy())


def test_states_of_two_halves_merge_there(torch: Any) -> None:
    batch = PagedBatch(((1, 90), (1, 64)))
    tensors = on_device(torch, batch)
    first = np.array([48, 32], np.int32)
    tables = [tensors[3], torch.stack([tensors[3][0, 3:6], tensors[3][1, 2:5]]).contiguous()]
    halves = [
        ops.paged_attention(*tensors[:3], half, lens, batch.cu_seqlens_q, causal=False, return_lse=True)
        for half, lens in zip(tables, (first, batch.seq_lens - first), strict=True)
    ]
    out, lse = ops.merge_states(*zip(*halves, strict=True), return_lse=True)
    batch.check(codes(torch, out), lse.cpu().numpy(), causal=False)


def test_pages_of_fp8_come_as_bytes(torch: Any) -> None:
    batch = PagedBatch(((2, 20), (1, 300)), kv_dtype="fp8")
    q = there(torch, batch.q, "bfloat16")
    pages = [there(torch, array) for array in batch.arguments()[1:3]]
    table = there(torch, batch.block_table)
    lengths = (batch.seq_lens, batch.cu_seqlens_q)
    scales = {"k_scale": 0.5, "v_scale": there(torch, np.array([2.0, 0.25], np.float32))}
    out, lse = ops.paged_attention(q, *pages, table, *lengths, kv_dtype="fp8", return_lse=True, **scales)
    batch.check(codes(torch, out), lse.cpu().numpy(), k_scale=0.5, v_scale=np.array([2.0, 0.25], np.float32))


def test_a_mixture_of_experts_is_recorded_and_replayed(torch: Any) -> None:
    p = problem()
    tensors = {name: there(torch, p[name], "bfloat16") for name in ("hidden", "w1", "w2")}
    tensors |= {name: there(torch, p[name]) for name in ("topk_weights", "topk_ids")}
    check(codes(torch, ops.fused_moe(**tensors)), p)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ops.fused_moe(**tensors)
    graph.replay()
    torch.cuda.synchronize()
    check(codes(torch, out), p)
