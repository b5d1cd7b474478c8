"""What is timed on a GPU, row by row: our kernel and its peers on the same inputs.

A row is a function from a Bench to a Work, which names contestants; each is a function that makes the call, so that one
whose library is not there, or does not take the shape, is absent with the reason and the others are timed. Names that
begin with "ours" are ours: what goes wrong there fails the row.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llm_decoder import ops

N_HEADS, N_KV_HEADS, HEAD_DIM, PAGE_SIZE = 32, 8, 128, 64
ROW_BYTES = HEAD_DIM * 2
CONTEXTS = (1024, 2048, 4096, 8192, 16384)
SDPA_BACKENDS = {"flash": "FLASH_ATTENTION", "cudnn": "CUDNN_ATTENTION", "efficient": "EFFICIENT_ATTENTION"}
MIXTURES = {"mixtral": (8, 14336, 4096, 2), "qwen3-30b-a3b": (128, 768, 2048, 8)}  # experts, N, K, top_k

WEIGHT_BITS = {"half": 16, "w8": 8, "f8": 8, "w4": 4.5}  # with scales and minima of groups
PRODUCTS = ((4096, 4096), (14336, 4096))  # n, k

Call = Callable[[], Any]


@dataclass(frozen=True)
class Work:
    """n_bytes: what the work cannot do without reading or writing; own_bytes: of contestants where it differs, as with
    weights of other dtypes. flops: multiplications and additions. tolerance: how far ours may lie from the first peer's
    result, as |ours - theirs| / |theirs|. how: "graph" or "host", the clock of gpu_clock."""

    contestants: dict[str, Callable[[], Call]]
    n_bytes: int = 0
    flops: int = 0
    tolerance: float = 0.02
    how: str = "graph"
    own_bytes: Mapping[str, int] = field(default_factory=dict)

    def bytes_of(self, name: str) -> int:
        return self.own_bytes.get(name, self.n_bytes)


class Bench:
    def __init__(self, torch: Any) -> None:
        self.torch = torch
        torch.manual_seed(0)

    def normal(self, *shape: int, size: float = 1.0) -> Any:
        return self.torch.randn(*shape, dtype=self.torch.bfloat16, device="cuda") * size


Row = Callable[[Bench], Work]


# ---- attention -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def attention_path(name: str) -> Iterator[None]:
    before = os.environ.get("LLM_DECODER_ATTENTION_PATH")
    os.environ["LLM_DECODER_ATTENTION_PATH"] = name
    try:
        yield
    finally:
        os.environ.pop("LLM_DECODER_ATTENTION_PATH")
        if before is not None:
            os.environ["LLM_DECODER_ATTENTION_PATH"] = before


class Pages:
    """A batch whose keys lie in pages in no order."""

    def __init__(self, bench: Bench, n_sequences: int, n_queries: int, n_keys: int, kv_dtype: str = "bfloat16") -> None:
        torch = bench.torch
        self.torch, self.kv_dtype = torch, kv_dtype
        self.n_sequences, self.n_queries, self.n_keys = n_sequences, n_queries, n_keys
        per_sequence = -(-n_keys // PAGE_SIZE)
        n_pages = n_sequences * per_sequence
        self.q = bench.normal(n_sequences * n_queries, N_HEADS, HEAD_DIM)
        self.k, self.v = (self._cache(bench, (n_pages, PAGE_SIZE, N_KV_HEADS, HEAD_DIM)) for _ in "kv")
        self.table = torch.randperm(n_pages, device="cuda").to(torch.int32).reshape(n_sequences, per_sequence)
        self.seq_lens = np.full(n_sequences, n_keys, np.int32)
        self.cu_seqlens_q = (np.arange(n_sequences + 1) * n_queries).astype(np.int32)
        self.scales: dict[str, Any] = {}
        if kv_dtype == "int8":
            self.scales = {name: torch.full((N_KV_HEADS,), 1 / 40, device="cuda") for name in ("k_scale", "v_scale")}

    def _cache(self, bench: Bench, shape: tuple[int, ...]) -> Any:
        torch = self.torch
        if self.kv_dtype == "int8":
            return torch.randint(-127, 128, shape, dtype=torch.int8, device="cuda")
        values = bench.normal(*shape)
        return values.to(torch.float8_e4m3fn).view(torch.uint8) if self.kv_dtype == "fp8" else values

    @property
    def n_bytes(self) -> int:
        """Queries, keys, values and result, each once."""
        kv_bytes = 2 * self.n_sequences * self.n_keys * N_KV_HEADS * HEAD_DIM * self.k.element_size()
        return kv_bytes + 2 * self.q.shape[0] * N_HEADS * ROW_BYTES

    @property
    def flops(self) -> int:
        """Of the keys that causal queries, the last of their sequence, see."""
        n_seen = self.n_queries * self.n_keys - self.n_queries * (self.n_queries - 1) // 2
        return 4 * self.n_sequences * n_seen * N_HEADS * HEAD_DIM

    def ours(self) -> Call:
        plan = ops.plan_attention(
            self.seq_lens,
            self.cu_seqlens_q,
            n_heads=N_HEADS,
            n_kv_heads=N_KV_HEADS,
            head_dim=HEAD_DIM,
            device="cuda",
        )
        out = self.torch.empty_like(self.q)
        arguments = (self.q, self.k, self.v, self.table, self.seq_lens, self.cu_seqlens_q)
        options = {"plan": plan, "out": out, "kv_dtype": self.kv_dtype, **self.scales}
        return lambda: ops.paged_attention(*arguments, **options)

    def ours_by(self, path: str) -> Call:
        """By the kernel of that name alone."""
        with attention_path(path):
            call = self.ours()

        def by_path() -> Any:
            with attention_path(path):
                return call()

        return by_path

    @property
    def is_causal(self) -> bool:
        return self.n_queries > 1

    @functools.cached_property
    def dense(self) -> tuple[Any, Any, Any]:
        """q [B, Hq, n_queries, D], k and v [B, Hkv, n_keys, D], as views of rows by token: what torch takes."""
        q = self.q.reshape(self.n_sequences, self.n_queries, N_HEADS, HEAD_DIM)
        k, v = (
            cache[self.table.long()].reshape(self.n_sequences, -1, N_KV_HEADS, HEAD_DIM)[:, : self.n_keys]
            for cache in (self.k, self.v)
        )
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def sdpa(self, backend: str) -> Call:
        """Every backend takes as many heads of keys as of queries, and each is at its best so: the query heads that
        share keys go in as queries where there is one query, else keys and values are repeated, before the clock
        starts."""
        from torch.nn.attention import SDPBackend, sdpa_kernel

        attend = self.torch.nn.functional.scaled_dot_product_attention
        chosen = getattr(SDPBackend, backend)
        q, k, v = self.dense
        group = N_HEADS // N_KV_HEADS
        if self.n_queries == 1:
            q = self.q.reshape(self.n_sequences, N_KV_HEADS, group, HEAD_DIM)
        else:
            k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))

        def call() -> Any:
            with sdpa_kernel(chosen):
                return self._rows(attend(q, k, v, is_causal=self.is_causal))

        return call

    def flex(self) -> Call:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        self.torch._dynamo.reset()
        attend = self.torch.compile(flex_attention, dynamic=False)
        dense = self.dense
        mask = None
        if self.is_causal:
            mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, self.n_queries, self.n_keys, device="cuda")
        return lambda: self._rows(attend(*dense, block_mask=mask, enable_gqa=True))

    def _rows(self, out: Any) -> Any:
        """torch's result as a view of the shape of ours."""
        if self.n_queries == 1:
            return out.reshape(self.q.shape)
        return out.transpose(1, 2).reshape(self.q.shape)

    def triton(self) -> Call:
        from triton_paged_decode import PagedDecode

        n_sms = self.torch.cuda.get_device_properties(0).multi_processor_count
        decode = PagedDecode(self.torch, self.q, self.k, self.v, self.table, self.seq_lens, n_sms)
        return decode.run

    def torchs(self) -> dict[str, Callable[[], Call]]:
        found: dict[str, Callable[[], Call]] = {
            f"torch sdpa {name}": functools.partial(self.sdpa, backend) for name, backend in SDPA_BACKENDS.items()
        }
        return found | {"torch flex": self.flex}


