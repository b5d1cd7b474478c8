"""The compiled CPU core. Arrays are C-contiguous and of exactly these dtypes; nothing is cast."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int32]
_Longs = npt.NDArray[np.int64]
_Bytes = npt.NDArray[np.uint8]
_Chars = npt.NDArray[np.int8]

kernels: ModuleType
STEP_PARTS: tuple[str, ...]

def isas() -> list[str]: ...
def pack_f32(w: _Floats) -> _Floats: ...
def pack_bf16(w: _Floats) -> npt.NDArray[np.uint16]: ...
def pack_w8(q: _Chars) -> _Bytes: ...
def unpack_w8(packed: _Bytes, n: int, k: int) -> _Chars: ...
def pack_w4(q: _Bytes, group_scale: _Bytes, group_min: _Chars) -> _Bytes: ...
def expand_w4(packed: _Bytes, n: int, k: int) -> _Chars: ...
def quantize_weight_groups(w: _Floats, isa: str = "auto") -> tuple[_Bytes, _Bytes, _Chars, _Floats]: ...
def quantize_weight_rows(w: _Floats) -> tuple[_Chars, _Floats]: ...
def sample(
    logits: _Floats, rows: _Ints, params: dict[str, npt.NDArray[Any]], n_top: int
) -> tuple[_Ints, _Floats, _Ints, _Ints, _Floats]: ...
def continuations(
    logits: _Floats, rows: _Ints, params: dict[str, npt.NDArray[Any]], n: int, n_top: int
) -> tuple[_Ints, _Floats, _Floats, _Floats, _Ints, _Ints, _Floats]: ...
def read_dlpack(capsule: Any) -> tuple[int, str, tuple[int, ...], tuple[int, ...], bool]: ...
def dlpack_array(capsule: Any) -> npt.NDArray[Any]: ...
def log_probs(logits: _Floats, targets: _Ints, n_top: int) -> tuple[_Floats, _Ints, _Ints, _Floats]: ...
def paged_attention_op(
    q: npt.NDArray[Any],
    q_dtype: str,
    k_cache: npt.NDArray[Any],
    v_cache: npt.NDArray[Any],
    kv_dtype: str,
    block_table: _Ints,
    seq_lens: _Ints,
    cu_seqlens_q: _Ints,
    scale: float,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    alibi_slopes: _Floats | None,
    sinks: _Floats | None,
    k_scale: float | _Floats | None,
    v_scale: float | _Floats | None,
    out: npt.NDArray[Any],
    lse: _Floats | None,
    n_threads: int,
    isa: str = "auto",
) -> None: ...
def append_kv_op(
    key: npt.NDArray[Any],
    value: npt.NDArray[Any],
    dtype: str,
    k_cache: npt.NDArray[Any],
    v_cache: npt.NDArray[Any],
    kv_dtype: str,
    slot_mapping: _Longs,
    k_scale: float | _Floats | None,
    v_scale: float | _Floats | None,
    n_threads: int,
    q: npt.NDArray[Any] | None = None,
    q_norm: _Floats | None = None,
    k_norm: _Floats | None = None,
    norm_eps: float = 0.0,
    cos: _Floats | None = None,
    sin: _Floats | None = None,
    interleaved: bool = False,
    isa: str = "auto",
) -> None: ...

_Named = tuple[npt.NDArray[Any], str]
_RowResult = tuple[_Named | None, tuple[_Chars, _Floats] | None]

def rms_norm_op(
    x: _Named,
    weight: _Named,
    bias: _Named | None,
    residual: _Named | None,
    result: _RowResult,
    eps: float,
    n_threads: int,
    isa: str = "auto",
) -> None: ...
def layer_norm_op(
    x: _Named,
    weight: _Named,
    bias: _Named | None,
    residual: _Named | None,
    result: _RowResult,
    eps: float,
    n_threads: int,
    isa: str = "auto",
) -> None: ...
def gated_op(
    x: _Named, activation: str, is_gated: bool, result: _RowResult, n_threads: int, isa: str = "auto"
) -> None: ...
def embed_op(ids: _Ints, table: _Named, scale: _Floats | None, out: _Named, n_threads: int) -> None: ...
def moe_routing_op(
    logits: _Named,
    bias: _Floats | None,
    weights: _Floats,
    ids: _Ints,
    is_sigmoid: bool,
    is_normalized: bool,
    scale: float,
    n_groups: int,
    top_k_groups: int,
    group_best: int,
    n_threads: int,
) -> None: ...
def moe_sort_op(
    topk_ids: _Ints,
    expert_map: _Ints | None,
    n_experts: int,
    tile_rows: int,
    sorted_pairs: _Ints,
    tiles: _Ints,
    n_tiles: _Ints,
) -> None: ...
def fused_moe_op(
    hidden: _Named,
    w1: _Named,
    w2: _Named,
    w1_scale: _Floats | None,
    w2_scale: _Floats | None,
    topk_weights: _Floats,
    topk_ids: _Ints,
    expert_map: _Ints | None,
    out: _Named,
    n_threads: int,
    isa: str = "auto",
) -> None: ...
def sample_op(
    logits: _Named,
    rows: _Ints,
    params: dict[str, npt.NDArray[Any]],
    results: tuple[npt.NDArray[Any] | None, ...],
    n_threads: int,
) -> None: ...
def log_probs_op(
    logits: _Named, targets: _Ints, results: tuple[npt.NDArray[Any] | None, ...], n_threads: int
) -> None: ...
def best_of_beams_op(
    logits: _Named,
    scores: _Floats,
    n_beams: int,
    tokens: _Ints,
    beams: _Ints,
    new_scores: _Floats,
    n_threads: int,
) -> None: ...
def product_op(
    a: _Named,
    packed: npt.NDArray[Any],
    layout: str,
    n: int,
    w_scale: _Floats | None,
    bias: _Floats | None,
    out: _Named,
    n_threads: int,
    isa: str = "auto",
) -> None: ...
def merge_states_op(
    outs: Sequence[npt.NDArray[Any]],
    lses: Sequence[_Floats],
    dtype: str,
    out: npt.NDArray[Any],
    lse: _Floats | None,
    n_threads: int,
) -> None: ...

class PromptLookup:
    def __init__(self) -> None: ...
    def propose(self, tokens: _Ints, max_tokens: int, min_chance: float) -> _Ints: ...

class KvCache:
    def __init__(
        self,
        n_pages: int | Sequence[int],
        page_size: int,
        layers: int | Sequence[int],
        n_kv_heads: int,
        head_dim: int,
        dtype: str = "f32",
        window: int | Sequence[int] = 0,
        n_tier_slots: int | Sequence[int] = 0,
        hash_mask: int = ...,
    ) -> None: ...
    @property
    def page_size(self) -> int: ...
    def admit(self, tokens: _Ints, salt: bytes = b"", with_tier: bool = True) -> tuple[int, int]: ...
    def reserve(self, seq_ids: _Longs, counts: _Ints) -> bool: ...
    def commit(self, seq_ids: _Longs, counts: _Ints, tokens: _Ints) -> None: ...
    def fork(self, seq_id: int) -> int: ...
    def release(self, seq_id: int) -> None: ...
    def length(self, seq_id: int) -> int: ...
    def n_tier_tokens(self, seq_id: int) -> int: ...
    def page_table(self, seq_id: int, group: int = 0) -> _Ints: ...
    def pin(self, tokens: _Ints, salt: bytes = b"") -> int: ...
    def unpin(self, tokens: _Ints, salt: bytes = b"") -> int: ...
    def clear_prefix_index(self) -> None: ...
    def has_room(self, n_now: _Ints, n_then: _Ints, max_step: int) -> bool: ...
    def max_tokens(self, max_step: int) -> int: ...
    def stats(self) -> dict[str, int]: ...
    def pages(self) -> dict[str, npt.NDArray[Any]]: ...
    def set_time(self, now_s: float) -> None: ...
    def durations(self) -> dict[str, Any]: ...
    def load_times(self) -> tuple[int, float]: ...
    def check_integrity(self) -> None: ...
    def page_bytes(self) -> list[int]: ...

class INT8Decoder:
    def __init__(self, config: dict[str, Any], threads: int, isa: str = "auto") -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def workspace_bytes(self) -> int: ...
    def set_weight(
        self,
        name: str,
        layout: str,
        shape: tuple[int, ...],
        data: npt.NDArray[Any],
        scales: npt.NDArray[Any] | None = None,
    ) -> None: ...
    def finalize(self, max_tokens_per_step: int) -> None: ...
    def step(self, cache: KvCache, tokens: _Ints, seq_ids: _Longs, counts: _Ints, want: _Bytes) -> int: ...
    def logits(self) -> _Floats: ...
    def hidden(self) -> _Floats: ...
    def sample(
        self, rows: _Ints, params: dict[str, npt.NDArray[Any]], n_top: int
    ) -> tuple[_Ints, _Floats, _Ints, _Ints, _Floats]: ...
    def continuations(
        self, rows: _Ints, params: dict[str, npt.NDArray[Any]], n: int, n_top: int
    ) -> tuple[_Ints, _Floats, _Floats, _Floats, _Ints, _Ints, _Floats]: ...
    def log_probs(self, targets: _Ints, n_top: int) -> tuple[_Floats, _Ints, _Ints, _Floats]: ...
    def start_profile(self) -> None: ...
    def stop_profile(self) -> tuple[_Ints, _Ints, npt.NDArray[np.float64]]: ...

class Encoder:
    def __init__(self, config: dict[str, Any], threads: int, isa: str = "auto") -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    def set_weight(
        self,
        name: str,
        layout: str,
        shape: tuple[int, ...],
        data: npt.NDArray[Any],
        scales: npt.NDArray[Any] | None = None,
    ) -> None: ...
    def finalize(self, max_tokens: int) -> None: ...
    def encode(
        self, token_ids: _Ints, counts: _Ints, type_ids: _Ints | None = None, pooling: str = "none"
    ) -> _Floats: ...

class MachineLimits:
    def __init__(self, threads: int, n_bytes: int, isa: str = "auto") -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def n_bytes(self) -> int: ...
    def read_bytes_per_s(self, n_rounds: int = 3) -> float: ...
    def int8_ops_per_s(self, n_rounds: int = 3) -> float: ...
    def f32_ops_per_s(self, n_rounds: int = 3) -> float: ...
