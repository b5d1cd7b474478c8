"""The machine's limits are measured on every ISA. Nobody says how high they are."""

from __future__ import annotations

import math

import pytest

from llm_decoder import _core

SMALL_BYTES = 1 << 22


def test_every_limit_is_a_speed(isa):
    limits = _core.MachineLimits(2, SMALL_BYTES, isa)
    for speed in (limits.read_bytes_per_s(1), limits.int8_ops_per_s(1), limits.f32_ops_per_s(1)):
        assert math.isfinite(speed)
        assert speed > 1e6
    assert (limits.isa, limits.threads) == (isa, 2)


def test_the_memory_that_is_read_is_rounded_up():
    assert _core.MachineLimits(1, SMALL_BYTES + 1).n_bytes == 2 * SMALL_BYTES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, SMALL_BYTES), "n_threads must be at least 1, got 0"), ((1, 0), "n_bytes must be positive, got 0")],
)
def test_impossible_numbers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        _core.MachineLimits(*arguments)
    with pytest.raises(ValueError, match="n_rounds must be positive, got 0"):
        _core.MachineLimits(1, SMALL_BYTES).read_bytes_per_s(0)
    with pytest.raises(ValueError, match="need one of auto"):
        _core.MachineLimits(1, SMALL_BYTES, "neon")
