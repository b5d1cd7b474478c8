"""What is brought back from the second tier and what is computed again."""

from __future__ import annotations

from llm_decoder._core import KvCache
from llm_decoder.kv_tier import KvTier
from llm_decoder.pace import Pace
from llm_decoder.speculation import StepCost

PAGE = 16
TOKEN_BYTES = 2 * 16 * 4  # keys and values of one layer and head, float32


class MeasuredCache(KvCache):
    """With a storage that says what loads took."""

    def __init__(self) -> None:
        super().__init__(4, PAGE, layers=1, n_kv_heads=1, head_dim=16, n_tier_slots=8)
        self.times = (0, 0.0)

    def load_times(self) -> tuple[int, float]:
        return self.times


def pace_of(prompt_token_s: float) -> Pace:
    pace = Pace(StepCost())
    pace.prompt_token_s = prompt_token_s
    return pace


def test_what_costs_less_is_done() -> None:
    cache = MeasuredCache()
    cache.times = (1000 * TOKEN_BYTES, 0.5)  # half a millisecond a token
    assert KvTier(cache, pace_of(0.0006)).is_worth_loading
    assert not KvTier(cache, pace_of(0.0004)).is_worth_loading


def test_a_load_is_tried_until_both_costs_are_known() -> None:
    cache = MeasuredCache()
    assert KvTier(cache, pace_of(1e-9)).is_worth_loading
    cache.times = (TOKEN_BYTES, 1.0)
    assert KvTier(cache, pace_of(0.0)).is_worth_loading
    assert KvTier(cache, None).is_worth_loading


def test_costs_are_looked_at_as_they_change() -> None:
    cache, pace = MeasuredCache(), pace_of(0.001)
    tier = KvTier(cache, pace)
    assert tier.is_worth_loading
    cache.times = (TOKEN_BYTES, 0.01)
    assert not tier.is_worth_loading
    pace.prompt_token_s = 0.1
    assert tier.is_worth_loading


def test_host_memory_measures_no_loads() -> None:
    assert KvCache(4, PAGE, layers=1, n_kv_heads=1, head_dim=16, n_tier_slots=8).load_times() == (0, 0.0)
