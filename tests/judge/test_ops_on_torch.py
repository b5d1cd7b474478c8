"""llm_decoder.ops on torch tensors of the CPU, with torch's own attention as the judge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llm_decoder import ops
from llm_decoder.errors import InvalidArgumentError

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.judge, pytest.mark.filterwarnings("default")]

S, HQ, HKV, D = 16, 6, 2, 64
N_KEYS, N_QUERIES = (37, 1, 18), (5, 1, 18)
ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-11}


@pytest.fixture(params=["bfloat16", "float16"])
def dtype(request: pytest.FixtureRequest) -> Any:
    return getattr(torch, request.param)


def batch(dtype: Any) -> dict[str, Any]:
    """Keys and values go to their pages by reshape_and_cache; pages are one tensor [P, 2, S, Hkv, D]."""
    torch.manual_seed(0)
    n_pages = [-(-n // S) for n in N_KEYS]
    free = torch.randperm(sum(n_pages) + 2).tolist()
    table = torch.full((len(N_KEYS), max(n_pages)), -7, dtype=torch.int32)
    pool = torch.full((len(free), 2, S, HKV, D), float("nan"), dtype=dtype)
    k_cache, v_cache = pool.unbind(1)
    keys, values = [], []
    for row, n_keys, n in zip(table, N_KEYS, n_pages, strict=True):
        pages = [free.pop() for _ in range(n)]
        row[:n] = torch.tensor(pages)
        key, value = torch.randn(2, n_keys, HKV, D).to(dtype)
        slots = torch.tensor([pages[i // S] * S + i % S for i in range(n_keys)])
        ops.reshape_and_cache(key, value, k_cache, v_cache, slots)
        keys.append(key)
        values.append(value)
    return {
        "q": torch.randn(sum(N_QUERIES), HQ, D).to(dtype),
        "k_cache": k_cache,
        "v_cache": v_cache,
        "block_table": table,
        "seq_lens": torch.tensor(N_KEYS, dtype=torch.int32),
        "cu_seqlens_q": torch.tensor(np.cumsum([0, *N_QUERIES]), dtype=torch.int32),
        "keys": keys,
        "values": values,
    }


def judged(b: dict[str, Any]) -> Any:
    """By torch, in float64."""
    outs = []
    for i, (n_keys, n_queries) in enumerate(zip(N_KEYS, N_QUERIES, strict=True)):
        begin = int(b["cu_seqlens_q"][i])
        q = b["q"][begin : begin + n_queries].detach().double().transpose(0, 1)
        key, value = (
            b[name][i].double().transpose(0, 1).repeat_interleave(HQ // HKV, 0) for name in ("keys", "values")
        )
        mask = torch.ones(n_queries, n_keys, dtype=torch.bool).tril(n_keys - n_queries)
        outs.append(torch.nn.functional.scaled_dot_product_attention(q, key, value, attn_mask=mask).transpose(0, 1))
    return torch.cat(outs)


def attend(b: dict[str, Any], **changes: Any) -> Any:
    names = ("q", "k_cache", "v_cache", "block_table", "seq_lens", "cu_seqlens_q")
    return ops.paged_attention(*(changes.pop(name, b[name]) for name in names), **changes)


def check(out: Any, want: Any) -> None:
    bound = 2 * ROUNDING[str(out.dtype).removeprefix("torch.")] * want.abs().max()
    assert (out.double() - want).abs().max() <= bound


def test_attention_is_torchs(dtype: Any) -> None:
    b = batch(dtype)
    out, lse = attend(b, return_lse=True)
    assert (out.dtype, lse.dtype, out.shape) == (dtype, torch.float32, b["q"].shape)
    check(out, judged(b))


def test_queries_and_results_may_lie_apart(dtype: Any) -> None:
    b = batch(dtype)
    q = b["q"].transpose(0, 1).contiguous().transpose(0, 1)
    wide = torch.zeros(len(q), 2 * HQ, D, dtype=dtype)
    out = wide[:, ::2]
    assert attend(b, q=q, out=out) is out
    check(out, judged(b))
    assert not wide[:, 1::2].any()
    with pytest.raises(InvalidArgumentError, match="the elements of the last axis of q must lie beside each other"):
        attend(b, q=torch.zeros(len(q), HQ, 2 * D, dtype=dtype)[..., ::2])


def test_halves_of_the_keys_merge_to_the_whole(dtype: Any) -> None:
    b = batch(dtype)
    first = torch.tensor([S, 1, S], dtype=torch.int32)
    one = torch.arange(4, dtype=torch.int32)
    q = b["q"][:3]
    parts = [
        ops.paged_attention(q, b["k_cache"], b["v_cache"], table, lens, one, return_lse=True, causal=False)
        for table, lens in (
            (b["block_table"], first),
            (torch.cat([b["block_table"][:, 1:], b["block_table"][:, :1]], 1), b["seq_lens"] - first),
        )
    ]
    assert parts[1][1][1].isneginf().all()
    parts[0][1][1], parts[0][0][1] = -torch.inf, torch.nan  # now nobody has seen its one key
    merged, lse = ops.merge_states(*zip(*parts, strict=True), return_lse=True)
    assert (merged.dtype, lse.dtype) == (dtype, torch.float32)
    assert lse[1].isneginf().all()
    assert not merged[1].any()
    whole = ops.paged_attention(
        q, b["k_cache"], b["v_cache"], b["block_table"], b["seq_lens"], one, causal=False
    ).double()
    check(merged[[0, 2]], whole[[0, 2]])


def test_a_tensor_with_a_gradient_is_refused_with_torchs_words(dtype: Any) -> None:
    b = batch(dtype)
    q = b["q"].requires_grad_()
    with pytest.raises(InvalidArgumentError, match=r"^\[paged_attention\] q: .*requires? grad"):
        attend(b, q=q)
    check(attend(b, q=q.detach()), judged(b))


def test_no_tokens_are_no_work(dtype: Any) -> None:
    b = batch(dtype)
    nothing = {
        "q": b["q"][:0],
        "block_table": b["block_table"][:0],
        "seq_lens": b["seq_lens"][:0],
        "cu_seqlens_q": torch.zeros(1, dtype=torch.int32),
    }
    out, lse = attend(b, **nothing, return_lse=True)
    assert (out.shape, lse.shape) == ((0, HQ, D), (0, HQ))
    was = b["k_cache"].clone()
    rows = torch.zeros(0, HKV, D, dtype=dtype)
    ops.reshape_and_cache(rows, rows, b["k_cache"], b["v_cache"], torch.zeros(0, dtype=torch.int64))
    assert torch.equal(was.nan_to_num(), b["k_cache"].nan_to_num())
    merged = ops.merge_states([b["q"][:0]] * 2, [torch.zeros(0, HQ)] * 2)
    assert merged.shape == (0, HQ, D)


def test_read_only_arrays_go_beside_torchs_but_take_no_result() -> None:
    b = batch(torch.float16)
    arrays = {}
    for name in ("q", "k_cache", "v_cache", "block_table", "seq_lens", "cu_seqlens_q"):
        arrays[name] = b[name].numpy().copy()
        arrays[name].flags.writeable = False
    out = ops.paged_attention(**arrays)
    assert isinstance(out, np.ndarray)
    check(torch.from_numpy(out), judged(b))
    check(attend(b, block_table=arrays["block_table"], seq_lens=arrays["seq_lens"]), judged(b))
    with pytest.raises(InvalidArgumentError, match="out must be writeable, got a read-only array"):
        ops.paged_attention(**arrays, out=arrays["q"])
    with pytest.raises(InvalidArgumentError, match="k_cache must be writeable, got a read-only array"):
        ops.reshape_and_cache(
            arrays["q"][:, :HKV].copy(), arrays["q"][:, :HKV].copy(), arrays["k_cache"], arrays["v_cache"],
            np.zeros(len(arrays["q"]), np.int64),
        )  # fmt: skip


def test_what_stands_around_attention_answers_in_kind(dtype: Any) -> None:
    b = batch(dtype)
    x, weight = torch.randn(5, 48).to(dtype), torch.randn(48).to(dtype)
    normed = ops.rms_norm(x, weight, 1e-5)
    assert normed.dtype == dtype
    check(normed, torch.nn.functional.rms_norm(x.double(), (48,), weight.double(), 1e-5))
    residual = torch.randn(5, 48).to(dtype)
    total = x.double() + residual.double()
    ops.layer_norm(x, weight, residual=residual)
    check(residual, total)
    gate, up = torch.randn(5, 96).to(dtype).chunk(2, dim=1)
    both = torch.cat([gate, up], 1)
    check(ops.gated(both), torch.nn.functional.silu(gate.double()) * up.double())
    assert torch.equal(ops.embed(torch.tensor([3, 0], dtype=torch.int32), x), x[[3, 0]])

    got = ops.sample(x, seed=torch.arange(5), temperature=torch.full((5,), 1e-4), n_best=2)
    assert (got.tokens.dtype, got.logprobs.dtype) == (torch.int32, torch.float32)
    assert torch.equal(got.best_tokens.long(), x.double().topk(2).indices)
    want = x.double().log_softmax(1).gather(1, got.tokens.long()[:, None])[:, 0]
    torch.testing.assert_close(got.logprobs.double(), want, atol=2e-5, rtol=1e-5)

    weights, ids = ops.moe_routing(x[:, :8], 2, renormalize=True)
    top = x[:, :8].double().softmax(1).topk(2)
    assert torch.equal(ids.long(), top.indices)
    torch.testing.assert_close(weights.double(), top.values / top.values.sum(1, keepdim=True), atol=1e-5, rtol=1e-5)

    packed = ops.pack_weights(torch.randn(24, 48).to(dtype), "w8")
    assert ops.small_product(x, packed).shape == (5, 24)

    q = b["q"].clone()
    angles = torch.rand(len(q), D // 2)
    key, value = torch.zeros(2, len(q), HKV, D, dtype=dtype)
    ops.append_kv(
        q, key, value, b["k_cache"], b["v_cache"], torch.full((len(q),), -1),
        rotary_cos=angles.cos(), rotary_sin=angles.sin(),
    )  # fmt: skip
    turned = (
        torch.view_as_complex(torch.stack(b["q"].double().chunk(2, dim=-1), -1))
        * torch.exp(1j * angles.double())[:, None]
    )
    check(q, torch.cat([turned.real, turned.imag], -1))
