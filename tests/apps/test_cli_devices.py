"""`llm-decoder devices` on machines with and without GPUs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from cli_fakes import GPU, NO_GPU, Program

from llm_decoder import backends
from llm_decoder.backends import DeviceInfo
from llm_decoder.cli import _what_fits
from llm_decoder.cli._what_fits import what_fits


def show(cli: Program, monkeypatch: pytest.MonkeyPatch, gpu: DeviceInfo) -> str:
    monkeypatch.setattr(backends, "cuda_devices", lambda *_: iter([gpu]))
    return cli("devices").out


def test_a_gpu_is_told_with_its_driver_libraries_and_memory(cli: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    _, gpu = show(cli, monkeypatch, GPU).split("cuda: ")
    assert gpu.splitlines()[0] == "NVIDIA H200, compute capability 9.0"
    assert "580.65.06, runs CUDA up to 13.0 (this build: 13.0)" in gpu
    assert "/site/nvidia/cu13/lib/libcublasLt.so.13" in gpu
    assert "139.0 GiB free of 140.0 GiB" in gpu
    assert "threads" not in gpu


def test_a_library_that_is_missing_is_told_with_what_brings_it(cli: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    _, gpu = show(cli, monkeypatch, replace(GPU, cublaslt="")).split("cuBLASLt ")
    assert gpu.startswith("not found")
    assert "pip install 'llm_decoder[cuda]'" in gpu.splitlines()[0]


def test_why_there_is_none_is_told(cli: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cuda: NVIDIA GPU, not used: no driver is loaded" in show(cli, monkeypatch, NO_GPU)
    (found,) = json.loads(cli("devices", "--json").out)["devices"][1:]
    assert (found["name"], found["is_usable"], found["reason"]) == ("cuda", False, "no driver is loaded")
    assert "fits" not in found


def test_how_large_a_model_fits_is_told_by_the_usual_sizes(cli: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = show(cli, monkeypatch, replace(GPU, memory_bytes=79 << 30)).split("cuda: ")
    assert "32B in bfloat16, 70B in int8, 70B in int4, with a context of 8192 tokens" in gpu
    assert "with a context of 8192 tokens" in cpu
    found = json.loads(cli("devices", "--json").out)["devices"][1]["fits"]
    assert found == {"bfloat16": "32B", "int8": "70B", "int4": "70B", "context": 8192}


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_the_largest_fits_that_needs_no_more_than_is_free(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    need = dict(zip(_what_fits.SIZES, (1, 3, 8, 14, 32, 70), strict=True))
    monkeypatch.setattr(_what_fits, "_config", lambda size: need[size])
    share = {"bf16": 2, "w8": 1, "w4": 0.5, "gpu_bf16": 2, "gpu_w8": 1, "gpu_w4": 0.5}
    monkeypatch.setattr(_what_fits, "_needed_bytes", lambda config, layout, *, is_cpu: config * share[layout])
    assert what_fits(replace(GPU, name=name, memory_bytes=16)) == {"bfloat16": "8B", "int8": "14B", "int4": "32B"}
    assert what_fits(replace(GPU, name=name, memory_bytes=15)) == {"bfloat16": "3B", "int8": "14B", "int4": "14B"}
    assert what_fits(replace(GPU, name=name, memory_bytes=0)) == {"bfloat16": None, "int8": None, "int4": None}


def test_weights_and_pages_are_counted_by_their_bytes() -> None:
    """8B of Llama: 8,030,261,248 weights of two bytes, 1 GiB of pages for 8192 tokens, and what else a step wants."""
    config = _what_fits._config("8B")
    needed = _what_fits._needed_bytes(config, "gpu_bf16", is_cpu=False)
    assert needed - (2 * 8_030_261_248 + (1 << 30)) in range(1 << 30, 3 << 30)
    needed = _what_fits._needed_bytes(config, "bf16", is_cpu=True)
    assert needed - (2 * 8_030_261_248 + (1 << 30)) in range(1 << 20, 1 << 30)


def test_a_machine_with_little_memory_says_that_nothing_fits(cli: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no model of 1B, with a context" in show(cli, monkeypatch, replace(GPU, memory_bytes=1 << 28))
