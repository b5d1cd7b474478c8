"""What fills pages: append_kv, and reshape_and_cache, the same without what stands before it."""

from __future__ import annotations

from typing import Any

from llm_decoder.backends import append_kv_op
from llm_decoder.ops import checks
from llm_decoder.ops.kv_scales import Scale, host_value, raw_scale, read_floats, read_scale
from llm_decoder.ops.machines import Addresses, compiled_code, device_index, kernels_for, n_threads, stream_of
from llm_decoder.ops.tensors import Tensor, device_of, view_tensor

CPU_PAGE_DTYPES = (*checks.FLOATS, "fp8", "int8")
GPU_PAGE_DTYPES = CPU_PAGE_DTYPES[1:]


def reshape_and_cache(
    key: Any,
    value: Any,
    k_cache: Any,
    v_cache: Any,
    slot_mapping: Any,
    k_scale: Any | None = None,
    v_scale: Any | None = None,
    *,
    dtype: str | None = None,
    kv_dtype: str | None = None,
    stream: int | None = None,
) -> None:
    """Writes keys and values of T tokens into their slots.

    key, value [T, Hkv, D] in float32, bfloat16 or float16; k_cache, v_cache [P, S, Hkv, D] in any of these (on a GPU no
    float32), fp8 or int8. dtype, kv_dtype: what integers stand for.
    slot_mapping int64 [T]: page * S + slot of each token, negative: nowhere. No two tokens have the same.
    k_scale, v_scale: an element is stored as x / scale: a float, float32 [Hkv], or, of fp8 and int8, float32
    [P, S, Hkv], which receives the largest magnitude of each slot and head over 448 or 127. stream: as in
    paged_attention.

    Raises InvalidArgumentError, BackendError for a device that cannot be used. Slots on a GPU are trusted.
    """
    _append(
        "reshape_and_cache",
        {"key": key, "value": value},
        (k_cache, v_cache),
        slot_mapping,
        (k_scale, v_scale),
        dtype=dtype,
        kv_dtype=kv_dtype,
        stream=stream,
    )


def append_kv(
    q: Any,
    key: Any,
    value: Any,
    k_cache: Any,
    v_cache: Any,
    slot_mapping: Any,
    k_scale: Any | None = None,
    v_scale: Any | None = None,
    *,
    rotary_cos: Any | None = None,
    rotary_sin: Any | None = None,
    rotary_interleaved: bool = False,
    q_norm: Any | None = None,
    k_norm: Any | None = None,
    norm_eps: float = 1e-6,
    dtype: str | None = None,
    kv_dtype: str | None = None,
    stream: int | None = None,
) -> None:
    """All that stands between the product that makes q, key and value and their attention, in one pass: heads of q and
    key are normed, then rotated; q is written in place, key and value into their slots, quantised where pages are.

    q [T, Hq, D], of the dtype of key, or None: no queries. key, value, k_cache, v_cache, slot_mapping, k_scale,
    v_scale, dtype, kv_dtype, stream: as in reshape_and_cache; all three may be views into the rows of one product. q of
    a token without a slot is changed too.
    q_norm, k_norm float32 [D]: x becomes x / sqrt(mean(x^2) + norm_eps) * norm, over a head. None: no norm.
    rotary_cos, rotary_sin float32 [T, D_rot / 2]: of each token's position, cos[positions] of a table; the first D_rot
    channels of a head are rotated: channel i with i + D_rot / 2 (GPT-NeoX, Llama), or, rotary_interleaved, 2 i with
    2 i + 1 (GPT-J). None: no rotation.

    Raises InvalidArgumentError, BackendError for a device that cannot be used. Slots on a GPU are trusted.
    """
    _append(
        "append_kv",
        {"key": key, "value": value} | ({} if q is None else {"q": q}),
        (k_cache, v_cache),
        slot_mapping,
        (k_scale, v_scale),
        angles={"rotary_cos": rotary_cos, "rotary_sin": rotary_sin},
        interleaved=rotary_interleaved,
        norms={"q_norm": q_norm, "k_norm": k_norm},
        norm_eps=norm_eps,
        dtype=dtype,
        kv_dtype=kv_dtype,
        stream=stream,
    )


