"""append_kv through its door: norm, rotation and pages in one pass, against the formula in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from element_codes import ROUNDING, decode, encode, poison
from exported_tensor import CUDA, ExportedTensor
from pairwise import pairwise_cover

from llm_decoder import ops
from llm_decoder.errors import InvalidArgumentError

T, HQ, HKV, P, S = 5, 6, 2, 3, 16
SLOTS = np.array([17, 3, -1, 47, 30], np.int64)
LARGEST = {"fp8": 448.0, "int8": 127.0}

COVER = pairwise_cover(
    {
        "dtype": ("float32", "bfloat16", "float16"),
        "kv_dtype": ("bfloat16", "float16", "fp8", "int8"),
        "head_dim": (8, 40, 128, 256),
        "rotated": (0.0, 0.5, 1.0),  # share of the head
        "interleaved": (False, True),
        "norm": ("none", "k", "both"),
        "scale": ("none", "all", "head", "slot"),
        "packed": (False, True),
        "has_q": (False, True),
    },
    seed=1,
)
COVER = [case for case in COVER if case["scale"] != "slot" or case["kv_dtype"] in LARGEST]


def packed_rows(dtype: str, head_dim: int, is_packed: bool) -> list[np.ndarray]:
    """q, key, value: views into the rows of one product, or arrays of their own."""
    values = np.random.default_rng(head_dim).normal(size=(T, HQ + 2 * HKV, head_dim))
    rows = encode(values, dtype)
    parts = [rows[:, :HQ], rows[:, HQ : HQ + HKV], rows[:, HQ + HKV :]]
    return parts if is_packed else [part.copy() for part in parts]


def pages_of(dtype: str, head_dim: int) -> np.ndarray:
    carrier = {"float32": np.float32, "fp8": np.uint8, "int8": np.int8}.get(dtype, np.uint16)
    return np.full((P, S, HKV, head_dim), poison(dtype), carrier)


def prepared(x: np.ndarray, norm: Any, cos: Any, sin: Any, interleaved: bool, eps: float) -> np.ndarray:
    """[T, H, D] after norm and rotation; cos, sin [T, half] or None."""
    if norm is not None:
        x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * np.float64(norm)
    if cos is None:
        return x
    half = cos.shape[1]
    turn = np.float64(cos) + 1j * np.float64(sin)
    first, second = (
        (x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2])
        if interleaved
        else (x[..., :half], x[..., half : 2 * half])
    )
    turned = (first + 1j * second) * turn[:, None]
    out = x.copy()
    if interleaved:
        out[..., 0 : 2 * half : 2], out[..., 1 : 2 * half : 2] = turned.real, turned.imag
    else:
        out[..., :half], out[..., half : 2 * half] = turned.real, turned.imag
    return out


def check_pages(pages: np.ndarray, dtype: str, want: np.ndarray, divisor: Any) -> None:
    """want [T, Hkv, D]; slots that nobody named are as they were."""
    slots = pages.reshape(P * S, HKV, -1)
    named = SLOTS[SLOTS >= 0]
    codes = want[SLOTS >= 0] / divisor
    got = decode(slots[named], dtype)
    if dtype == "int8":
        assert (np.abs(got - np.clip(codes, -127, 127)) <= 0.501).all()
    else:
        bound = np.abs(codes) * ROUNDING[dtype] * 1.01 + 1e-5 + (2.0**-10 if dtype == "fp8" else 0)
        is_kept = np.abs(codes) <= LARGEST.get(dtype, np.inf)
        assert (np.abs(got - codes) <= bound)[is_kept].all()
    untouched = np.delete(slots, named, axis=0)
    assert (untouched == untouched.dtype.type(poison(dtype))).all()


@pytest.mark.usefixtures("any_machine")
@pytest.mark.parametrize("case", COVER, ids=lambda case: "-".join(str(level) for level in case.values()))
def test_heads_are_normed_rotated_and_appended(case: dict[str, Any]) -> None:
    dtype, kv_dtype, head_dim = case["dtype"], case["kv_dtype"], case["head_dim"]
    random = np.random.default_rng(3)
    q, key, value = packed_rows(dtype, head_dim, case["packed"])
    was = [decode(x, dtype).copy() for x in (q, key, value)]
    norms = {name: (0.5 + random.random(head_dim)).astype(np.float32) for name in ("q_norm", "k_norm")}
    if case["norm"] != "both":
        norms["q_norm"] = None
    if case["norm"] == "none":
        norms["k_norm"] = None
    cos = sin = None
    half = int(case["rotated"] * head_dim) // 2
    if half:
        angles = random.uniform(-3, 3, size=(T, half))
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    slot_scales = [np.full((P, S, HKV), np.nan, np.float32) for _ in "kv"]
    scales = {
        "none": [None, None],
        "all": [0.03125, 0.0625],
        "head": [np.array([0.03, 0.05], np.float32), np.array([0.07, 0.02], np.float32)],
        "slot": slot_scales,
    }[case["scale"]]
    k_cache, v_cache = (pages_of(kv_dtype, head_dim) for _ in "kv")
    ops.append_kv(
        q if case["has_q"] else None, key, value, k_cache, v_cache, SLOTS, *scales,
        rotary_cos=cos, rotary_sin=sin, rotary_interleaved=case["interleaved"], **norms, norm_eps=1e-5,
        dtype=dtype, kv_dtype=kv_dtype,
    )  # fmt: skip

    rotation = (cos, sin, case["interleaved"], 1e-5)
    want_q = prepared(was[0], norms["q_norm"], *rotation) if case["has_q"] else was[0]
    want_k = prepared(was[1], norms["k_norm"], *rotation)
    np.testing.assert_allclose(decode(q, dtype), want_q, rtol=2 * ROUNDING[dtype], atol=2e-6)
    for pages, want, scale in ((k_cache, want_k, scales[0]), (v_cache, was[2], scales[1])):
        divisor: Any = 1.0 if scale is None else scale
        if case["scale"] == "head":
            divisor = scale[:, None]
        elif case["scale"] == "slot":
            made = scale.reshape(P * S, HKV)[SLOTS[SLOTS >= 0]]
            np.testing.assert_allclose(made, np.abs(want[SLOTS >= 0]).max(axis=-1) / LARGEST[kv_dtype], rtol=1e-5)
            divisor = made[..., None]
        check_pages(pages, kv_dtype, want, divisor)
    np.testing.assert_array_equal(decode(key, dtype), was[1])
    np.testing.assert_array_equal(decode(value, dtype), was[2])


@pytest.mark.usefixtures("any_machine")
def test_a_tokens_heads_do_not_depend_on_the_batch() -> None:
    q, key, value = packed_rows("float32", 64, False)
    alone = q[1:2].copy()
    cos, sin = np.random.default_rng(0).normal(size=(2, T, 32)).astype(np.float32)
    norm = np.ones(64, np.float32)
    caches = [pages_of("bfloat16", 64) for _ in range(4)]
    options = {"q_norm": norm, "k_norm": norm, "kv_dtype": "bfloat16"}
    ops.append_kv(q, key, value, *caches[:2], SLOTS, rotary_cos=cos, rotary_sin=sin, **options)
    ops.append_kv(
        alone, key[1:2], value[1:2], *caches[2:], SLOTS[1:2],
        rotary_cos=cos[1:2].copy(), rotary_sin=sin[1:2].copy(), **options,
    )  # fmt: skip
    np.testing.assert_array_equal(alone[0], q[1])
    np.testing.assert_array_equal(caches[2][0, 3], caches[0][0, 3])


@pytest.mark.usefixtures("any_machine")
def test_no_tokens_are_no_work() -> None:
    q, key, value = packed_rows("float32", 64, False)
    pages = pages_of("bfloat16", 64)
    ops.append_kv(q[:0], key[:0], value[:0], pages, pages.copy(), SLOTS[:0], kv_dtype="bfloat16")
    assert (pages == poison("bfloat16")).all()


@pytest.mark.usefixtures("fake_device")
def test_on_a_device_norms_and_angles_may_be_in_host_memory() -> None:
    q, key, value = packed_rows("bfloat16", 64, False)
    was = decode(q, "bfloat16").copy()
    k_cache, v_cache = pages_of("int8", 64), pages_of("int8", 64)
    rows = [ExportedTensor(x, "bfloat16", device=CUDA) for x in (q, key, value)]
    pages = [ExportedTensor(x, device=CUDA) for x in (k_cache, v_cache)]
    cos, sin = np.random.default_rng(0).normal(size=(2, T, 32)).astype(np.float32)
    norm = np.full(64, 1.5, np.float32)
    ops.append_kv(*rows, *pages, SLOTS, 0.05, 0.05, rotary_cos=cos, rotary_sin=sin, q_norm=norm, k_norm=norm)
    want = prepared(was, norm, cos, sin, False, 1e-6)
    np.testing.assert_allclose(decode(q, "bfloat16"), want, rtol=2.0**-7, atol=1e-5)


@pytest.mark.usefixtures("any_machine")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"q": np.zeros((T, HQ, 32), np.float32)},
            r"q must have shape \[T, Hq, D\] = \[5, any, 64\], got \[5, 6, 32\]",
        ),
        ({"q": np.zeros((T, 3, 64), np.float32)}, "query heads must be a whole multiple of KV heads, got 3 and 2"),
        ({"q": np.zeros((T, HQ, 64), np.float16)}, "q must be float32, got float16"),
        ({"rotary_sin": None}, "rotary_cos and rotary_sin must come together, got rotary_sin=None"),
        ({"rotary_cos": np.zeros((T, 33), np.float32)}, "rotary_sin must have shape .* = .5, 33., got .5, 32."),
        (
            {name: np.zeros((T, 40), np.float32) for name in ("rotary_cos", "rotary_sin")},
            "rotary_cos must have 1 to 32 columns, half of head_dim, got 40",
        ),
        ({"rotary_cos": np.zeros((T, 32))}, "rotary_cos must be float32, got float64; pass it as float32"),
        ({"rotary_cos": np.zeros((4, 32), np.float32)}, r"rotary_cos must have shape .* = \[5, any\], got \[4, 32\]"),
        ({"q_norm": np.ones(32, np.float32)}, r"q_norm must have shape \[64\], got \[32\]"),
        ({"k_norm": np.ones(64, np.float16)}, "k_norm must be float32, got float16"),
        ({"norm_eps": -1.0}, "norm_eps must be a finite number of at least 0, got -1.0"),
        ({"rotary_interleaved": 1}, "rotary_interleaved must be True or False, got 1"),
        ({"slot_mapping": SLOTS + 1}, "slot_mapping must be below 48, the slots of k_cache, got 48"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    q, key, value = packed_rows("float32", 64, False)
    arguments: dict[str, Any] = {
        "q": q,
        "key": key,
        "value": value,
        "k_cache": pages_of("float16", 64),
        "v_cache": pages_of("float16", 64),
        "slot_mapping": SLOTS,
        "rotary_cos": np.zeros((T, 32), np.float32),
        "rotary_sin": np.zeros((T, 32), np.float32),
        "kv_dtype": "float16",
    }
    with pytest.raises(InvalidArgumentError, match=rf"^\[append_kv\] .*{message}"):
        ops.append_kv(**arguments | changes)


def test_queries_are_written_in_place() -> None:
    q, key, value = packed_rows("float32", 64, False)
    q.flags.writeable = False
    pages = pages_of("float16", 64)
    with pytest.raises(InvalidArgumentError, match="q must be writeable, got a read-only array"):
        ops.append_kv(q, key, value, pages, pages, SLOTS, kv_dtype="float16")
