"""Which part of a step's attention is done where: worked out once a step, used by every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_decoder.errors import InvalidArgumentError
from llm_decoder.ops import checks
from llm_decoder.ops.machines import GpuKernels, compiled_code, device_index, host_array, kernels_for, stream_of
from llm_decoder.ops.tensors import device_of, framework_of

Ints = npt.NDArray[np.int32]
PLACE = "plan_attention"
MAX_SPLIT = 2**30  # keys: more than any sequence has


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of a batch, in host memory: seq_lens int32 [B], cu_seqlens_q int32 [B + 1]."""

    seq_lens: Ints
    cu_seqlens_q: Ints
    max_seqlen_q: int
    max_seqlen_k: int

    @property
    def n_sequences(self) -> int:
        return len(self.seq_lens)

    @property
    def n_tokens(self) -> int:
        return int(self.cu_seqlens_q[-1])


class AttentionPlan:
    """What plan_attention returns, for one step; `update` makes it one for the next.

    For calls with the same heads, head_dim, causal and window, one after the other on one stream. It lies on `device`.
    """

    def __init__(
        self,
        *,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        causal: bool,
        window: tuple[int, int],
        fixed_split: int,
        device: str,
    ) -> None:
        """Not yet for any lengths: those of a call come with update. Use plan_attention."""
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, head_dim
        self.causal, self.window, self.fixed_split = causal, window, fixed_split
        self.device = device
        self.n_tokens = 0
        self.lengths: Lengths
        self._kernels = kernels_for(PLACE, device)
        self._on_gpu = None if self._kernels is None else self._make_on_gpu(self._kernels)

    def _make_on_gpu(self, kernels: GpuKernels) -> Any:
        left, right = (kernels.UNBOUNDED if side < 0 else min(side, kernels.UNBOUNDED) for side in self.window)
        with compiled_code(PLACE):
            return kernels.AttentionPlan(
                self.n_heads,
                self.n_kv_heads,
                self.head_dim,
                self.causal,
                left,
                right,
                self.fixed_split,
                device_index(self.device),
            )

    def update(
        self,
        seq_lens: Any,
        cu_seqlens_q: Any,
        *,
        shared_prefixes: Sequence[tuple[int, int, int]] = (),
        n_tokens: int | None = None,
        stream: int | None = None,
    ) -> None:
        """Plans for other lengths; arguments and errors are those of plan_attention. On a GPU the arrays of the plan
        stay where they are as long as they fit: a CUDA graph that was recorded with it can be replayed, while there are
        as many blocks of work as there were."""
        handle = stream_of(PLACE, seq_lens, self.device, stream)
        lengths = read_lengths(PLACE, seq_lens, cu_seqlens_q, handle)
        # Copies: the caller's arrays may change before the plan is used.
        lengths = replace(lengths, seq_lens=lengths.seq_lens.copy(), cu_seqlens_q=lengths.cu_seqlens_q.copy())
        total = lengths.n_tokens
        if n_tokens is not None:
            total = checks.check_count(PLACE, "n_tokens", n_tokens, total)
        prefixes = _check_prefixes(shared_prefixes, lengths, self.causal, self.window)
        if self._on_gpu is not None:
            with compiled_code(PLACE):
                self._on_gpu.update(lengths.seq_lens, lengths.cu_seqlens_q, total, prefixes, handle)
                if stream is None and framework_of(seq_lens) is None and self._kernels is not None:
                    self._kernels.synchronize(device_index(self.device), handle)  # the calls may come on another stream
        self.lengths, self.n_tokens = lengths, total


def plan_attention(
    seq_lens: Any,
    cu_seqlens_q: Any,
    *,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    causal: bool = True,
    window: tuple[int, int] = (-1, -1),
    fixed_split: int = 0,
    shared_prefixes: Sequence[tuple[int, int, int]] = (),
    n_tokens: int | None = None,
    device: str | None = None,
    stream: int | None = None,
) -> AttentionPlan:
    """A plan for paged_attention of a step: one for all layers that have these heads and this window.

    seq_lens int32 [B], cu_seqlens_q int32 [B + 1], best in host memory: the plan is made there. n_heads = Hq,
    n_kv_heads = Hkv, head_dim = D, causal, window: as in the calls that will use it.
    fixed_split: keys of a part where a sequence's keys are divided among blocks, a multiple of 64, whatever else is in
    the batch, so that its result does not depend on that; 0: chosen for speed. On the CPU it never does.
    shared_prefixes: (first, n, n_keys): sequences first to first + n - 1 begin with the same n_keys keys, on the same
    pages, all before their tokens: these are read once for all of them. Needs causal and no window to the left. On the
    CPU pages are shared without being told.
    n_tokens: rows of q, if they are more than cu_seqlens_q[-1].
    device: "cpu", "cuda", "cuda:1"; None: that of seq_lens. stream: as in paged_attention.

    Raises InvalidArgumentError, BackendError for a device that cannot be used.
    """
    checks.check_heads(
        PLACE,
        checks.check_count(PLACE, "n_heads", n_heads, 1),
        checks.check_count(PLACE, "n_kv_heads", n_kv_heads, 1),
        checks.check_count(PLACE, "head_dim", head_dim, 1),
    )
    plan = AttentionPlan(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        causal=checks.check_flag(PLACE, "causal", causal),
        window=checks.check_window(PLACE, window),
        fixed_split=check_fixed_split(PLACE, fixed_split),
        device=checks.check_device(PLACE, device) if device is not None else device_of(PLACE, "seq_lens", seq_lens),
    )
    plan.update(seq_lens, cu_seqlens_q, shared_prefixes=shared_prefixes, n_tokens=n_tokens, stream=stream)
    return plan


