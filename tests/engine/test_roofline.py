"""Bytes and operations of a step against what a pencil finds."""

from __future__ import annotations

import dataclasses

import pytest

from llm_decoder import _core
from llm_decoder.loading import load_model
from llm_decoder.model_config import ModelConfig
from llm_decoder.roofline import Chunk, Limits, Work, floor_s, step_work

SMALL = ModelConfig(
    model_type="llama",
    n_layers=2,
    hidden_size=32,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    intermediate_size=48,
    vocab_size=64,
    max_model_len=128,
    norm_eps=1e-5,
    attention_scale=0.25,
    windows=(0, 0),
    rope_inv_freq=(1.0,) * 8,
    tie_word_embeddings=True,
)
DECODE = [Chunk(1, 10, 1)]


def test_a_decoded_token_reads_every_weight_once_and_the_keys_and_values_before_it():
    parts = step_work(SMALL, "w8", "int8", DECODE)
    qkv, o, gate_up, down, head = (4 + 2 + 2) * 16, 32, 2 * 48, 32, 64  # output channels, each with a scale
    assert parts["attn_qkv"] == Work(2 * qkv * (32 + 4), 2 * 2 * qkv * 32)
    assert parts["attn_o"] == Work(2 * o * (64 + 4), 2 * 2 * o * 64)
    assert parts["mlp_gate_up"] == Work(2 * gate_up * (32 + 4), 2 * 2 * gate_up * 32)
    assert parts["mlp_down"] == Work(2 * down * (48 + 4), 2 * 2 * down * 48)
    assert parts["lm_head"] == Work(head * (32 + 4), 2 * head * 32)
    assert parts["embed"] == Work(32)
    n_pairs = 2 * 10  # layers x positions; a pair costs q.k and p.v, of 16 multiplications and additions each
    position_bytes = 2 * 2 * (16 + 4)  # K and V x heads x (channels, scale)
    assert parts["attention"] == Work(n_pairs * position_bytes, n_pairs * 4 * 2 * 2 * 16)


def test_the_parts_are_called_as_the_profile_of_the_core_calls_them():
    assert set(step_work(SMALL, "w8", "int8", DECODE)) <= set(_core.STEP_PARTS)


def test_a_batch_reads_the_weights_once_and_each_its_own_keys_and_values():
    one, many = step_work(SMALL, "w8", "int8", DECODE), step_work(SMALL, "w8", "int8", DECODE * 5)
    for name in ("attn_qkv", "attn_o", "mlp_gate_up", "mlp_down", "lm_head"):
        assert many[name].read_bytes == one[name].read_bytes
        assert many[name].int8_ops == 5 * one[name].int8_ops
    assert many["attention"] == Work(5 * one["attention"].read_bytes, 5 * one["attention"].int8_ops)


