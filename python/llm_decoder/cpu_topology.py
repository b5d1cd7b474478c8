"""What CPU this is: its name, the physical cores that this process may use, its last cache. Read from the system's own
files; `root` is where they begin, for tests."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cpu_name", "last_cache_bytes", "usable_cores"]

_ROOT = Path("/")
_NO_QUOTA = 1 << 16
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def usable_cores(root: Path = _ROOT) -> int:
    """Physical cores, not hyperthreads, that this process may run on; no more than the CPU quota of its control group,
    rounded to whole CPUs. At least 1."""
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1
    folder = root / "sys/devices/system/cpu"
    cores = {_read(folder / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus}
    return max(1, min(len(cores), _cpu_quota(root)))


def _cpu_quota(root: Path) -> int:
    """Whole CPUs of the control group of this process and of those around it (version 2 and 1), the tightest of all."""
    quotas = [_NO_QUOTA]
    for line in ["0::/", *_read(root / "proc/self/cgroup").splitlines()]:
        _, _, rest = line.partition(":")
        controllers, _, place = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = top / place.strip("/")
        # In a container `place` may be what the host calls it, which is not here; the top is the container's own.
        for folder in [group, *(parent for parent in group.parents if parent.is_relative_to(top))]:
            quotas += _quota_of(folder)
    return min(quotas)


def _quota_of(folder: Path) -> list[int]:
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    if not quota:
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    if quota.isdigit() and period.isdigit() and int(period) > 0:
        return [max(1, int(int(quota) / int(period) + 0.5))]
    return []


def last_cache_bytes(root: Path = _ROOT) -> int:
    """Size of the largest cache of the first CPU; 0 when the system does not tell."""
    sizes = [_read(file) for file in (root / "sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max(
        (int(text[:-1]) * _UNITS[text[-1]] for text in sizes if text[:-1].isdigit() and text[-1] in _UNITS), default=0
    )


def cpu_name(root: Path = _ROOT) -> str:
    for line in _read(root / "proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "CPU"


def _read(path: Path) -> str:
    """The text of a system file, "" when there is none."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
