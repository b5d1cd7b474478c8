"""How many threads compute, on machines made of files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llm_decoder import backends
from llm_decoder.cpu_topology import cpu_name, last_cache_bytes, usable_cores
from llm_decoder.errors import ConfigError


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def hyperthreads(n_cores: int) -> dict[str, str]:
    """The files of n_cores cores with two threads each: core i has the CPUs i and i + n_cores, as Linux counts them."""
    return {
        f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": f"{cpu % n_cores},{cpu % n_cores + n_cores}"
        for cpu in range(2 * n_cores)
    }


@pytest.fixture
def may_run_on(monkeypatch):
    return lambda cpus: monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(cpus), raising=False)


def test_hyperthreads_of_a_core_count_once(tmp_path, may_run_on):
    root = write(tmp_path, hyperthreads(4))
    may_run_on(range(8))
    assert usable_cores(root) == 4


def test_only_cores_that_the_process_may_use_count(tmp_path, may_run_on):
    root = write(tmp_path, hyperthreads(4))
    may_run_on({0, 4})
    assert usable_cores(root) == 1
    may_run_on({0, 1, 6})
    assert usable_cores(root) == 3


def test_a_machine_that_tells_no_topology_has_a_core_a_cpu(tmp_path, may_run_on):
    may_run_on(range(3))
    assert usable_cores(tmp_path) == 3


@pytest.mark.parametrize(
    ("quota", "n_cores"), [("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("max 100000", 4)]
)
def test_the_quota_of_the_control_group_is_kept_to(tmp_path, may_run_on, quota, n_cores):
    may_run_on(range(8))
    assert usable_cores(write(tmp_path, hyperthreads(4) | {"sys/fs/cgroup/cpu.max": quota})) == n_cores


def test_the_tightest_quota_of_the_groups_around_the_process_counts(tmp_path, may_run_on):
    may_run_on(range(16))
    groups = {
        "proc/self/cgroup": "0::/user.slice/app.scope",
        "sys/fs/cgroup/cpu.max": "max 100000",
        "sys/fs/cgroup/user.slice/cpu.max": "300000 100000",
        "sys/fs/cgroup/user.slice/app.scope/cpu.max": "500000 100000",
    }
    assert usable_cores(write(tmp_path, hyperthreads(8) | groups)) == 3


def test_the_quota_of_version_1_is_kept_to(tmp_path, may_run_on):
    may_run_on(range(8))
    groups = {
        "proc/self/cgroup": "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc",
        "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us": "200000",
        "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us": "100000",
    }
    assert usable_cores(write(tmp_path, hyperthreads(4) | groups)) == 2
    groups["sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us"] = "-1"
    assert usable_cores(write(tmp_path, groups)) == 4


def test_the_last_cache_is_the_largest(tmp_path):
    sizes = {"index0": "48K", "index1": "32K", "index2": "2048K", "index3": "260M"}
    assert last_cache_bytes(tmp_path) == 0
    files = {f"sys/devices/system/cpu/cpu0/cache/{name}/size": size for name, size in sizes.items()}
    assert last_cache_bytes(write(tmp_path, files)) == 260 << 20


def test_the_cpu_has_a_name(tmp_path):
    assert cpu_name(tmp_path) == "CPU"
    assert cpu_name(write(tmp_path, {"proc/cpuinfo": "processor : 0\nmodel name\t: Zen (R) 9\n"})) == "Zen (R) 9"


def test_threads_are_those_named_then_those_of_the_environment_then_the_cores(monkeypatch):
    monkeypatch.setattr(backends, "usable_cores", lambda: 6)
    monkeypatch.delenv("LLM_DECODER_THREADS", raising=False)
    assert backends.choose_threads() == 6
    monkeypatch.setenv("LLM_DECODER_THREADS", "3")
    assert backends.choose_threads() == 3
    assert backends.devices()[0].threads == 3
    assert backends.devices()[0].cores == 6
    assert backends.choose_threads(2) == 2


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "1025"])
def test_a_variable_that_is_no_number_of_threads_is_refused_by_name(monkeypatch, value):
    monkeypatch.setenv("LLM_DECODER_THREADS", value)
    with pytest.raises(ConfigError, match=r"^\[LLM_DECODER_THREADS\] must be an integer from 1 to 1024, got"):
        backends.BackendOptions()
    assert backends.BackendOptions(threads=1).threads == 1