def test_the_last_layer_of_a_prompt_goes_on_with_the_rows_that_get_logits_alone():
    prompt = step_work(SMALL, "w8", "int8", [Chunk(8, 8, 1)])
    one = step_work(SMALL, "w8", "int8", DECODE)
    assert prompt["attn_qkv"].int8_ops == 8 * one["attn_qkv"].int8_ops
    assert prompt["mlp_down"].int8_ops == (8 + 1) * one["mlp_down"].int8_ops / 2
    assert prompt["lm_head"] == one["lm_head"]
    n_pairs = 8 * 9 // 2 + 8  # every token in the first layer, the last one in the second
    assert prompt["attention"].int8_ops == n_pairs * 4 * 2 * 2 * 16
    middle = step_work(SMALL, "w8", "int8", [Chunk(8, 8, 0)])
    assert "lm_head" not in middle
    assert middle["mlp_down"] == Work(one["mlp_down"].read_bytes // 2, 8 * one["mlp_down"].int8_ops // 2)


def test_a_window_bounds_what_is_seen():
    config = dataclasses.replace(SMALL, windows=(4, 0))
    n_pairs, n_positions = 4 + 10, 4 + 10
    assert step_work(config, "w8", "int8", DECODE)["attention"] == Work(n_positions * 80, n_pairs * 256)
    # Tokens 3 to 7 of a sequence see 3, 4, 4, 4, 4 positions; the first that any sees is 0 for the third, so all 7.
    prompt = step_work(dataclasses.replace(config, windows=(4, 4)), "w8", "int8", [Chunk(5, 7, 0)])
    assert prompt["attention"] == Work(7 * 80, (3 + 4 + 4 + 4 + 4) * 256)


def test_float_weights_and_pages_are_four_bytes_and_float_operations():
    parts = step_work(dataclasses.replace(SMALL, tie_word_embeddings=False), "f32", "float32", DECODE)
    assert parts["lm_head"] == Work(64 * 32 * 4, 0, 2 * 64 * 32)
    assert parts["attention"] == Work(20 * 2 * 2 * 16 * 4, 0, 20 * 256)
    mixed = step_work(SMALL, "w8", "float32", DECODE)
    assert mixed["attention"] == parts["attention"]
    assert mixed["lm_head"].f32_ops == 0


def test_bfloat16_weights_are_half_the_bytes_of_the_same_float_operations():
    half, whole = step_work(SMALL, "bf16", "bfloat16", DECODE), step_work(SMALL, "f32", "float32", DECODE)
    for name, work in whole.items():
        assert half[name] == Work(work.read_bytes // 2, 0, work.f32_ops)


def test_int4_is_fewer_bytes_of_the_same_int8_operations_and_bfloat16_half_the_bytes_of_float32():
    w4, w8 = step_work(SMALL, "w4", "bfloat16", DECODE), step_work(SMALL, "w8", "float32", DECODE)
    assert w4["mlp_down"].int8_ops == w8["mlp_down"].int8_ops
    assert w4["mlp_down"].read_bytes < w8["mlp_down"].read_bytes
    assert w4["lm_head"] == w8["lm_head"], "the output layer stays int8"
    assert 2 * w4["attention"].read_bytes == w8["attention"].read_bytes
    assert w4["attention"].f32_ops == w8["attention"].f32_ops > 0


@pytest.mark.parametrize(
    ("quantization", "dtype"), [("int4", "auto"), ("auto", "auto"), ("none", "auto"), ("none", "float32")]
)
def test_the_bytes_of_the_embedded_model_are_those_of_its_weights(quantization, dtype):
    model = load_model(quantization=quantization, dtype=dtype)
    layout = model.weights["layer_0/attn_qkv"].layout
    parts = step_work(model.config, layout, "int8", DECODE)
    matrices = [weight for weight in model.weights.values() if weight.layout != "vector"]
    n_bytes = sum(weight.data.nbytes + (0 if weight.scales is None else weight.scales.nbytes) for weight in matrices)
    assert sum(parts[name].read_bytes for name in parts if name not in ("embed", "attention")) == n_bytes


def test_the_floor_of_a_part_is_the_longer_of_reading_and_computing_and_parts_add_up():
    limits = Limits(read_bytes_per_s=10.0, int8_ops_per_s=100.0, f32_ops_per_s=20.0)
    reading, computing, floating = Work(50, 100), Work(10, 300), Work(10, 100, 40)
    assert [work.floor_s(limits) for work in (reading, computing, floating)] == [5.0, 3.0, 3.0]
    assert [work.bound(limits) for work in (reading, computing, floating)] == ["read", "int8", "float32"]
    assert floor_s({"a": reading, "b": computing}, limits) == 8.0
    assert reading + floating == Work(60, 200, 40)


def test_of_two_measurements_the_faster_counts():
    assert Limits(1.0, 5.0, 3.0).best_of(Limits(2.0, 4.0, 3.0)) == Limits(2.0, 5.0, 3.0)
