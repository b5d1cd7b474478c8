"""pack_weights and small_product through their doors, against the formula in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from element_codes import ROUNDING, decode, encode
from exported_tensor import CUDA, NamespacedTensor
from pairwise import cover

from llm_decoder import ops
from llm_decoder.errors import InvalidArgumentError
from llm_decoder.ops import machines
from llm_decoder.ops.products import MAX_ROWS

COVER = cover(
    {
        "format": ("half", "w8", "w4", "f8", "int8"),
        "dtype": ("bfloat16", "float16"),
        "m": (1, 3, 8, 17, 64),
        "n": (1, 33, 256, 300),
        "k": (8, 40, 136, 512),
        "has_bias": (False, True),
        "out_is_float": (False, True),
        "is_apart": (False, True),
    },
    seed=6,
)
# The largest error of a weight, of the largest of its row: half a step of 127, or of a group's 15.
STEP = {"half": 0.0, "w8": 0.5 / 127, "w4": 0.6 / 7.5, "f8": 0.0, "int8": 0.0}


def weights_of(n: int, k: int, dtype: str) -> np.ndarray:
    return encode(np.random.default_rng(n * k).normal(size=(n, k)) * 0.3, dtype)


def as_fp8(weights: np.ndarray) -> np.ndarray:
    scale = (np.abs(weights).max(axis=1, keepdims=True) / 448).astype(np.float32)
    return decode(encode(weights.astype(np.float32) / scale, "fp8"), "fp8") * scale


@pytest.mark.parametrize("case", COVER, ids=lambda case: "-".join(str(level) for level in case.values()))
def test_rows_meet_packed_weights(case: dict[str, Any], any_machine: str) -> None:
    if any_machine == "cpu" and case["format"] == "f8":
        pytest.skip("the CPU has no products of fp8")
    dtype, m, n, k = case["dtype"], case["m"], case["n"], case["k"]
    random = np.random.default_rng(7)
    a = encode(random.normal(size=(m, k)), dtype)
    if case["is_apart"]:
        wide = np.full((m, k + 8), 0x7FFF, np.uint16)
        wide[:, :k] = a
        a = wide[:, :k]
    options: dict[str, Any] = {}
    if case["format"] == "int8":
        w = random.integers(-127, 128, size=(n, k)).astype(np.int8)
        options["scale"] = (0.001 + 0.01 * random.random(n)).astype(np.float32)
        want_weights = w * options["scale"][:, None].astype(np.float64)
        packed = ops.pack_weights(w, "w8", **options)
    else:
        w = weights_of(n, k, dtype)
        want_weights = as_fp8(decode(w, dtype)) if case["format"] == "f8" else decode(w, dtype)
        packed = ops.pack_weights(w, case["format"], dtype=dtype)
    bias = random.normal(size=n).astype(np.float32) if case["has_bias"] else None
    out = np.full((m, n), np.nan, np.float32) if case["out_is_float"] else None
    got = ops.small_product(a, packed, bias=bias, out=out, dtype=dtype)
    assert out is None or got is out

    rows = decode(a, dtype)
    want = rows @ want_weights.T + (0 if bias is None else bias)
    of = "float32" if case["out_is_float"] else dtype
    error = np.abs(decode(got, of) - want)
    # Independent roundings: of weights, of rows where they become int8, of the sum, of the result.
    largest = np.abs(want_weights).max(axis=1)
    sigma = np.linalg.norm(rows, axis=1)[:, None] * largest * STEP[case["format"]]
    if any_machine == "cpu" and case["format"] != "half":
        sigma = sigma + 0.5 / 127 * np.abs(rows).max(axis=1)[:, None] * np.linalg.norm(want_weights, axis=1)
    size = np.abs(rows) @ np.abs(want_weights).T + 1
    rounding = ROUNDING[of] * np.abs(want) + (2 * ROUNDING[dtype] if case["format"] == "int8" else 1e-5) * size
    assert (
        error <= 5 * sigma + rounding + (ROUNDING[dtype] * size if case["format"] in ("w8", "w4", "f8") else 0)
    ).all()


@pytest.mark.parametrize("format", ["half", "w8", "w4", "f8"])
def test_a_row_does_not_depend_on_the_others_nor_on_earlier_calls(format: str, any_machine: str) -> None:
    if any_machine == "cpu" and format == "f8":
        pytest.skip("the CPU has no products of fp8")
    packed = ops.pack_weights(weights_of(300, 512, "bfloat16"), format, dtype="bfloat16")
    a = encode(np.random.default_rng(0).normal(size=(17, 512)), "bfloat16")
    together = ops.small_product(a, packed, dtype="bfloat16")
    for row in (0, 9, 16):
        alone = ops.small_product(a[row : row + 1], packed, dtype="bfloat16")
        np.testing.assert_array_equal(alone[0], together[row])
    np.testing.assert_array_equal(ops.small_product(a, packed, dtype="bfloat16"), together)
    assert ops.small_product(a[:0], packed, dtype="bfloat16").shape == (0, 300)


@pytest.mark.parametrize(("format", "k"), [("half", 7), ("w8", 31), ("w4", 33)])
def test_the_cpu_takes_floats_any_k_and_any_number_of_rows(format: str, k: int) -> None:
    w, a = (np.random.default_rng(k).normal(size=(n, k)).astype(np.float32) for n in (20, 200))
    got = ops.small_product(a, ops.pack_weights(w, format))
    want = a.astype(np.float64) @ w.T
    bound = {"half": 1e-6, "w8": 0.02, "w4": 0.15}[format]
    assert np.abs(got - want).max() <= bound * np.abs(want).max()


@pytest.mark.usefixtures("fake_device")
def test_weights_are_packed_for_a_device_from_either_side() -> None:
    w = weights_of(40, 64, "bfloat16")
    a = encode(np.random.default_rng(0).normal(size=(3, 64)), "bfloat16")
    there = NamespacedTensor(a, "bfloat16", device=CUDA)
    results = [
        ops.small_product(there, packed)
        for packed in (
            ops.pack_weights(w, "half", device="cuda", dtype="bfloat16"),
            ops.pack_weights(NamespacedTensor(w, "bfloat16", device=CUDA), "half"),
        )
    ]
    np.testing.assert_array_equal(results[0].array, results[1].array)
    want = decode(a, "bfloat16") @ decode(w, "bfloat16").T
    np.testing.assert_allclose(decode(results[0].array, "bfloat16"), want, rtol=2.0**-7, atol=1e-2)
    with pytest.raises(InvalidArgumentError, match="weights must be on the device of a, cpu, got cuda:0; pack them"):
        ops.small_product(a, ops.pack_weights(w, "w8", device="cuda", dtype="bfloat16"), dtype="bfloat16")


def test_the_door_knows_the_limit_of_the_kernels(host_machine: None) -> None:
    kernels: Any = machines.kernels_for("here", "cpu")
    assert kernels.MAX_SMALL_PRODUCT_ROWS == MAX_ROWS


@pytest.mark.usefixtures("host_machine")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"a": np.zeros((65, 64), np.float16)},
            "no kernel of a GPU multiplies 65 rows in float16 with half .*; supported",
        ),
        (
            {"a": np.zeros((3, 64), np.float32)},
            "multiplies 3 rows in float32 with half weights in float16; supported are",
        ),
        (
            {"a": np.zeros((3, 64), np.uint16), "dtype": "bfloat16"},
            "multiplies 3 rows in bfloat16 with half weights in float16; supported are",
        ),
        ({"a": np.zeros((3, 65), np.float16)[:, 1:]}, "the rows of a must begin at multiples of 16 bytes"),
    ],
)
def test_products_that_no_kernel_of_a_gpu_has_are_refused(changes: dict[str, Any], message: str) -> None:
    arguments = {"a": np.zeros((3, 64), np.float16), "weights": ops.pack_weights(np.ones((8, 64), np.float16), "half")}
    with pytest.raises(InvalidArgumentError, match=rf"^\[small_product\] .*{message}"):
        ops.small_product(**arguments | changes)


@pytest.mark.usefixtures("host_machine")
@pytest.mark.parametrize(("shape", "dtype"), [((8, 60), np.float16), ((8, 64), np.float32)])
def test_weights_that_no_kernel_of_a_gpu_reads_are_refused(shape: tuple[int, int], dtype: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^\[pack_weights\] no kernel of a GPU multiplies half weights in"):
        ops.pack_weights(np.zeros(shape, dtype), "half")


W = np.ones((8, 64), np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": W, "format": W}, "format must be one of half, w8, w4, f8, got array"),
        ({"weights": W, "format": "w5"}, "format must be one of half, w8, w4, f8, got 'w5'"),
        ({"weights": W[0], "format": "w8"}, r"weights must have shape \[N, K\]"),
        ({"weights": W[:0], "format": "w8"}, r"weights must have at least one row and one column, got \[0, 64\]"),
        ({"weights": W.astype(np.float64), "format": "w8"}, "weights must be float32 or bfloat16 or float16 or int8"),
        ({"weights": W.astype(np.int8), "format": "w4"}, "weights must be float32 or bfloat16 or float16, got int8"),
        ({"weights": W.astype(np.int8), "format": "w8"}, "scale must come with weights of int8"),
        ({"weights": W, "format": "w8", "scale": W[:, 0]}, "scale must come with weights of int8"),
        (
            {"weights": W.astype(np.int8), "format": "w8", "scale": np.ones(3, np.float32)},
            r"scale must have shape \[8\], got \[3\]",
        ),
        (
            {"weights": np.full((8, 64), -128, np.int8), "format": "w8", "scale": np.ones(8, np.float32)},
            r"weights of int8 must be within \+-127, got -128",
        ),
        (
            {"weights": W.astype(np.int8), "format": "w8", "scale": np.full(8, np.nan, np.float32)},
            "scale must be finite and not negative",
        ),
        ({"weights": W * np.nan, "format": "w4"}, "weights that are to be quantised must be finite"),
        ({"weights": W, "format": "f8"}, "no kernel of the CPU multiplies weights of f8; supported are"),
        ({"weights": W, "format": "w8", "device": "tpu"}, "device must be cpu, cuda or cuda:N, got 'tpu'"),
    ],
)
def test_weights_that_cannot_be_packed_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"^\[pack_weights\] .*{message}"):
        ops.pack_weights(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": np.zeros((3, 32), np.float32)}, r"a must have shape \[M, K\] = \[any, 64\], got \[3, 32\]"),
        ({"a": np.zeros((3, 64))}, "a must be float32 or bfloat16 or float16, got float64"),
        ({"weights": W}, "weights must be what pack_weights returns, got ndarray"),
        ({"bias": np.zeros(3, np.float32)}, r"bias must have shape \[8\], got \[3\]"),
        ({"out": np.zeros((3, 8), np.float16)}, "out must be float32, got float16"),
        ({"out": np.zeros((3, 9), np.float32)}, r"out must have shape \[M, N\] = \[3, 8\], got \[3, 9\]"),
    ],
)
def test_products_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    arguments = {"a": np.zeros((3, 64), np.float32), "weights": ops.pack_weights(W, "w8")}
    with pytest.raises(InvalidArgumentError, match=rf"^\[small_product\] .*{message}"):
        ops.small_product(**arguments | changes)