def host_ints(place: str, name: str, value: Any, stream: int) -> Ints:
    """An int32 vector in host memory; one on a device is waited for."""
    return host_array(place, name, value, stream, "int32", "[n]", [None])


def read_lengths(place: str, seq_lens: Any, cu_seqlens_q: Any, stream: int) -> Lengths:
    lens = host_ints(place, "seq_lens", seq_lens, stream)
    cu = host_ints(place, "cu_seqlens_q", cu_seqlens_q, stream)
    _check_lengths(place, lens, cu)
    return Lengths(lens, cu, int(np.diff(cu).max(initial=0)), int(lens.max(initial=0)))


def _check_lengths(place: str, seq_lens: Ints, cu_seqlens_q: Ints) -> None:
    if len(cu_seqlens_q) != len(seq_lens) + 1 or cu_seqlens_q[0] != 0:
        first = cu_seqlens_q[:1].tolist()
        raise checks.refuse(
            place,
            f"cu_seqlens_q must have an entry more than seq_lens and begin with 0, got {len(cu_seqlens_q)} entries "
            f"for {len(seq_lens)} sequences, the first {first}",
        )
    if (np.diff(cu_seqlens_q) < 0).any():
        i = int(np.argmax(np.diff(cu_seqlens_q) < 0))
        raise checks.refuse(
            place, f"cu_seqlens_q must not fall, got {cu_seqlens_q[i]} before {cu_seqlens_q[i + 1]} at {i + 1}"
        )
    if (seq_lens < 0).any():
        i = int(np.argmax(seq_lens < 0))
        raise checks.refuse(place, f"seq_lens must not be negative, got {seq_lens[i]} at {i}")


def check_fixed_split(place: str, fixed_split: Any) -> int:
    split = checks.check_count(place, "fixed_split", fixed_split, most=MAX_SPLIT)
    if split % 64:
        raise checks.refuse(place, f"fixed_split must be a multiple of 64, or 0 for none, got {fixed_split}")
    return split


def _check_prefixes(
    prefixes: Sequence[tuple[int, int, int]], lengths: Lengths, causal: bool, window: tuple[int, int]
) -> list[tuple[int, int, int]]:
    prefixes = checks.check_list(PLACE, "shared_prefixes", prefixes)
    if not prefixes:
        return []
    if not causal or window[0] >= 0:
        raise InvalidArgumentError(
            f"[{PLACE}] shared_prefixes must come with causal and no window to the left, got causal={causal}, "
            f"window={window}"
        )
    n_before = lengths.seq_lens - np.diff(lengths.cu_seqlens_q)
    found, end = [], 0
    for prefix in prefixes:
        numbers = checks.check_list(PLACE, "each of shared_prefixes", prefix)
        if len(numbers) != 3:
            raise checks.refuse(PLACE, f"each of shared_prefixes must be (first, n, n_keys), got {prefix!r}")
        first, n, n_keys = (checks.check_count(PLACE, "shared_prefixes", number) for number in numbers)
        if first < end or n < 1 or first + n > lengths.n_sequences:
            raise checks.refuse(
                PLACE,
                f"shared_prefixes must follow each other within the {lengths.n_sequences} sequences, got {n} from "
                f"{first}",
            )
        end = first + n
        least = int(n_before[first:end].min())
        if not 1 <= n_keys <= least:
            raise checks.refuse(
                PLACE,
                f"a shared prefix must be 1 to {least} keys, what all of sequences {first} to {end - 1} have before "
                f"their tokens, got {n_keys}",
            )
        found.append((first, n, n_keys))
    return found
