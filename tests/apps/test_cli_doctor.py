"""`llm-decoder doctor` on machines where something is wrong."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
from dataclasses import replace
from pathlib import Path

import cli_fakes
import pytest
from cli_fakes import NO_GPU, Program
from models_factory import make_checkpoint

from llm_decoder import backends
from llm_decoder.cli import _checkup
from llm_decoder.weight_cache import SUFFIX

GPU = replace(cli_fakes.GPU, memory_bytes=9 << 30, total_bytes=10 << 30, cublaslt="/a/libcublasLt.so.13")
NAMES = ["python", "packages", "core", "settings", "cpu", "memory", "gpu", "cache", "weights", "port", "model"]


@pytest.fixture(autouse=True)
def _own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))


def look(cli: Program, *arguments: str, more: tuple[str, ...] = ()) -> tuple[int, dict[str, tuple[str, str]]]:
    """(exit code, what was found: name -> state and text); more: checks behind the GPUs'."""
    names = [*NAMES[:7], *more, *NAMES[7:]]
    ran = cli("doctor", "--quick", "--json", *arguments)
    told = json.loads(ran.out)
    assert [check["name"] for check in told["checks"]] == names
    assert sum(told["counts"].values()) == len(names)
    return ran.code, {check["name"]: (check["state"], check["text"]) for check in told["checks"]}


def packed(folder: Path, name: str = "a") -> Path:
    """A well-formed entry of the cache, of two kilobytes of weights."""
    from llm_decoder import weight_cache as cache

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    header = json.dumps({"model": "m", "layout": "w8"}).encode()
    data = os.urandom(2048)
    path = folder / f"{name}{SUFFIX}"
    begin = cache._data_begin(cache._PROLOGUE.size + len(header))
    path.write_bytes(b"\0" * begin + data)
    digest = cache._hash_from(str(path), begin)
    prologue = cache._PROLOGUE.pack(cache._MAGIC, cache.FORMAT_VERSION, 0, len(header), len(data), digest)
    with path.open("r+b") as file:
        file.write(prologue + header)
    return path


def test_a_line_a_check_and_the_embedded_models_golden_text(cli: Program) -> None:
    ran = cli("doctor")
    assert ran.code == 0, ran.out
    lines = ran.out.splitlines()
    assert lines[0].startswith("llm-decoder ")
    assert [line.split()[1] for line in lines[1:-1]] == NAMES
    assert "storyteller tells word for word" in lines[-2]
    assert lines[-1].endswith(" 0 failed")


def test_a_model_that_tells_something_else_fails(cli: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"prompt": "Once upon a time", "max_tokens": 3, "text": ", there was no girl"}
    monkeypatch.setattr(_checkup, "_golden", lambda folder: wrong)
    ran = cli("doctor")
    assert ran.code == 1
    (line,) = [line for line in ran.out.splitlines() if line.startswith("fail")]
    assert line.split()[1] == "model"
    assert "LLM_DECODER_CPU_ISA=generic" in line


