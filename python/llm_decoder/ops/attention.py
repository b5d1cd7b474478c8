"""paged_attention: reads its arguments, finds who computes, and calls it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_decoder.backends import paged_attention_op
from llm_decoder.ops import checks
from llm_decoder.ops.kv_scales import Scale, host_value, raw_scale, read_floats, read_scale
from llm_decoder.ops.machines import Addresses, GpuKernels, compiled_code, kernels_for, n_threads, stream_of
from llm_decoder.ops.plan import AttentionPlan, Ints, Lengths, check_fixed_split, read_lengths
from llm_decoder.ops.tensors import Tensor, device_of, make_like, view_tensor

PLACE = "paged_attention"

# What is computed where: dtypes of q, and of the pages with each.
CPU_KV_DTYPES = (*checks.FLOATS, "fp8", "int8")
GPU_Q_DTYPES = checks.FLOATS[1:]
SUPPORTED = (
    "supported are, on the CPU, q in float32, bfloat16 or float16 with pages in any of float32, bfloat16, float16, "
    "fp8, int8; on a GPU, q in bfloat16 or float16 with pages in the same dtype, fp8 or int8; everywhere head_dim a "
    "multiple of 8 up to 256, pages of any multiple of 16 slots, any whole ratio of heads, causal, window, softcap, "
    "alibi_slopes, sinks and scales in any combination"
)


def paged_attention(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    block_table: Any,
    seq_lens: Any,
    cu_seqlens_q: Any,
    *,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    scale: float | None = None,
    causal: bool = True,
    window: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Any | None = None,
    sinks: Any | None = None,
    k_scale: Any | None = None,
    v_scale: Any | None = None,
    out: Any | None = None,
    return_lse: bool = False,
    plan: AttentionPlan | None = None,
    fixed_split: int = 0,
    q_dtype: str | None = None,
    kv_dtype: str | None = None,
    stream: int | None = None,
) -> Any:
    """Attention of T tokens of B sequences over their keys and values in pages: prompts, chunks, decodes, checks of
    guesses, alone or mixed. Returns out [T, Hq, D], or (out, lse float32 [T, Hq], base e).

    q [T, Hq, D]: the tokens of sequence b are rows cu_seqlens_q[b] to cu_seqlens_q[b + 1] - 1; of rows past the last
    the result is 0.
    k_cache, v_cache [P, S, Hkv, D]: P pages of S slots. q_dtype, kv_dtype: the dtype that integers stand for.
    block_table int32 [B, M]: key j of sequence b is in slot j % S of page block_table[b, j // S]. Entries that no token
    needs, past its end or left of the window, may be anything.
    seq_lens int32 [B]: keys of each sequence; its tokens are the last of them. cu_seqlens_q int32 [B + 1].
    max_seqlen_q, max_seqlen_k: not needed; checked where given.
    scale: of q . k; None: D ** -0.5. causal: a token sees no key after its own position. window (left, right): nor keys
    further away than that; -1: no limit; right counts without causal only.
    softcap: logits become softcap * tanh(logit / softcap), before what follows; 0: none.
    alibi_slopes float32 [Hq]: slope * distance is subtracted. sinks float32 [Hq]: a logit that takes part in the sum.
    k_scale, v_scale: what elements of the pages are multiplied by: a float, float32 [Hkv] or [P, S, Hkv].
    out: where the result goes, of q's dtype. plan: of plan_attention, so that lengths are not looked at again; on a GPU
    a call without one plans by itself and waits. fixed_split: as there. stream: the handle of the CUDA stream to work
    on; None: that which the framework of q works on now.

    Everything is on the device of q; on a GPU, arrays other than q, the pages and out may be in host memory, at the
    cost of a copy and a wait. A row that sees nothing is 0, its lse -inf (with sinks, the sink). A block_table on a GPU
    is trusted; in host memory it is checked.

    Raises InvalidArgumentError for arguments that do not fit and combinations that nobody computes, BackendError for a
    device that cannot be used.
    """
    device = device_of(PLACE, "q", q)
    handle = stream_of(PLACE, q, device, stream)
    call = _read_call(
        device,
        handle,
        tensors={"q": (q, q_dtype), "k_cache": (k_cache, kv_dtype), "v_cache": (v_cache, kv_dtype)},
        block_table=block_table,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        k_scale=k_scale,
        v_scale=v_scale,
        scale=scale,
        causal=causal,
        window=window,
        softcap=softcap,
    )
    kernels = kernels_for(PLACE, device)
    _check_supported(call, kernels)
    split = check_fixed_split(PLACE, fixed_split)
    if plan is None:
        lengths = read_lengths(PLACE, seq_lens, cu_seqlens_q, handle)
    else:
        _check_plan(call, plan, split)
        lengths = plan.lengths
    _check_sizes(call, lengths, max_seqlen_q, max_seqlen_k)

    result = make_like(PLACE, call.q, call.q.shape) if out is None else out
    out_tensor = _check_out(call, result, q_dtype, handle)
    has_lse = checks.check_flag(PLACE, "return_lse", return_lse)
    lse = make_like(PLACE, call.q, call.q.shape[:2], "float32") if has_lse else None
    lse_tensor = None if lse is None else view_tensor(PLACE, "lse", lse, stream=handle)
    if kernels is None:
        _run_on_cpu(call, lengths, out_tensor, lse_tensor)
    else:
        if call.block_table.device == "cpu":
            check_pages(call, lengths)
        addresses = Addresses(kernels, device, handle)
        if plan is None:
            plan = _plan(call, lengths, split, handle)
            addresses.hold(plan)
        with compiled_code(PLACE):
            _run_on_gpu(call, kernels, plan, addresses, out_tensor, lse_tensor, handle)
    return result if lse is None else (result, lse)


@dataclass(frozen=True, slots=True)
class _Call:
    device: str
    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    block_table: Tensor
    alibi_slopes: Tensor | None
    sinks: Tensor | None
    k_scale: Scale
    v_scale: Scale
    scale: float
    causal: bool
    window: tuple[int, int]
    softcap: float

    @property
    def n_heads(self) -> int:
        return self.q.shape[1]

    @property
    def n_kv_heads(self) -> int:
        return self.k_cache.shape[2]

    @property
    def head_dim(self) -> int:
        return self.q.shape[2]

    @property
    def page_size(self) -> int:
        return self.k_cache.shape[1]


def _read_call(
    device: str,
    stream: int,
    *,
    tensors: dict[str, tuple[Any, str | None]],
    block_table: Any,
    alibi_slopes: Any,
    sinks: Any,
    k_scale: Any,
    v_scale: Any,
    scale: Any,
    causal: Any,
    window: Any,
    softcap: Any,
) -> _Call:
    q, k_cache, v_cache = (view_tensor(PLACE, name, value, dtype, stream) for name, (value, dtype) in tensors.items())
    checks.check_shape(PLACE, q, "[T, Hq, D]", [None] * 3)
    n_heads, head_dim = q.shape[1:]
    checks.check_shape(PLACE, k_cache, "[P, S, Hkv, D]", [None, None, None, head_dim])
    checks.check_shape(PLACE, v_cache, "[P, S, Hkv, D]", k_cache.shape)
    _, page_size, n_kv_heads, _ = k_cache.shape
    checks.check_heads(PLACE, n_heads, n_kv_heads, head_dim)
    checks.check_page_size(PLACE, page_size)
    for cache in (k_cache, v_cache):
        checks.check_same_device(PLACE, cache, device)
    for tensor in (q, k_cache, v_cache):
        checks.check_last_axis(PLACE, tensor)

    def heads(name: str, value: Any) -> Tensor | None:
        return None if value is None else read_floats(PLACE, name, value, device, stream, [[n_heads]])

    table = view_tensor(PLACE, "block_table", block_table, stream=stream)
    checks.check_dtype(PLACE, table, "int32")
    checks.check_shape(PLACE, table, "[B, M]", [None, None])
    checks.check_last_axis(PLACE, table)
    checks.check_device_or_host(PLACE, table, device)
    return _Call(
        device=device,
        q=q,
        k_cache=k_cache,
        v_cache=v_cache,
        block_table=table,
        alibi_slopes=heads("alibi_slopes", alibi_slopes),
        sinks=heads("sinks", sinks),
        k_scale=read_scale(PLACE, "k_scale", k_scale, k_cache, device, stream),
        v_scale=read_scale(PLACE, "v_scale", v_scale, k_cache, device, stream),
        scale=head_dim**-0.5 if scale is None else checks.check_number(PLACE, "scale", scale),
        causal=checks.check_flag(PLACE, "causal", causal),
        window=checks.check_window(PLACE, window),
        softcap=checks.check_number(PLACE, "softcap", softcap, 0.0),
    )


def _check_supported(call: _Call, kernels: GpuKernels | None) -> None:
    q, kv = call.q.dtype, call.k_cache.dtype
    if kernels is None:
        where, is_known = "the CPU", q in checks.FLOATS and kv in CPU_KV_DTYPES
    else:
        where, is_known = "a GPU", q in GPU_Q_DTYPES and kv in (q, "fp8", "int8")
    if not is_known or call.v_cache.dtype != kv:
        raise checks.refuse(
            PLACE,
            f"no kernel of {where} computes q in {q} with k_cache in {kv} and v_cache in {call.v_cache.dtype}; "
            f"{SUPPORTED} (integers stand for bfloat16, float16 or fp8 where q_dtype and kv_dtype say so)",
        )
    if kernels is not None:
        for tensor in (call.q, call.k_cache, call.v_cache):
            checks.check_vectors(PLACE, tensor)


def _check_plan(call: _Call, plan: AttentionPlan, fixed_split: int) -> None:
    if not isinstance(plan, AttentionPlan):
        raise checks.refuse(PLACE, f"plan must be what plan_attention returns, got {type(plan).__name__}")
    wanted = {
        "device": call.device,
        "n_heads": call.n_heads,
        "n_kv_heads": call.n_kv_heads,
        "head_dim": call.head_dim,
        "causal": call.causal,
        "window": call.window,
        "n_tokens": call.q.shape[0],
    }
    for name, want in wanted.items():
        if getattr(plan, name) != want:
            raise checks.refuse(
                PLACE,
                f"plan must be for this call, with {name} {want!r}, got {getattr(plan, name)!r}; "
                "plan_attention makes another, update one for other lengths",
            )
    if fixed_split not in (0, plan.fixed_split):
        raise checks.refuse(PLACE, f"fixed_split must be that of the plan, {plan.fixed_split}, or 0, got {fixed_split}")


def _plan(call: _Call, lengths: Lengths, fixed_split: int, stream: int) -> AttentionPlan:
    """For this call alone."""
    plan = AttentionPlan(
        n_heads=call.n_heads,
        n_kv_heads=call.n_kv_heads,
        head_dim=call.head_dim,
        causal=call.causal,
        window=call.window,
        fixed_split=fixed_split,
        device=call.device,
    )
    plan.update(lengths.seq_lens, lengths.cu_seqlens_q, n_tokens=call.q.shape[0], stream=stream)
    return plan


def _check_sizes(call: _Call, lengths: Lengths, max_seqlen_q: int | None, max_seqlen_k: int | None) -> None:
    n_sequences, width = call.block_table.shape
    if n_sequences != lengths.n_sequences:
        raise checks.refuse(
            PLACE, f"block_table must have a row for each of the {lengths.n_sequences} sequences, got {n_sequences}"
        )
    longest = lengths.max_seqlen_k
    if longest > width * call.page_size:
        raise checks.refuse(
            PLACE,
            f"block_table must have {-(-longest // call.page_size)} pages of {call.page_size} for the {longest} keys "
            f"of the longest sequence, got {width}",
        )
    if lengths.n_tokens > call.q.shape[0]:
        raise checks.refuse(PLACE, f"q must have the {lengths.n_tokens} tokens of cu_seqlens_q, got {call.q.shape[0]}")
    if max_seqlen_q is not None:
        checks.check_count(PLACE, "max_seqlen_q", max_seqlen_q, lengths.max_seqlen_q, most=None)
    if max_seqlen_k is not None:
        checks.check_count(PLACE, "max_seqlen_k", max_seqlen_k, longest, most=None)


def _check_out(call: _Call, out: Any, q_dtype: str | None, stream: int) -> Tensor:
    tensor = view_tensor(PLACE, "out", out, q_dtype, stream)
    checks.check_dtype(PLACE, tensor, call.q.dtype)
    checks.check_shape(PLACE, tensor, "[T, Hq, D]", call.q.shape)
    checks.check_same_device(PLACE, tensor, call.device)
    checks.check_last_axis(PLACE, tensor)
    checks.check_writeable(PLACE, tensor)
    return tensor


def _run_on_cpu(call: _Call, lengths: Lengths, out: Tensor, lse: Tensor | None) -> None:
    left, right = call.window
    with compiled_code(PLACE):
        paged_attention_op(
            call.q.array(),
            call.q.dtype,
            call.k_cache.array(),
            call.v_cache.array(),
            call.k_cache.dtype,
            np.ascontiguousarray(call.block_table.array()),
            lengths.seq_lens,
            lengths.cu_seqlens_q,
            call.scale,
            call.causal,
            left,
            right,
            call.softcap,
            host_value(call.alibi_slopes),
            host_value(call.sinks),
            host_value(call.k_scale),
            host_value(call.v_scale),
            out.array(),
            host_value(lse),
            n_threads(),
        )


def _run_on_gpu(
    call: _Call,
    kernels: GpuKernels,
    plan: AttentionPlan,
    addresses: Addresses,
    out: Tensor,
    lse: Tensor | None,
    stream: int,
) -> None:
    table = call.block_table
    kernels.paged_attention(
        plan._on_gpu,
        call.q.raw(),
        call.k_cache.raw(),
        call.v_cache.raw(),
        out.raw(),
        addresses[lse],
        addresses[table],
        table.strides[0] if table.device == call.device else table.shape[1],
        call.scale,
        call.softcap,
        addresses[call.alibi_slopes],
        addresses[call.sinks],
        raw_scale(addresses, call.k_scale),
        raw_scale(addresses, call.v_scale),
        stream,
    )
    addresses.finish()


def check_pages(call: _Call, lengths: Lengths) -> None:
    """That every entry of a table in host memory that a token follows is a page: kernels of a GPU would read anywhere.
    On the CPU the core does the same."""
    block_table: Ints = call.block_table.array()
    n_pages, page_size = call.k_cache.shape[:2]
    left = call.window[0]
    n_queries = np.diff(lengths.cu_seqlens_q)
    end = lengths.seq_lens.astype(np.int64)
    first = np.zeros_like(end) if left < 0 else end - n_queries - left
    starts = np.arange(block_table.shape[1], dtype=np.int64) * page_size
    is_followed = (starts < end[:, None]) & (starts + page_size > first[:, None]) & (n_queries > 0)[:, None]
    is_wrong = is_followed & ((block_table < 0) | (block_table >= n_pages))
    if is_wrong.any():
        row, column = (int(i) for i in np.argwhere(is_wrong)[0])
        raise checks.refuse(
            PLACE,
            f"block_table[{row}, {column}] must be in [0, {n_pages}), for a token sees that page, got "
            f"{block_table[row, column]}",
        )
