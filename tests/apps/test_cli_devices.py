"""`llm-decoder devices` on machines with and without GPUs."""

from __future__ import annotations

import json

import pytest
from cli_fakes import Program

from llm_decoder import backends
from llm_decoder.backends import DeviceInfo

GPU = DeviceInfo("cuda", "NVIDIA H200, compute capability 9.0", threads=0, cores=0, memory_bytes=139 << 30)
NONE = DeviceInfo("cuda", "NVIDIA GPU", threads=0, cores=0, memory_bytes=0, reason="no driver is loaded")


def test_a_gpu_is_told_with_what_it_computes_and_its_memory(cli: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_cuda_devices", lambda: [GPU])
    _, gpu = cli("devices").out.split("cuda: ")
    assert gpu.splitlines()[0] == "NVIDIA H200, compute capability 9.0"
    assert "llm_decoder.ops" in gpu
    assert "139.0 GiB free" in gpu
    assert "threads" not in gpu


def test_why_there_is_none_is_told(cli: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_cuda_devices", lambda: [NONE])
    assert "cuda: NVIDIA GPU, not used: no driver is loaded" in cli("devices").out
    (found,) = json.loads(cli("devices", "--json").out)["devices"][1:]
    assert (found["name"], found["is_usable"], found["reason"]) == ("cuda", False, "no driver is loaded")