def _append(
    place: str,
    rows_in: dict[str, Any],
    caches_in: tuple[Any, Any],
    slot_mapping: Any,
    scales_in: tuple[Any, Any],
    *,
    angles: dict[str, Any] | None = None,
    interleaved: bool = False,
    norms: dict[str, Any] | None = None,
    norm_eps: float = 1e-6,
    dtype: str | None,
    kv_dtype: str | None,
    stream: int | None,
) -> None:
    device = device_of(place, "key", rows_in["key"])
    handle = stream_of(place, rows_in["key"], device, stream)
    rows = {name: view_tensor(place, name, x, dtype, handle) for name, x in rows_in.items()}
    key, value, q = rows["key"], rows["value"], rows.get("q")
    caches = [
        view_tensor(place, name, x, kv_dtype, handle) for name, x in zip(("k_cache", "v_cache"), caches_in, strict=True)
    ]
    checks.check_shape(place, key, "[T, Hkv, D]", [None] * 3)
    n_tokens, n_heads, head_dim = key.shape
    checks.check_heads(place, n_heads, n_heads, head_dim)
    checks.check_shape(place, value, "[T, Hkv, D]", key.shape)
    if q is not None:
        checks.check_shape(place, q, "[T, Hq, D]", [n_tokens, None, head_dim])
        checks.check_heads(place, q.shape[1], n_heads, head_dim)
        checks.check_writeable(place, q)
    for row in rows.values():
        checks.check_dtype(place, row, *checks.FLOATS)
        checks.check_dtype(place, row, key.dtype)
    checks.check_shape(place, caches[0], "[P, S, Hkv, D]", [None, None, n_heads, head_dim])
    checks.check_page_size(place, caches[0].shape[1])
    kernels = kernels_for(place, device)
    for cache in caches:
        checks.check_shape(place, cache, "[P, S, Hkv, D]", caches[0].shape)
        checks.check_dtype(place, cache, *(CPU_PAGE_DTYPES if kernels is None else GPU_PAGE_DTYPES))
        checks.check_dtype(place, cache, caches[0].dtype)
        checks.check_writeable(place, cache)
    for tensor in (*rows.values(), *caches):
        checks.check_same_device(place, tensor, device, "key")
        checks.check_last_axis(place, tensor)
    scales = [
        _read_divisor(place, name, scale, caches[0], device, handle)
        for name, scale in zip(("k_scale", "v_scale"), scales_in, strict=True)
    ]
    slots = _read_slots(place, slot_mapping, n_tokens, caches[0], device, handle)
    q_norm, k_norm = (
        None if norm is None else read_floats(place, name, norm, device, handle, [[head_dim]])
        for name, norm in (norms or {"q_norm": None, "k_norm": None}).items()
    )
    eps = checks.check_number(place, "norm_eps", norm_eps, 0.0)
    cos, sin = _read_angles(place, angles or {}, n_tokens, head_dim, device, handle)
    is_interleaved = checks.check_flag(place, "rotary_interleaved", interleaved)

    if kernels is None:
        arrays = [tensor.array() for tensor in (key, value, *caches)]
        with compiled_code(place):
            append_kv_op(
                arrays[0],
                arrays[1],
                key.dtype,
                arrays[2],
                arrays[3],
                caches[0].dtype,
                slots.array(),
                host_value(scales[0]),
                host_value(scales[1]),
                n_threads(),
                None if q is None else q.array(),
                host_value(q_norm),
                host_value(k_norm),
                eps,
                host_value(cos),
                host_value(sin),
                is_interleaved,
            )
        return
    for tensor in (*rows.values(), *caches):
        checks.check_vectors(place, tensor)
    for floats in (q_norm, k_norm, cos, sin):
        if floats is not None and floats.device == device:
            checks.check_aligned(place, floats)
    addresses = Addresses(kernels, device, handle)
    with compiled_code(place):
        kernels.append_kv(
            *(tensor.raw() for tensor in (key, value, *caches)),
            addresses[slots],
            *(raw_scale(addresses, scale) for scale in scales),
            None if q is None else q.raw(),
            addresses[q_norm],
            addresses[k_norm],
            eps,
            addresses[cos],
            addresses[sin],
            0 if cos is None else cos.shape[1],
            is_interleaved,
            device_index(device),
            handle,
        )
        addresses.finish()


def _read_slots(place: str, slot_mapping: Any, n_tokens: int, pages: Tensor, device: str, stream: int) -> Tensor:
    slots = view_tensor(place, "slot_mapping", slot_mapping, stream=stream)
    checks.check_dtype(place, slots, "int64")
    checks.check_shape(place, slots, "[T]", [n_tokens])
    checks.check_contiguous(place, slots)
    checks.check_device_or_host(place, slots, device)
    if slots.device == "cpu":
        n_slots = pages.shape[0] * pages.shape[1]
        largest = int(slots.array().max(initial=-1))
        if largest >= n_slots:
            raise checks.refuse(place, f"slot_mapping must be below {n_slots}, the slots of k_cache, got {largest}")
    return slots


def _read_angles(
    place: str, angles: dict[str, Any], n_tokens: int, head_dim: int, device: str, stream: int
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """cos and sin [T, half]."""
    missing = [name for name, value in angles.items() if value is None]
    if len(missing) == 1:
        raise checks.refuse(place, f"rotary_cos and rotary_sin must come together, got {missing[0]}=None")
    if missing or not angles:
        return None, None
    views: list[Tensor] = []
    for name, value in angles.items():
        angle = view_tensor(place, name, value, stream=stream)
        checks.check_dtype(place, angle, "float32")
        checks.check_shape(place, angle, "[T, D_rot / 2]", [n_tokens, views[0].shape[1] if views else None])
        checks.check_contiguous(place, angle)
        checks.check_device_or_host(place, angle, device)
        views.append(angle)
    cos, sin = views
    if not 1 <= cos.shape[1] <= head_dim // 2:
        raise checks.refuse(
            place, f"rotary_cos must have 1 to {head_dim // 2} columns, half of head_dim, got {cos.shape[1]}"
        )
    return cos, sin


def _read_divisor(place: str, name: str, value: Any, pages: Tensor, device: str, stream: int) -> Scale:
    scale = read_scale(place, name, value, pages, device, stream)
    if isinstance(scale, Tensor):
        has_zero = scale.n_axes == 1 and scale.device == "cpu" and not scale.array().all()
    else:
        has_zero = scale == 0.0
    if has_zero:
        raise checks.refuse(place, f"{name} must be above 0, for elements are divided by it, got 0")
    if isinstance(scale, Tensor) and scale.n_axes == 3:
        if pages.dtype not in ("fp8", "int8"):
            raise checks.refuse(
                place, f"{name} of every slot is for pages of fp8 and int8, got {pages.dtype}; pass None"
            )
        checks.check_writeable(place, scale)
        checks.check_same_device(place, scale, device, "key")
    return scale