def test_weights_whose_hash_is_wrong_fail_by_name(cli: Program, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    good, bad = packed(folder, "good"), packed(folder, "bad")
    raw = bytearray(bad.read_bytes())
    raw[-1] ^= 1
    bad.write_bytes(raw)
    ran = cli("doctor", "--json", "--cache-dir", str(folder))
    checks = {check["name"]: check for check in json.loads(ran.out)["checks"]}
    assert (ran.code, checks["weights"]["state"]) == (1, "fail")
    assert bad.name in checks["weights"]["text"]
    assert good.name not in checks["weights"]["text"]
    bad.unlink()
    code, found = look(cli, "--cache-dir", str(folder))
    assert (code, found["weights"][0]) == (0, "ok")


def test_a_cache_that_is_open_to_others_or_cannot_be_written_is_told(cli: Program, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    folder.mkdir()
    folder.chmod(0o755)
    assert look(cli, "--cache-dir", str(folder))[1]["cache"][0] == "warn"
    folder.chmod(0o700)
    assert look(cli, "--cache-dir", str(folder))[1]["cache"][0] == "ok"
    (tmp_path / "file").write_text("")
    code, found = look(cli, "--cache-dir", str(tmp_path / "file"))
    assert (code, found["cache"][0]) == (1, "fail")
    if os.getuid():  # root may write everywhere
        folder.chmod(0o500)
        assert look(cli, "--cache-dir", str(folder))[1]["cache"][0] == "fail"


def test_looking_changes_nothing(cli: Program, tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    assert look(cli, "--cache-dir", str(folder))[1]["cache"] == ("ok", f"{folder} is not there yet and can be made")
    assert not folder.parent.exists()
    open_folder = tmp_path / "open"
    open_folder.mkdir()
    open_folder.chmod(0o755)
    look(cli, "--cache-dir", str(open_folder))
    assert stat.S_IMODE(open_folder.stat().st_mode) == 0o755


def test_a_port_that_is_taken_is_told(cli: Program) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        code, found = look(cli, "--port", str(port))
    assert (code, found["port"][0]) == (0, "warn")
    assert str(port) in found["port"][1]
    assert look(cli, "--port", str(port))[1]["port"] == ("ok", f"{port} is free")


def test_settings_that_cannot_be_read_fail(cli: Program, tmp_path: Path) -> None:
    (tmp_path / "runtime_config.yaml").write_text("threads: [")
    code, found = look(cli, "--config", str(tmp_path))
    assert (code, found["settings"][0]) == (1, "fail")
    assert "runtime_config.yaml" in found["settings"][1]


def test_forced_kernels_and_too_many_threads_are_told(cli: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DECODER_CPU_ISA", "generic")
    assert look(cli)[1]["cpu"][0] == "warn"
    monkeypatch.setenv("LLM_DECODER_CPU_ISA", "nonsense")
    code, found = look(cli)
    assert (code, found["cpu"][0]) == (1, "fail")
    monkeypatch.delenv("LLM_DECODER_CPU_ISA")
    monkeypatch.setenv("LLM_DECODER_THREADS", "1000")
    assert "more threads than cores" in look(cli)[1]["cpu"][1]


def test_a_missing_package_fails_by_name(cli: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_checkup, "_NEEDED", (*_checkup._NEEDED, "a-package-that-nobody-has"))
    code, found = look(cli)
    assert (code, found["packages"][0]) == (1, "fail")
    assert found["packages"][1].startswith("a-package-that-nobody-has missing")


def test_why_there_is_no_gpu_is_told_and_is_no_failure(cli: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "cuda_devices", lambda *_: iter([NO_GPU]))
    assert look(cli)[1]["gpu"] == ("ok", "NVIDIA GPU, not used: no driver is loaded")


def test_a_gpu_that_is_wanted_by_name_and_not_there_is_a_failure(cli: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "cuda_devices", lambda *_: iter([NO_GPU]))
    code, found = look(cli, "--device", "cuda")
    assert (code, found["gpu"][0]) == (1, "fail")
    assert "[device] cuda cannot be used: no driver is loaded" in found["gpu"][1]
    assert look(cli, "--device", "gpu")[1]["gpu"] == (
        "fail",
        "[device] must be auto, cpu, cuda, or cuda:1 and so on, got 'gpu'",
    )


def test_a_gpu_is_told_with_driver_and_memory_and_a_library_that_is_missing_warned_of(
    cli: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "cuda_devices", lambda *_: iter([GPU]))
    state, told = look(cli)[1]["gpu"]
    assert state == "ok"
    for part in (
        GPU.description,
        "9.0 GiB free of 10.0 GiB",
        "driver 580.65.06",
        "/a/libcublasLt.so.13",
        "8192 tokens",
    ):
        assert part in told
    monkeypatch.setattr(backends, "cuda_devices", lambda *_: iter([replace(GPU, cublaslt="")]))
    assert look(cli)[1]["gpu"][0] == "warn"
    monkeypatch.setenv("LLM_DECODER_GEMM", "ours")
    assert look(cli)[1]["gpu"][0] == "ok"


def fit_of(cli: Program, *arguments: str) -> tuple[int, str, str]:
    """(exit code, state, text)"""
    code, found = look(cli, *arguments, more=("fit",))
    return code, *found["fit"]


def test_whether_a_model_fits_is_told_with_what_it_needs_or_by_how_many_bytes_not(
    cli: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = str(make_checkpoint(tmp_path / "model", "llama", seed=0))
    monkeypatch.setattr(backends, "cuda_devices", lambda *_: iter([GPU]))
    code, state, told = fit_of(cli, "--model", model)
    assert (code, state) == (0, "ok")
    assert f"{model} fits cuda: at least" in told
    assert "in reserve; 9.0 GiB are free" in told
    for quantization in ("int8", "int4", "fp8"):
        assert f"{model} fits cuda" in fit_of(cli, "--model", model, "--quantization", quantization)[2]
    assert fit_of(cli, "--model", model, "--device", "cpu")[2].startswith(f"{model} fits the CPU: at least")

    monkeypatch.setattr(backends, "cuda_devices", lambda *_: iter([replace(GPU, memory_bytes=1 << 30)]))
    code, state, told = fit_of(cli, "--model", model, "--device", "cuda")
    assert (code, state) == (1, "fail")
    assert re.search(r"1\.0 GiB are free, \d+ bytes too few; try", told)
    assert "[quantization] need" in fit_of(cli, "--model", model, "--quantization", "int3")[2]
    _, state, told = fit_of(cli, "--model", model)
    assert state == "ok"
    assert "bytes too few" in told
    assert f"{model} fits the CPU" in told


def test_a_model_that_is_not_there_is_a_failure_and_nothing_is_fetched(cli: Program) -> None:
    code, state, told = fit_of(cli, "--model", "somebody/some-model")
    assert (code, state) == (1, "fail")
    assert "need a folder, or a hub model that was fetched before" in told


def test_a_check_that_raises_is_a_failure_and_the_others_go_on(cli: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> tuple[str, str]:
        raise RuntimeError("a line\nand another")

    monkeypatch.setattr(_checkup, "_memory", broken)
    code, found = look(cli)
    assert (code, found["memory"]) == (1, ("fail", "a line and another"))


def test_no_secret_and_no_users_name_is_printed(cli: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / "home" / "alice"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME")
    for name in ("LLM_DECODER_API_KEY", "LLM_DECODER_SYSTEM", "HF_TOKEN"):
        monkeypatch.setenv(name, "a-secret-text")
    packed(home / ".cache" / "llm_decoder")
    ran = cli("doctor", "--quick")
    assert ran.code == 0, ran.out
    assert "LLM_DECODER_API_KEY" in ran.out
    assert "~/.cache/llm_decoder" in ran.out
    for secret in ("a-secret-text", "alice", socket.gethostname()):
        assert secret not in ran.out + ran.err
