"""The row kernels give the bits of the generic ISA on every ISA."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llm_decoder import _core

kernels = _core.kernels


def _rope(isa: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
    x = x.copy()
    half = x.shape[1] // 2
    kernels.rope(isa, x, np.cos(np.arange(half)).astype(np.float32), np.sin(np.arange(half)).astype(np.float32))
    return x


CALLS: dict[str, Callable[[str, NDArray[np.float32]], Any]] = {
    "rms_norm": lambda isa, x: kernels.rms_norm(isa, x, x[0].copy(), 1e-6),
    "silu_mul": kernels.silu_mul,
    "layer_norm": lambda isa, x: kernels.layer_norm(isa, x, x[0].copy(), x[1].copy(), 1e-6),
    "gelu": lambda isa, x: kernels.activate(isa, "gelu", True, x, 0.0),
    "gelu_tanh": lambda isa, x: kernels.activate(isa, "gelu_tanh", False, x, 0.0),
    "relu": lambda isa, x: kernels.activate(isa, "relu", False, x, 0.0),
    "quantize_rows": kernels.quantize_rows,
    "rope": _rope,
    "log_sum_exp": lambda isa, x: kernels.log_sum_exp(isa, x.ravel()),
    "index_of_max": lambda isa, x: kernels.index_of_max(isa, x.ravel(), x.max()),
    "quantize_weight_groups": lambda isa, x: _core.quantize_weight_groups(x, isa),
}


@pytest.mark.parametrize("n_cols", [2, 6, 62, 66, 254, 2048])
@pytest.mark.parametrize("kernel", CALLS)
def test_every_isa_gives_the_bits_of_generic(isa, kernel, n_cols):
    rng = np.random.default_rng(n_cols)
    x = (rng.standard_normal((9, n_cols)) * 10.0 ** rng.integers(-6, 3, (9, n_cols))).astype(np.float32)
    mine, generic = CALLS[kernel](isa, x), CALLS[kernel]("generic", x)
    if not isinstance(mine, tuple):
        mine, generic = (mine,), (generic,)
    for left, right in zip(mine, generic, strict=True):
        np.testing.assert_array_equal(left, right)