def decode(n_sequences: int, n_keys: int) -> Row:
    def row(bench: Bench) -> Work:
        pages = Pages(bench, n_sequences, 1, n_keys)
        contestants = pages.torchs() | {"triton paged": pages.triton, "ours": pages.ours}
        return Work(contestants, pages.n_bytes, pages.flops)

    return row


def decode_kv(n_keys: int, n_sequences: int = 32) -> Row:
    """The same step with keys and values in two bytes and in one."""

    def row(bench: Bench) -> Work:
        batches = {kv: Pages(bench, n_sequences, 1, n_keys, kv) for kv in ("bfloat16", "fp8", "int8")}
        contestants = {f"ours {kv}": batch.ours for kv, batch in batches.items()}
        return Work(contestants, own_bytes={f"ours {kv}": batch.n_bytes for kv, batch in batches.items()})

    return row


def prefill(n_sequences: int, n_tokens: int) -> Row:
    def row(bench: Bench) -> Work:
        pages = Pages(bench, n_sequences, n_tokens, n_tokens)
        contestants = pages.torchs() | {"ours": pages.ours}
        if bench.torch.cuda.get_device_capability() == (9, 0):  # where ours is the kernel for Hopper
            contestants["ours mma"] = functools.partial(pages.ours_by, "mma_sync")
        return Work(contestants, pages.n_bytes, pages.flops)

    return row


