"""The study's benchmark without a GPU: what is counted, what the module runs, what the tables say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import attention_methods
import numpy as np
import pytest
from attention_methods import FUSED, LABELS, Shape

BUILD = Path(__file__).parents[2] / "build"


@pytest.fixture(scope="module")
def study() -> Any:
    found, reason = attention_methods.load_study(BUILD)
    assert found is not None, reason
    return found


def test_every_method_has_a_name_in_the_tables(study: Any) -> None:
    assert list(LABELS) == attention_methods.methods_of(study)


def counted(study: Any, method: str, *shape: int) -> dict[str, int]:
    return attention_methods.count(study, method, Shape(*shape), 132)


def test_a_decode_reads_keys_and_values_once_a_query_head_or_once_a_kv_head(study: Any) -> None:
    once_a_kv_head = 2 * 32 * 4096 * 8 * 128 * 2
    for method, times in {"flash_attention_2": 4, "flash_decoding_pp": 1, FUSED: 1}.items():
        n_bytes = counted(study, method, 32, 1, 4096)["n_bytes"]
        assert 0 <= n_bytes - times * once_a_kv_head < 0.02 * once_a_kv_head, method


def test_a_tile_of_queries_reads_the_keys_that_its_last_query_sees(study: Any) -> None:
    n_keys = sum(range(16, 2048 + 1, 16))
    in_and_out = 2 * 2048 * 32 * 128 * 2
    assert counted(study, "flash_attention_2", 1, 2048, 2048)["n_bytes"] == n_keys * 32 * 128 * 2 * 2 + in_and_out


def test_on_hopper_a_prompt_reads_its_keys_for_twice_as_many_rows(study: Any) -> None:
    prompt, decode = Shape(1, 2048, 2048), Shape(8, 1, 4096)
    n_bytes = [attention_methods.count(study, FUSED, prompt, 132, is_hopper)["n_bytes"] for is_hopper in (False, True)]
    in_and_out, last_tile = 2 * 2048 * 32 * 128 * 2, 2048 * 8 * 128 * 2 * 2
    assert abs((n_bytes[0] - in_and_out) - 2 * (n_bytes[1] - in_and_out)) <= last_tile
    assert counted(study, FUSED, 8, 1, 4096) == attention_methods.count(study, FUSED, decode, 132, True)


def test_few_queries_are_split_and_many_are_not(study: Any) -> None:
    for method in ("flash_decoding", "flash_decoding_pp", "paged_attention", FUSED):
        assert counted(study, method, 1, 1, 16384)["n_splits"] > 4
    assert counted(study, "flash_decoding", 32, 1, 4096)["n_splits"] == 1
    assert counted(study, FUSED, 1, 2048, 2048)["n_splits"] == 1
    assert counted(study, "flash_attention_2", 1, 1, 16384)["n_splits"] == 1


def test_kernels_and_operations_are_counted(study: Any) -> None:
    n_kernels = {m: counted(study, m, 1, 1, 4096)["n_launches"] for m in attention_methods.methods_of(study)}
    assert n_kernels == {
        "naive": 3,
        "flash_attention_1": 1,
        "flash_attention_2": 1,
        "flash_decoding": 2,
        "flash_decoding_pp": 3,
        "paged_attention": 2,
        FUSED: 2,
    }
    assert Shape(2, 1, 10).flops == 4 * 2 * 10 * 32 * 128
    assert Shape(1, 3, 5).flops == 4 * (3 + 4 + 5) * 32 * 128


def test_a_method_that_is_none_is_refused_with_all_names(study: Any) -> None:
    with pytest.raises(ValueError, match=r"need one of naive, .*; got flash"):
        study.describe("flash", (1, 1, 1, 1, 1, 8), 1)


def to_bf16(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def from_bf16(codes: np.ndarray) -> np.ndarray:
    return (codes.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


@pytest.mark.parametrize("method", [name for name in LABELS if name != FUSED])
def test_the_module_runs_each_method_on_addresses(study: Any, method: str) -> None:
    if study.__name__ != "_study_host":
        pytest.skip("addresses are of host memory")
    n_batch, n_queries, n_keys, n_heads, n_kv_heads, head_dim, page_size = 2, 1, 64, 4, 2, 16, 16
    shape = (n_batch, n_queries, n_keys, n_heads, n_kv_heads, head_dim)
    random = np.random.default_rng(0)
    q = to_bf16(random.standard_normal((n_batch, n_heads, head_dim)))
    k, v = (to_bf16(random.standard_normal((n_batch, n_keys, n_kv_heads, head_dim))) for _ in "kv")
    order = random.permutation(n_batch * n_keys // page_size)
    table = order.astype(np.int32).reshape(n_batch, -1)
    pages = [np.empty((len(order), page_size, n_kv_heads, head_dim), np.uint16) for _ in "kv"]
    for cache, rows in zip(pages, (k, v), strict=True):
        cache[order] = rows.reshape(cache.shape)
    counts = study.describe(method, shape, 8)
    n_states = counts["n_states"]
    scratch = [np.empty(n, np.float32) for n in (counts["n_scores"], n_states * head_dim, n_states, n_states)]
    out, flags = np.zeros_like(q), np.zeros(counts["n_wrong_flags"], np.int32)
    cache = pages if method == "paged_attention" else (k, v)
    arrays = tuple(array.ctypes.data for array in (q, *cache, out, table, *scratch, flags))
    study.run(method, shape, counts["n_splits"], page_size, arrays, 0.0, 0, 0)

    keys, values = (np.repeat(from_bf16(x), 2, axis=2) for x in (k, v))
    logits = np.einsum("bhd,bkhd->bhk", from_bf16(q), keys) / np.sqrt(head_dim)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    want = np.einsum("bhk,bkhd->bhd", p / p.sum(-1, keepdims=True), values)
    np.testing.assert_allclose(from_bf16(out), want, rtol=1e-2, atol=1e-2)


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["attention_methods.py", *map(str, arguments)])
    monkeypatch.setitem(sys.modules, "torch", None)
    return attention_methods.main()


def test_without_a_gpu_it_counts_and_says_why_there_are_no_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "methods.json"
    assert run_main(monkeypatch, "--build", BUILD, "--out", out) == 0
    said = capsys.readouterr()
    assert said.err.startswith("attention_methods: no times, for ")
    assert "What follows is counted." in said.err
    assert "| decode-b32-16384 | FlashDecoding++ | - | " in said.out
    rows = json.loads(out.read_text())["rows"]
    assert rows["decode-b1-1024"]["times"] == {}
    assert rows["decode-b1-1024"]["counts"]["naive"]["n_launches"] == 3
    assert run_main(monkeypatch, "--out", out, "--measured", "--plot", tmp_path / "methods.png") == 0
    assert capsys.readouterr().out == said.out
    assert (tmp_path / "methods.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_of_the_page_is_the_one_that_its_command_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "--build", BUILD, "--markdown") == 0
    page = (Path(__file__).parents[2] / "docs/attention.md").read_text()
    assert capsys.readouterr().out in page
    assert "python benchmarks/attention_methods.py --markdown" in page


def test_a_build_without_the_study_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("_study_cuda", "_study_host"):
        monkeypatch.setitem(sys.modules, name, None)
    assert run_main(monkeypatch, "--build", tmp_path) == attention_methods.CANNOT
    assert f"cmake --build {tmp_path} --target _study_host" in capsys.readouterr().err


def test_measured_rows_have_times_and_shares_and_failures_are_told() -> None:
    counts = {"naive": {"n_bytes": 10_000_000, "n_launches": 3, "n_splits": 1}}
    rows = {
        "decode-b1-1024": {
            "counts": counts,
            "times": {"naive": {"us": 10.0}},
            "limits": {"copy_gb_per_s": 4000.0},
        },
        "decode-b8-1024": {"failed": "RuntimeError: no"},
    }
    lines = attention_methods.times_table(rows).splitlines()
    assert lines[2] == "| decode-b1-1024 | naive | 10.0 | 10.0 | 1000 | 25% | 3 | 1 |"
    assert lines[3].startswith("| decode-b8-1024 | RuntimeError: no | - |")
