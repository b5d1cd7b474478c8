"""Does it fit: needs X, has Y, try this, before anything large is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from models_factory import hf_config, make_checkpoint

from llm_decoder import fit
from llm_decoder.backends import KvCache
from llm_decoder.errors import NotEnoughMemoryError
from llm_decoder.fit import available_memory_bytes, check_fit, kv_bytes_per_token, memory_need, packed_bytes
from llm_decoder.loading import load_model
from llm_decoder.models import parse_config
from llm_decoder.quantize import pack_in_memory
from llm_decoder.safetensors_checkpoint import SafetensorsCheckpoint

GIB = 2**30
SEVEN_B = parse_config(
    hf_config(
        "llama",
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=131072,
    )
)


def test_the_bytes_foreseen_are_the_bytes_packed(tmp_path: Path) -> None:
    checkpoint = SafetensorsCheckpoint(make_checkpoint(tmp_path, "qwen2"))
    for layout in ("w4", "w8", "bf16", "f32"):
        packed = pack_in_memory(checkpoint, layout)
        n_bytes = sum(
            tensor.data.nbytes + (0 if tensor.scales is None else tensor.scales.nbytes) for tensor in packed.values()
        )
        assert packed_bytes(checkpoint.config, layout) == n_bytes


@pytest.mark.parametrize("head_dim", [16, 40, 64, 128])
@pytest.mark.parametrize(("name", "dtype"), [("float32", "f32"), ("bfloat16", "bf16"), ("int8", "s8")])
def test_kv_bytes_are_those_of_the_cache(head_dim: int, name: str, dtype: str) -> None:
    config = parse_config(hf_config("llama", head_dim=head_dim))
    cache = KvCache(n_pages=1, page_size=16, layers=2, n_kv_heads=2, head_dim=head_dim, dtype=dtype)
    assert kv_bytes_per_token(config, name) * 16 == cache.page_bytes()[0]


def test_a_model_that_does_not_fit_says_needs_has_and_try() -> None:
    with pytest.raises(NotEnoughMemoryError, match=r"needs [\d.]+ GiB .* machine has 16\.0 GiB free; try .*int8"):
        check_fit(SEVEN_B, "f32", name="big", is_mapped=False, available_bytes=16 * GIB)
    check_fit(SEVEN_B, "w8", name="big", is_mapped=True, available_bytes=16 * GIB)


def test_int8_weights_that_do_not_fit_are_told_of_int4() -> None:
    with pytest.raises(NotEnoughMemoryError, match=r'quantization="int4"'):
        check_fit(SEVEN_B, "w8", name="big", is_mapped=True, available_bytes=7 * GIB)
    check_fit(SEVEN_B, "w4", name="big", is_mapped=True, available_bytes=7 * GIB)


def test_a_pool_that_does_not_fit_is_given_a_size_that_would() -> None:
    with pytest.raises(NotEnoughMemoryError, match=r"kv_cache_bytes=(\d+)") as caught:
        check_fit(SEVEN_B, "w8", name="big", is_mapped=True, kv_cache_bytes=64 * GIB, available_bytes=16 * GIB)
    advised = int(str(caught.value).partition("kv_cache_bytes=")[2].split()[0])
    check_fit(SEVEN_B, "w8", name="big", is_mapped=True, kv_cache_bytes=advised, available_bytes=16 * GIB)


def test_mapped_weights_are_counted_apart_from_anonymous_memory() -> None:
    mapped = memory_need(SEVEN_B, "w8", is_mapped=True, kv_cache_bytes=GIB)
    packed = memory_need(SEVEN_B, "w8", is_mapped=False, kv_cache_bytes=GIB)
    assert mapped.mapped_bytes == packed_bytes(SEVEN_B, "w8")
    assert mapped.anonymous_bytes < 2 * GIB
    assert packed.mapped_bytes == 0
    assert mapped.total_bytes == packed.total_bytes


def test_loading_checks_before_it_packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    monkeypatch.setattr(fit, "available_memory_bytes", lambda: 10 * 2**20)
    seen: list[str] = []
    with pytest.raises(NotEnoughMemoryError, match=str(folder)):
        load_model(folder, progress=lambda done, total, what: seen.append(what))
    assert seen == []


def test_the_control_group_s_limit_counts_with_file_pages_it_can_give_back(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 100000\ninactive_file 200000\n")
    assert fit._group_available(tmp_path) == 500000
    (tmp_path / "memory.max").write_text("max\n")
    assert fit._group_available(tmp_path) is None
    assert fit._group_available(tmp_path / "absent") is None


def test_this_machine_has_some_memory() -> None:
    assert 2**20 < available_memory_bytes() < 2**50