def merge(n_parts: int, n_tokens: int) -> Row:
    def row(bench: Bench) -> Work:
        torch = bench.torch
        outs = bench.normal(n_parts, n_tokens, N_HEADS, HEAD_DIM)
        lses = torch.randn(n_parts, n_tokens, N_HEADS, device="cuda")
        out = torch.empty_like(outs[0])
        parts, part_lses = list(outs), list(lses)
        contestants = {
            "torch": lambda: lambda: (torch.softmax(lses, 0)[..., None] * outs).sum(0),
            "ours": lambda: lambda: ops.merge_states(parts, part_lses, out=out),
        }
        return Work(contestants, (n_parts + 1) * n_tokens * N_HEADS * ROW_BYTES)

    return row


# ---- pages -----------------------------------------------------------------------------------------------------


def append(n_tokens: int) -> Row:
    """Keys and values into their slots, as they are and as fp8 with a scale for each slot and head."""

    def row(bench: Bench) -> Work:
        torch = bench.torch
        key, value = (bench.normal(n_tokens, N_KV_HEADS, HEAD_DIM) for _ in "kv")
        n_pages = -(-n_tokens // PAGE_SIZE) * 2
        shape = (n_pages, PAGE_SIZE, N_KV_HEADS, HEAD_DIM)
        caches = [torch.zeros(shape, dtype=torch.bfloat16, device="cuda") for _ in "kv"]
        bytes_ = [torch.zeros(shape, dtype=torch.uint8, device="cuda") for _ in "kv"]
        scales = [torch.ones(shape[:3], device="cuda") for _ in "kv"]
        slots = torch.randperm(n_pages * PAGE_SIZE, device="cuda")[:n_tokens].contiguous()

        def copy_rows() -> None:
            for cache, rows in zip(caches, (key, value), strict=True):
                cache.view(-1, N_KV_HEADS, HEAD_DIM).index_copy_(0, slots, rows)

        contestants = {
            "torch": lambda: copy_rows,
            "ours": lambda: lambda: ops.reshape_and_cache(key, value, *caches, slots),
            "ours fp8": lambda: lambda: ops.reshape_and_cache(key, value, *bytes_, slots, *scales, kv_dtype="fp8"),
        }
        return Work(contestants, 4 * n_tokens * N_KV_HEADS * ROW_BYTES)

    return row


def copy_blocks(n_layers: int, n_pairs: int) -> Row:
    """Whole pages of all layers, as a fork of sequences needs it. The call waits, so the host's clock tells."""

    def row(bench: Bench) -> Work:
        torch = bench.torch
        caches = [bench.normal(4 * n_pairs, PAGE_SIZE, N_KV_HEADS, HEAD_DIM) for _ in range(2 * n_layers)]
        pages = np.random.default_rng(0).permutation(4 * n_pairs)[: 2 * n_pairs].reshape(n_pairs, 2).astype(np.int64)
        sources, destinations = (torch.from_numpy(pages[:, i].copy()).cuda() for i in range(2))

        def copy_layers() -> None:
            for cache in caches:
                cache.index_copy_(0, destinations, cache.index_select(0, sources))

        contestants = {
            "torch": lambda: copy_layers,
            "ours": lambda: lambda: ops.copy_blocks(caches[:n_layers], caches[n_layers:], pages),
        }
        page_bytes = PAGE_SIZE * N_KV_HEADS * ROW_BYTES
        return Work(contestants, 2 * 2 * n_layers * n_pairs * page_bytes, how="host")

    return row


def swap_blocks(n_pages: int, n_products: int) -> Row:
    """Pages to pinned host memory on a stream of their own, products of matrices on another, and both at once."""

    def row(bench: Bench) -> Work:
        torch = bench.torch
        pages = bench.normal(n_pages, PAGE_SIZE, N_KV_HEADS, HEAD_DIM)
        host = torch.empty(pages.shape, dtype=pages.dtype, pin_memory=True)
        order = np.random.default_rng(0).permutation(n_pages)
        pairs = np.stack([order, order[::-1]], axis=1).astype(np.int64)
        side = torch.cuda.Stream()
        a, b = bench.normal(4096, 4096), bench.normal(4096, 4096)
        product = torch.empty_like(a)

        def swap() -> None:
            ops.swap_blocks(pages, host, pairs, stream=side.cuda_stream)

        def multiply() -> None:
            for _ in range(n_products):
                torch.mm(a, b, out=product)

        def both() -> None:
            swap()
            multiply()

        contestants = {
            "torch products": lambda: multiply,
            "ours swap": lambda: swap,
            "ours swap and products": lambda: both,
        }
        return Work(contestants, pages.numel() * pages.element_size(), how="host")

    return row


# ---- mixtures of experts ---------------------------------------------------------------------------------------


def mixture(n_tokens: int, n_experts: int, n: int, k: int, top_k: int) -> Row:
    def row(bench: Bench) -> Work:
        torch = bench.torch
        hidden = bench.normal(n_tokens, k)
        w1, w2 = bench.normal(n_experts, 2 * n, k, size=k**-0.5), bench.normal(n_experts, k, n, size=n**-0.5)
        chosen = torch.rand(n_tokens, n_experts, device="cuda").topk(top_k).indices
        weights = torch.softmax(torch.randn(n_tokens, top_k, device="cuda"), -1)
        ids, out = chosen.to(torch.int32), torch.empty_like(hidden)
        rows_of = {
            expert: rows for expert in range(n_experts) if len(rows := (chosen == expert).any(1).nonzero().flatten())
        }
        shares = {
            expert: (weights * (chosen == expert)).sum(1)[rows].to(torch.bfloat16)[:, None]
            for expert, rows in rows_of.items()
        }

        def loop() -> Any:
            """Which rows are whose is known before, in torch's favour."""
            total = torch.zeros_like(hidden)
            for expert, rows in rows_of.items():
                gate, up = (hidden[rows] @ w1[expert].T).chunk(2, -1)
                part = (torch.nn.functional.silu(gate) * up) @ w2[expert].T
                total.index_add_(0, rows, part * shares[expert])
            return total

        def ours_int8() -> Call:
            quantized = {}
            for name, w in (("w1", w1), ("w2", w2)):
                scale = w.abs().amax(-1).float() / 127
                quantized |= {name: (w / scale[..., None]).round().to(torch.int8), f"{name}_scale": scale}
            return lambda: ops.fused_moe(hidden, topk_weights=weights, topk_ids=ids, out=out, **quantized)

        contestants = {
            "torch loop": lambda: loop,
            "ours": lambda: lambda: ops.fused_moe(hidden, w1, w2, weights, ids, out=out),
            "ours int8": ours_int8,
        }
        n_weights, row_bytes = len(rows_of) * 3 * n * k, 4 * n_tokens * k
        return Work(
            contestants,
            2 * n_weights + row_bytes,
            6 * n_tokens * top_k * n * k,
            tolerance=0.05,
            own_bytes={"ours int8": n_weights + row_bytes},
        )

    return row


# ---- products of few rows, norms, sampling ---------------------------------------------------------------------


@functools.cache
def product_weights(torch: Any, n: int, k: int) -> tuple[Any, dict[str, Any]]:
    """Random [n, k] on the device, and the same packed in every format: that takes its time, and M is all that differs
    between rows."""
    weights = Bench(torch).normal(n, k, size=k**-0.5)
    return weights, {name: ops.pack_weights(weights, name) for name in WEIGHT_BITS}


def product(m: int, n: int, k: int) -> Row:
    def row(bench: Bench) -> Work:
        torch = bench.torch
        weights, packed = product_weights(torch, n, k)
        a = bench.normal(m, k)
        out = torch.empty(m, n, dtype=torch.bfloat16, device="cuda")
        contestants: dict[str, Callable[[], Call]] = {
            "torch linear": lambda: lambda: torch.nn.functional.linear(a, weights)
        }
        for name, packed_weights in packed.items():
            contestants[f"ours {name}"] = functools.partial(
                functools.partial, ops.small_product, a, packed_weights, out=out
            )
        row_bytes = 2 * m * (n + k)
        of_formats = {f"ours {name}": int(n * k * bits / 8) + row_bytes for name, bits in WEIGHT_BITS.items()}
        # What 4 bits cost of normal numbers is more than rounding; tests judge each format.
        return Work(contestants, 2 * n * k + row_bytes, 2 * m * n * k, tolerance=0.15, own_bytes=of_formats)

    return row


def norm(n_tokens: int, n_channels: int) -> Row:
    """The sum with the residual, and its RMS norm."""

    def row(bench: Bench) -> Work:
        torch = bench.torch
        x, residual, weight = (
            bench.normal(n_tokens, n_channels),
            bench.normal(n_tokens, n_channels),
            bench.normal(n_channels),
        )
        out = torch.empty_like(x)

        def in_torch() -> None:
            residual.add_(x)
            torch.nn.functional.rms_norm(residual, (n_channels,), weight, 1e-6)

        contestants = {
            "torch": lambda: in_torch,
            "ours": lambda: lambda: without_result(ops.rms_norm(x, weight, residual=residual, out=out)),
        }
        return Work(contestants, 4 * x.numel() * 2)

    return row


def sampling(n_rows: int, n_vocab: int, top_k: int = 50, top_p: float = 0.9) -> Row:
    """A token a row, of the likeliest top_k or of the nucleus top_p: torch by a selection or a sort of the row."""

    def row(bench: Bench) -> Work:
        torch = bench.torch
        logits = torch.randn(n_rows, n_vocab, device="cuda") * 4
        seeds = torch.arange(n_rows, device="cuda")
        ks = torch.full((n_rows,), top_k, dtype=torch.int32, device="cuda")
        ps = torch.full((n_rows,), top_p, device="cuda")
        given = {"seed": seeds, "temperature": torch.ones(n_rows, device="cuda")}  # all there: nothing is copied

        def draw(probabilities: Any, ids: Any) -> Any:
            noise = torch.empty_like(probabilities).exponential_(1)
            return ids.gather(1, (probabilities / noise).argmax(-1, keepdim=True))

        def torch_top_k() -> None:
            values, ids = logits.topk(top_k)
            draw(torch.softmax(values, -1), ids)

        def torch_top_p() -> None:
            values, ids = logits.sort(descending=True)
            probabilities = torch.softmax(values, -1)
            is_out = probabilities.cumsum(-1) - probabilities >= top_p
            draw(probabilities.masked_fill(is_out, 0), ids)

        contestants = {
            "torch top-k": lambda: torch_top_k,
            "torch top-p": lambda: torch_top_p,
            "ours": lambda: lambda: without_result(ops.sample(logits, top_k=ks, **given)),
            "ours top-p": lambda: lambda: without_result(ops.sample(logits, top_p=ps, **given)),
        }
        return Work(contestants, 4 * n_rows * n_vocab)

    return row


def without_result(_: object) -> None:
    """For what is not held against the peer's: draws, and sums in place that go on from call to call."""


# ---- which -----------------------------------------------------------------------------------------------------


def all_rows() -> dict[str, Row]:
    rows: dict[str, Row] = {f"decode-b32-{n}": decode(32, n) for n in (4096, 8192, 16384)}
    rows["decode-b1-1024"] = decode(1, 1024)
    rows |= {f"decode-kv-b32-{n}": decode_kv(n) for n in CONTEXTS}
    rows |= {"prefill-b4-2048": prefill(4, 2048), "prefill-b1-8192": prefill(1, 8192)}
    rows |= {f"append-{n}": append(n) for n in (32, 8192)}
    rows |= {
        "merge-8x256": merge(8, 256),
        "copy-blocks-32x16": copy_blocks(32, 16),
        "swap-blocks-1024": swap_blocks(1024, 16),
    }
    rows |= {f"product-{n}x{k}-{m}": product(m, n, k) for n, k in PRODUCTS for m in (1, 8, 32, 64)}
    rows |= {f"sampling-{n}": sampling(n, 131072) for n in (1, 32, 256)}
    rows["norm-1024x4096"] = norm(1024, 4096)
    for name, sizes in MIXTURES.items():
        rows |= {f"moe-{name}-{n}": mixture(n, *sizes) for n in (1, 32, 2048)}
    return rows


QUICK = ("decode-b32-4096", "decode-b1-1024", "decode-kv-b32-2048", "prefill-b1-8192", "moe-qwen3-30b-a3b-32")
