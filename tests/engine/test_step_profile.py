"""The profile of steps: it adds up, and it changes nothing."""

from __future__ import annotations

import time

import numpy as np
import pytest
from models_factory import make_checkpoint
from tiny_decoder import Runner, make_cache, make_decoder, random_weights, tiny_config

from llm_decoder import LLM, SamplingParams, _core

TOKENS = [5, 900, 77, 3, 3, 512, 41, 8]


@pytest.fixture(params=["w8", "f32"])
def runner(request):
    config = tiny_config()
    return Runner(make_decoder(config, random_weights(config), request.param, threads=2), make_cache(config))


def test_a_step_is_told_by_its_tokens_its_sequences_and_its_parts(runner):
    runner.decoder.start_profile()
    begin = time.perf_counter()
    one, two = runner.admit(TOKENS), runner.admit(TOKENS[:3])
    runner.step([(one, 5), (two, 2)])
    runner.step([(one, 1)])
    wall_s = time.perf_counter() - begin
    n_tokens, n_sequences, seconds = runner.decoder.stop_profile()
    assert n_tokens.tolist() == [7, 1]
    assert n_sequences.tolist() == [2, 1]
    assert seconds.shape == (2, len(_core.STEP_PARTS))
    assert (seconds >= 0).all()
    assert 0 < seconds.sum() <= wall_s
    part = dict(zip(_core.STEP_PARTS, seconds.T, strict=True))
    for name in ("rows", "attn_qkv", "attn_o", "mlp_gate_up", "mlp_down", "lm_head", "store_kv", "attention", "embed"):
        assert (part[name] > 0).all()
    assert part["outside"][0] > 0
    assert part["outside"][1] == 0, "nothing followed the last step"


def test_logits_are_the_same_with_a_profile(runner):
    plain = runner.run(TOKENS)
    runner.decoder.start_profile()
    runner.cache.clear_prefix_index()
    np.testing.assert_array_equal(runner.run(TOKENS), plain)


def test_stopping_forgets_and_starting_again_begins_anew(runner):
    with pytest.raises(ValueError, match=r"stop_profile\] needs start_profile first"):
        runner.decoder.stop_profile()
    runner.decoder.start_profile()
    runner.run(TOKENS)
    runner.decoder.start_profile()
    n_tokens, n_sequences, seconds = runner.decoder.stop_profile()
    assert len(n_tokens) == len(n_sequences) == len(seconds) == 0
    with pytest.raises(ValueError, match="needs start_profile"):
        runner.decoder.stop_profile()


def test_an_llm_tells_where_the_time_of_its_steps_went(tmp_path):
    with LLM(make_checkpoint(tmp_path), threads=1, kv_cache_bytes=1 << 20, max_tokens_per_step=8) as llm:
        llm.start_profile()
        llm.generate([list(range(20))], SamplingParams(max_tokens=3, ignore_eos=True))
        times = llm.stop_profile()
        assert times.parts == _core.STEP_PARTS
        assert times.n_tokens.tolist() == [8, 8, 4, 1, 1]
        sample = times.seconds[:, times.parts.index("sample")]
        assert (sample[:2] == 0).all()
        assert (sample[2:] > 0).all()
        with pytest.raises(ValueError, match="needs start_profile"):
            llm.stop_profile()
