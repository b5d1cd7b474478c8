"""rms_norm, layer_norm, gated and embed through their doors, against the formulas in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from element_codes import ROUNDING, decode, encode, poison
from exported_tensor import CUDA, NamespacedTensor
from pairwise import cover

from llm_decoder import ops
from llm_decoder.errors import InvalidArgumentError

DTYPES = ("float32", "bfloat16", "float16")
EPS = 1e-5

NORMS = cover(
    {
        "op": ("rms_norm", "layer_norm"),
        "dtype": DTYPES,
        "weight_is_float": (False, True),
        "n_tokens": (1, 3, 33),
        "n_cols": (1, 7, 64, 515),
        "has_bias": (False, True),
        "residual": ("none", "same", "float32"),
        "result": ("same", "float32", "int8"),
        "is_apart": (False, True),
    },
    seed=2,
)
GATED = cover(
    {
        "activation": ("silu", "gelu", "gelu_tanh", "relu", "identity"),
        "is_gated": (True, False),
        "dtype": DTYPES,
        "n_tokens": (1, 3, 33),
        "n_cols": (1, 7, 64, 515),
        "result": ("same", "float32", "int8"),
        "is_apart": (False, True),
    },
    seed=3,
)


def ids_of(case: dict[str, Any]) -> str:
    return "-".join(str(level) for level in case.values())


def rows_of(n_rows: int, n_cols: int, dtype: str, seed: int, is_apart: bool = False) -> np.ndarray:
    """Random rows; apart, with poison between them, at addresses that suit no vector."""
    values = encode(np.random.default_rng(seed).normal(size=(n_rows, n_cols)) * 2, dtype)
    if not is_apart:
        return values
    wide = np.full((n_rows, n_cols + 3), poison(dtype), values.dtype)
    wide[:, 1 : n_cols + 1] = values
    return wide[:, 1 : n_cols + 1]


def carrier(dtype: str) -> Any:
    return np.float32 if dtype == "float32" else np.uint16


def check_result(got: Any, dtype: str, want: np.ndarray, result: str) -> None:
    size = np.abs(want).max(axis=-1, keepdims=True)
    if result == "int8":
        q, scale = got
        assert (q.dtype, scale.dtype) == (np.int8, np.float32)
        np.testing.assert_allclose(scale, np.where(size == 0, 127, size)[:, 0] / 127, rtol=1e-4)
        assert (np.abs(q * scale[:, None].astype(np.float64) - want) <= 0.501 * scale[:, None] + 1e-5).all()
        return
    of = "float32" if result == "float32" else dtype
    assert (np.abs(decode(got, of) - want) <= ROUNDING[of] * np.abs(want) + 3e-6 * (1 + size)).all()


@pytest.mark.usefixtures("any_machine")
@pytest.mark.parametrize("case", NORMS, ids=ids_of)
def test_rows_are_normed(case: dict[str, Any]) -> None:
    dtype, shape = case["dtype"], (case["n_tokens"], case["n_cols"])
    weight_dtype = "float32" if case["weight_is_float"] else dtype
    x = rows_of(*shape, dtype, 0, case["is_apart"])
    was = x.copy()
    weight, bias = (rows_of(1, shape[1], weight_dtype, seed)[0] for seed in (1, 2))
    options: dict[str, Any] = {"bias": bias} if case["has_bias"] else {}
    v = decode(x, dtype)
    if case["residual"] != "none":
        of = "float32" if case["residual"] == "float32" else dtype
        residual = rows_of(*shape, of, 3, case["is_apart"])
        total = v + decode(residual, of)
        options["residual"] = residual
    out = None
    if case["result"] == "float32":
        options["out"] = out = np.full(shape, np.nan, np.float32)
    got = getattr(ops, case["op"])(x, weight, eps=EPS, quantize=case["result"] == "int8", dtype=dtype, **options)
    assert out is None or got is out
    np.testing.assert_array_equal(x, was)
    if case["residual"] != "none":
        np.testing.assert_allclose(decode(residual, of), total, rtol=ROUNDING[of] * 1.001, atol=1e-6)
        v = decode(residual, of)
    if case["op"] == "layer_norm":
        v = v - v.mean(axis=-1, keepdims=True)
    want = v / np.sqrt((v**2).mean(axis=-1, keepdims=True) + EPS) * decode(weight, weight_dtype)
    if case["has_bias"]:
        want = want + decode(bias, weight_dtype)
    check_result(got, dtype, want, case["result"])


def activated(x: np.ndarray, activation: str) -> np.ndarray:
    if activation == "silu":
        return x / (1 + np.exp(-x))
    if activation == "gelu":
        return x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    if activation == "gelu_tanh":
        return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return np.maximum(x, 0) if activation == "relu" else x


@pytest.mark.usefixtures("any_machine")
@pytest.mark.parametrize("case", GATED, ids=ids_of)
def test_rows_are_activated(case: dict[str, Any]) -> None:
    dtype, n = case["dtype"], case["n_cols"]
    x = rows_of(case["n_tokens"], 2 * n if case["is_gated"] else n, dtype, 5, case["is_apart"])
    options: dict[str, Any] = {"quantize": case["result"] == "int8"}
    if case["result"] == "float32":
        options["out"] = np.full((case["n_tokens"], n), np.nan, np.float32)
    got = ops.gated(x, case["activation"], is_gated=case["is_gated"], dtype=dtype, **options)
    values = decode(x, dtype)
    want = activated(values[:, :n], case["activation"]) * (values[:, n:] if case["is_gated"] else 1)
    check_result(got, dtype, want, case["result"])


@pytest.mark.usefixtures("any_machine")
@pytest.mark.parametrize("dtype", [*DTYPES, "int8"])
@pytest.mark.parametrize("n_cols", [1, 7, 64, 1030])
def test_rows_of_a_table_come_by_id(dtype: str, n_cols: int) -> None:
    n_vocab = 9
    table = rows_of(n_vocab, n_cols, dtype, 0) if dtype != "int8" else rows_of(n_vocab, n_cols, "float32", 0)
    ids = np.array([3, 0, 8, 3, 5], np.int32)
    options: dict[str, Any] = {}
    want = decode(table, dtype) if dtype != "int8" else None
    if dtype == "int8":
        table = np.rint(table * 30).clip(-127, 127).astype(np.int8)
        options["scale"] = np.linspace(0.01, 0.09, n_vocab).astype(np.float32)
        want = table * options["scale"][:, None].astype(np.float64)
    got = ops.embed(ids, table, dtype=dtype if dtype not in ("float32", "int8") else None, **options)
    np.testing.assert_allclose(decode(got, "float32" if dtype == "int8" else dtype), want[ids], rtol=1e-6)
    wide = np.full((5, n_cols + 2), np.nan, np.float32)
    out = wide[:, 1:-1]
    half = None if dtype in ("float32", "int8") else dtype
    assert ops.embed(ids, table, out=out, dtype=half, **options) is out
    np.testing.assert_allclose(out, want[ids], rtol=1e-6)
    assert np.isnan(wide[:, [0, -1]]).all()


@pytest.mark.usefixtures("any_machine")
def test_a_row_does_not_depend_on_the_batch() -> None:
    x, weight = rows_of(33, 515, "float32", 0), rows_of(1, 515, "float32", 1)[0]
    for row in (0, 16, 32):
        for op in (ops.rms_norm, ops.layer_norm):
            np.testing.assert_array_equal(op(x[row : row + 1], weight)[0], op(x, weight)[row])
        quantised, scale = ops.gated(x[row : row + 1, :514], quantize=True)
        all_quantised, all_scale = ops.gated(x[:, :514], quantize=True)
        np.testing.assert_array_equal(quantised[0], all_quantised[row])
        assert scale[0] == all_scale[row]


@pytest.mark.usefixtures("any_machine")
def test_a_row_that_is_not_finite_stays_alone() -> None:
    x, weight = rows_of(4, 64, "float32", 0), np.ones(64, np.float32)
    want = ops.rms_norm(x, weight)
    bad = x.copy()
    bad[1, 5], bad[2, 7] = np.nan, np.inf
    got = ops.rms_norm(bad, weight)
    np.testing.assert_array_equal(got[[0, 3]], want[[0, 3]])
    assert np.isnan(got[1]).any()
    assert np.isnan(ops.rms_norm(bad, weight, quantize=True)[1][[1, 2]]).all()


@pytest.mark.usefixtures("any_machine")
def test_a_row_of_zeros_has_scale_one() -> None:
    q, scale = ops.gated(np.zeros((2, 16), np.float32), quantize=True)
    assert not q.any()
    np.testing.assert_array_equal(scale, 1)


@pytest.mark.usefixtures("any_machine")
def test_no_rows_are_no_work() -> None:
    x, weight = np.zeros((0, 16), np.float32), np.ones(16, np.float32)
    assert ops.rms_norm(x, weight).shape == (0, 16)
    assert ops.layer_norm(x, weight, quantize=True)[1].shape == (0,)
    assert ops.gated(x).shape == (0, 8)
    assert ops.embed(np.zeros(0, np.int32), np.ones((3, 16), np.float32)).shape == (0, 16)


@pytest.mark.usefixtures("any_machine")
def test_a_norm_may_go_where_its_rows_are() -> None:
    x, weight = rows_of(3, 64, "float32", 0), rows_of(1, 64, "float32", 1)[0]
    want = ops.rms_norm(x, weight)
    assert ops.rms_norm(x, weight, out=x) is x
    np.testing.assert_array_equal(x, want)


@pytest.mark.usefixtures("fake_device")
def test_tensors_on_a_device_stay_there() -> None:
    x, weight = rows_of(3, 64, "bfloat16", 0), rows_of(1, 64, "bfloat16", 1)[0]
    there = [NamespacedTensor(array, "bfloat16", device=CUDA) for array in (x, weight)]
    out = ops.rms_norm(*there)
    assert (out.device, out.dtype) == (CUDA, "bfloat16")
    np.testing.assert_allclose(
        decode(out.array, "bfloat16"), decode(ops.rms_norm(x, weight, dtype="bfloat16"), "bfloat16"), rtol=2.0**-7
    )
    table = NamespacedTensor(x, "bfloat16", device=CUDA)
    rows = ops.embed(np.array([2, 0], np.int32), table)
    np.testing.assert_array_equal(rows.array, x[[2, 0]])


X, W = np.zeros((3, 16), np.float32), np.ones(16, np.float32)


@pytest.mark.usefixtures("any_machine")
@pytest.mark.parametrize(
    ("op", "arguments", "message"),
    [
        ("rms_norm", {"x": X[0], "weight": W}, r"x must have shape \[T, N\] = \[any, any\], got \[16\]"),
        ("rms_norm", {"x": X.astype(np.float64), "weight": W}, "x must be float32 or bfloat16 or float16, got float64"),
        ("rms_norm", {"x": X.T, "weight": W[:3]}, "the elements of the last axis of x must lie beside each other"),
        ("rms_norm", {"x": X, "weight": W[:8]}, r"weight must have shape \[N\] = \[16\], got \[8\]"),
        ("rms_norm", {"x": X, "weight": np.ones(32, np.float32)[::2]}, "weight must be contiguous"),
        ("rms_norm", {"x": X, "weight": W, "eps": -1}, "eps must be a finite number of at least 0, got -1"),
        ("rms_norm", {"x": X, "weight": W, "quantize": 1}, "quantize must be True or False, got 1"),
        ("rms_norm", {"x": X, "weight": W, "quantize": True, "out": X}, "out must be int8, got float32"),
        (
            "rms_norm",
            {"x": X, "weight": W, "residual": X[:2]},
            r"residual must have shape .* = \[3, 16\], got \[2, 16\]",
        ),
        (
            "rms_norm",
            {"x": X.astype(np.float16), "weight": W.astype(np.float16), "residual": np.zeros((3, 16), np.uint16)},
            "residual must be float32 or bfloat16 or float16, got uint16",
        ),
        (
            "layer_norm",
            {"x": X.astype(np.float16), "weight": np.zeros(16, np.uint16), "dtype": "bfloat16"},
            "weight must be float32 or float16, like x, got bfloat16",
        ),
        ("layer_norm", {"x": X, "weight": W, "bias": W[None]}, r"bias must have shape \[N\] = \[16\], got \[1, 16\]"),
        ("gated", {"x": X[:, :15]}, "x must have an even number of columns, gate and up, got 15"),
        ("gated", {"x": X, "activation": "swish"}, "activation must be one of silu, gelu, gelu_tanh, relu, identity"),
        (
            "gated",
            {"x": X, "activation": X},
            "activation must be one of silu, gelu, gelu_tanh, relu, identity, got array",
        ),
        ("gated", {"x": X, "out": X}, r"out must have shape \[T, N\] = \[3, 8\], got \[3, 16\]"),
        ("embed", {"ids": np.array([0, 3], np.int32), "table": X}, r"ids must be in \[0, 3\), got 3 at 1"),
        ("embed", {"ids": np.array([-1], np.int32), "table": X}, r"ids must be in \[0, 3\), got -1 at 0"),
        ("embed", {"ids": np.array([0]), "table": X}, "ids must be int32, got int64; pass it as int32"),
        ("embed", {"ids": np.array([0], np.int32), "table": X.astype(np.int8)}, "scale must come with a table of int8"),
        (
            "embed",
            {"ids": np.array([0], np.int32), "table": X, "scale": np.ones(3, np.float32)},
            "scale must come with a table of int8 and with no other, got float32",
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused(op: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"^\[{op}\] .*{message}"):
        getattr(ops, op)(**arguments)


@pytest.mark.usefixtures("any_machine")
@pytest.mark.parametrize(
    ("op", "name", "options"),
    [
        ("rms_norm", "residual", {}),
        ("rms_norm", "out", {}),
        ("layer_norm", "out", {"quantize": True}),
        ("gated", "out", {"is_gated": False}),
        ("embed", "out", {}),
    ],
)
def test_what_is_written_must_be_writeable(op: str, name: str, options: dict[str, Any]) -> None:
    place = np.zeros((3, 16), np.int8 if "quantize" in options else np.float32)
    place.flags.writeable = False
    arguments = {"rms_norm": (X, W), "layer_norm": (X, W), "gated": (X,), "embed": (np.zeros(3, np.int32), X)}[op]
    with pytest.raises(InvalidArgumentError, match=rf"^\[{op}\] {name} must be writeable, got a read-only array"):
        getattr(ops, op)(*arguments, **options, **{name: place})
