"""fused_moe through its door, against the formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from element_codes import ROUNDING, decode, encode
from exported_tensor import CUDA, NamespacedTensor

from llm_decoder import ops
from llm_decoder.errors import InvalidArgumentError

T, E, N, K, TOP_K = 5, 4, 24, 40, 2


def problem(dtype: str = "bfloat16", weight_dtype: str = "bfloat16") -> dict[str, Any]:
    random = np.random.default_rng(0)
    size = 40.0 if weight_dtype == "int8" else 0.3
    found: dict[str, Any] = {
        "hidden": encode(random.normal(size=(T, K)), dtype),
        "w1": encode(random.normal(size=(E, 2 * N, K)) * size, weight_dtype),
        "w2": encode(random.normal(size=(E, K, N)) * size, weight_dtype),
        "topk_weights": random.random((T, TOP_K)).astype(np.float32),
        "topk_ids": np.array([random.permutation(E)[:TOP_K] for _ in range(T)], np.int32),
        "dtype": dtype,
        "weight_dtype": weight_dtype,
    }
    if weight_dtype == "int8":
        found["w1_scale"] = (0.005 + 0.005 * random.random((E, 2 * N))).astype(np.float32)
        found["w2_scale"] = (0.005 + 0.005 * random.random((E, K))).astype(np.float32)
    return found


def formula(p: dict[str, Any]) -> np.ndarray:
    hidden = decode(p["hidden"], p["dtype"])
    w1, w2 = (decode(p[name], p["weight_dtype"]) for name in ("w1", "w2"))
    if "w1_scale" in p:
        w1, w2 = w1 * p["w1_scale"][..., None], w2 * p["w2_scale"][..., None]
    out = np.zeros_like(hidden)
    for token in range(len(hidden)):
        for weight, chosen in zip(p["topk_weights"][token], p["topk_ids"][token], strict=True):
            expert = p["expert_map"][chosen] if "expert_map" in p else chosen
            if expert < 0:
                continue
            gate, up = np.split(w1[expert] @ hidden[token], 2)
            out[token] += weight * (w2[expert] @ (gate / (1 + np.exp(-gate)) * up))
    return out


def check(out: np.ndarray, p: dict[str, Any]) -> None:
    want = formula(p)
    size = np.abs(want).max(axis=-1, keepdims=True)
    assert (np.abs(decode(out, p["dtype"]) - want) <= 4 * ROUNDING[p["dtype"]] * size).all()


@pytest.mark.usefixtures("any_machine")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("has_bytes", [False, True])
@pytest.mark.parametrize("tile_rows", [0, 32])
def test_each_token_gets_the_weighed_sum_of_its_experts(dtype: str, has_bytes: bool, tile_rows: int) -> None:
    p = problem(dtype, "int8" if has_bytes else dtype)
    check(ops.fused_moe(**p, tile_rows=tile_rows), p)


@pytest.mark.usefixtures("any_machine")
def test_experts_that_are_elsewhere_add_nothing() -> None:
    p = problem()
    p["expert_map"] = np.array([2, -1, 0, 3, 1], np.int32)
    p["topk_ids"][:3, 0] = 4
    check(ops.fused_moe(**p), p)


@pytest.mark.usefixtures("any_machine")
def test_rows_may_lie_apart_and_the_result_goes_where_it_is_told() -> None:
    p = problem()
    wide = np.full((T, K + 8), 0x7FFF, np.uint16)
    out = wide[:, :K]
    apart = np.full((T, K + 8), 0x7FFF, np.uint16)
    apart[:, :K] = p["hidden"]
    assert ops.fused_moe(**p | {"hidden": apart[:, :K]}, out=out) is out
    check(out, p)
    assert (wide[:, K:] == 0x7FFF).all()
    assert ops.fused_moe(**p | {"hidden": apart[:, :K]}, out=apart[:, :K]).base is apart
    np.testing.assert_array_equal(apart[:, :K], out)
    assert ops.fused_moe(**p | {name: p[name][:0] for name in ("hidden", "topk_ids", "topk_weights")}).shape == (0, K)


def test_the_cpu_takes_float32_too_and_never_depends_on_the_batch() -> None:
    p = problem("float32", "float32")
    p |= {"dtype": None, "weight_dtype": None}
    together = ops.fused_moe(**p)
    want = formula(p | {"dtype": "float32", "weight_dtype": "float32"})
    np.testing.assert_allclose(together, want, rtol=1e-4, atol=1e-4)
    for token in range(T):
        one = {name: p[name][token : token + 1] for name in ("hidden", "topk_weights", "topk_ids")}
        np.testing.assert_array_equal(ops.fused_moe(**p | one)[0], together[token])


@pytest.mark.usefixtures("host_machine")
def test_a_gpu_takes_no_float32() -> None:
    p = problem("float32", "float32") | {"dtype": None, "weight_dtype": None}
    with pytest.raises(
        InvalidArgumentError,
        match=r"^\[fused_moe\] hidden is float32; supported are hidden in bfloat16 or float16, on the",
    ):
        ops.fused_moe(**p)


@pytest.mark.usefixtures("any_machine")
def test_routes_go_to_the_mixture_as_they_are() -> None:
    p = problem()
    logits = np.random.default_rng(1).normal(size=(T, E)).astype(np.float32)
    p["topk_weights"], p["topk_ids"] = ops.moe_routing(logits, TOP_K, renormalize=True)
    check(ops.fused_moe(**p), p)


@pytest.mark.usefixtures("fake_device")
def test_on_a_device_small_arrays_may_be_in_host_memory() -> None:
    p = problem()
    there = {name: NamespacedTensor(p[name], "bfloat16", device=CUDA) for name in ("hidden", "w1", "w2")}
    out = ops.fused_moe(**p | there | {"dtype": None, "weight_dtype": None})
    check(out.array, p)


@pytest.mark.usefixtures("any_machine")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": np.zeros((T, K), np.int8), "dtype": None}, "hidden is int8; supported are hidden in bfloat16 or"),
        ({"hidden": np.zeros((T, 1, K), np.uint16)}, r"hidden must have shape \[T, K\]"),
        ({"w1": np.zeros((E, 2 * N, 8), np.uint16)}, r"w1 must have shape \[E, 2 N, K\] = \[any, any, 40\]"),
        ({"w2": np.zeros((E, K, 8), np.uint16)}, r"w2 must have shape \[E, K, N\] = \[4, 40, 24\], got \[4, 40, 8\]"),
        (
            {"w1": np.zeros((E, 20, K), np.uint16), "w2": np.zeros((E, K, 10), np.uint16)},
            "K and N must be multiples of 8, got K = 40 and 2 N = 20; pad with zeros",
        ),
        ({"weight_dtype": "float16"}, "w1 must be bfloat16 or int8, got float16"),
        (
            {"w1": np.zeros((E, 2 * N, K), np.int8), "w2": np.zeros((E, K, N), np.int8), "weight_dtype": None},
            "int8 weights need w1_scale and w2_scale",
        ),
        ({"w1_scale": np.ones((E, N), np.float32)}, r"w1_scale must have shape \[4, 48\], got \[4, 24\]"),
        ({"topk_ids": np.zeros((T, TOP_K), np.int64)}, "topk_ids must be int32, got int64"),
        ({"topk_ids": np.zeros((T, 0), np.int32)}, "top_k .* must be a whole number of at least 1, got 0"),
        ({"topk_weights": np.zeros((T, 3), np.float32)}, r"topk_weights must have shape \[5, 2\], got \[5, 3\]"),
        ({"expert_map": np.zeros((2, 2), np.int32)}, r"expert_map must have shape \[n_ids\]"),
        ({"topk_weights": None}, "topk_weights must be a NumPy array or a tensor that speaks DLPack, got NoneType"),
        ({"tile_rows": np.zeros(2)}, "tile_rows must be a whole number of at least 0, got array"),
        ({"tile_rows": 16}, "tile_rows must be one of 0, 8, 32, 64, 128, got 16"),
        ({"out": np.zeros((T, 8), np.uint16)}, r"out must have shape \[T, K\] = \[5, 40\]"),
    ],
)
def test_mixtures_that_no_kernel_computes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"^\[fused_moe\] .*{message}"):
        ops.fused_moe(**problem() | changes)
