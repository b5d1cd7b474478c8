"""The machine under a benchmark: what it is, whether others use it, and what it can do right now."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

QUIET_CORES = 0.1  # others may use this much of a core during a sample
_TICKS_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class CpuTime:
    """Core seconds since boot: busy in this machine, and stolen by the host from it; wall is the clock, in seconds."""

    busy_s: float
    stolen_s: float
    wall_s: float


def cpu_time() -> CpuTime:
    user, nice, system, _idle, _iowait, irq, soft_irq, stolen = (
        int(field) / _TICKS_S for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return CpuTime(user + nice + system + irq + soft_irq, stolen, time.perf_counter())


def process_cpu_s(pid: int) -> float:
    """User and system seconds of a process, all its threads, and the children that it waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / _TICKS_S


def foreign_cores(before: CpuTime, after: CpuTime, own_s: float) -> float:
    """Cores that others used between two moments, ours being own_s seconds of it."""
    return max(0.0, after.busy_s - before.busy_s - own_s) / max(after.wall_s - before.wall_s, 0.05)


def wait_until_quiet(limit_s: float = 180.0) -> None:
    """Return when others use less than a tenth of a core, or after limit_s: the sample's own record tells which."""
    end = time.perf_counter() + limit_s
    while time.perf_counter() < end:
        before, own = cpu_time(), process_cpu_s(os.getpid())
        time.sleep(0.3)
        if foreign_cores(before, cpu_time(), process_cpu_s(os.getpid()) - own) < QUIET_CORES:
            return
        time.sleep(1.0)


def anonymous_bytes(pid: int) -> int:
    """Memory of a process that no file backs; 0 when it has ended."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def probe_limits(threads: int) -> tuple[float, float]:
    """What the machine gives at this moment: (GB/s read from memory, int8 GOPS), from a process of its own."""
    code = (
        "from llm_decoder.backends import open_limits; "
        f"limits = open_limits({threads}, 'auto'); "
        "print(limits.read_bytes_per_s(5) / 1e9, limits.int8_ops_per_s(5) / 1e9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    read_gb_s, int8_gops = done.stdout.split()
    return float(read_gb_s), float(int8_gops)


def describe() -> dict[str, object]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    numbers = [line.split(":")[1].strip() for line in lines if line.startswith("model\t")]
    flags = next(line for line in lines if line.startswith("flags")).split()
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "cpu": f"{models[0]} (model {numbers[0]})",
        "n_cpus": len(models),
        "vector_flags": [flag for flag in flags if flag.startswith(("avx512", "avx_vnni", "amx"))],
        "memory_gib": round(memory_kib / 2**20, 1),
    }
