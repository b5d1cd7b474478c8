"""Time on a CUDA device, the device's own limits, and its state. The only file of the GPU benchmarks that knows torch's
way to a clock.

A sample is one call, or N_INNER calls recorded as a graph, each after the L2 cache was filled with something else: a
buffer of FILL_CACHES times its size is read (written it would leave lines that the call's own time pays for). Of a
graph's time that of a graph with the fillings alone is taken off.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

N_INNER = 4
N_WARM = 3
WARM_S = 0.1  # of replays before the samples: an idle device has lowered its clocks
# Were lines replaced at random, of twice the cache a fifth would still be there when the filling comes round, unless a
# call was between, and that call would pay for it; of four times a fiftieth.
FILL_CACHES = 4
N_SAMPLES = 30
COPY_BYTES = 2 << 30
PEAK_SIZE = 8192
SMI_FIELDS = ("name", "driver_version", "clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "clocks.max.sm")

Call = Callable[[], object]


class NoDevice(Exception):
    """What this machine lacks to measure."""


def load_torch() -> Any:
    """Raises NoDevice."""
    try:
        import torch
    except ImportError as error:
        raise NoDevice(f"torch is not there, whose memory and clocks are used: {error}") from error
    if not torch.cuda.is_available():
        raise NoDevice("torch knows no NVIDIA GPU here")
    return torch


class GpuClock:
    def __init__(self, torch: Any, n_samples: int = N_SAMPLES) -> None:
        self._torch, self._n_samples = torch, n_samples
        properties = torch.cuda.get_device_properties(0)
        self.l2_bytes = int(properties.L2_cache_size)
        self._filling = torch.zeros((FILL_CACHES * self.l2_bytes // 4096, 1024), dtype=torch.float32, device="cuda")
        self._sums = torch.empty(self._filling.shape[0], dtype=torch.float32, device="cuda")
        self._blank: Any = None

    def fill_cache(self) -> None:
        self._torch.sum(self._filling, dim=1, out=self._sums)

    def graph_us(self, call: Call) -> dict[str, float]:
        """Of a call that a graph can record: no allocation outside of torch, no wait."""
        if self._blank is None:
            self._blank = self._record(self.fill_cache)
        graph = self._record(lambda: (self.fill_cache(), call()))
        filled = self._samples_us(graph.replay)
        blank = statistics.median(self._samples_us(self._blank.replay))
        return summary([(sample - blank) / N_INNER for sample in filled])

    def host_us(self, call: Call) -> dict[str, float]:
        """By the host's clock, of a call that waits until it is done."""
        for _ in range(N_WARM):
            call()
        samples = []
        for _ in range(self._n_samples):
            self.fill_cache()
            self._torch.cuda.synchronize()
            begin = time.perf_counter()
            call()
            self._torch.cuda.synchronize()
            samples.append((time.perf_counter() - begin) * 1e6)
        return summary(samples)

    def _record(self, call: Call) -> Any:
        torch = self._torch
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(N_WARM):
                call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(N_INNER):
                call()
        end = time.perf_counter() + WARM_S
        while time.perf_counter() < end:
            graph.replay()
            torch.cuda.synchronize()
        return graph

    def _samples_us(self, call: Call) -> list[float]:
        torch = self._torch
        pairs = []
        for _ in range(self._n_samples):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            call()
            end.record()
            pairs.append((begin, end))
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) * 1e3 for begin, end in pairs]

    def is_alive(self) -> bool:
        try:
            self._torch.cuda.synchronize()
        except RuntimeError:
            return False
        return True

    def limits(self) -> dict[str, float]:
        """copy_gb_per_s: read and written together. bf16_tflops: of a product of random numbers."""
        return {
            "copy_gb_per_s": 2 * COPY_BYTES / self._copy_us() / 1e3,
            "bf16_tflops": 2 * PEAK_SIZE**3 / self._product_us() / 1e6,
        }

    def read_gb_per_s(self) -> float:
        """Of a sum over memory that no cache holds."""
        source = self._torch.randn((COPY_BYTES >> 14, 4096), dtype=self._torch.float32, device="cuda")
        sums = self._torch.empty(source.shape[0], dtype=self._torch.float32, device="cuda")
        return COPY_BYTES / self.graph_us(lambda: self._torch.sum(source, dim=1, out=sums))["us"] / 1e3

    def _copy_us(self) -> float:
        source = self._torch.randn(COPY_BYTES // 4, dtype=self._torch.float32, device="cuda")
        to = self._torch.empty_like(source)
        return self.graph_us(lambda: to.copy_(source))["us"]

    def _product_us(self) -> float:
        torch = self._torch
        a, b = (torch.randn(PEAK_SIZE, PEAK_SIZE, dtype=torch.bfloat16, device="cuda") for _ in "ab")
        out = torch.empty_like(a)
        return self.graph_us(lambda: torch.mm(a, b, out=out))["us"]


def summary(samples_us: list[float]) -> dict[str, float]:
    """Median, and the tenth and ninetieth of a hundred."""
    tenths = statistics.quantiles(samples_us, n=10)
    return {"us": statistics.median(samples_us), "us_p10": tenths[0], "us_p90": tenths[-1], "n": len(samples_us)}


def device_state() -> dict[str, str]:
    """Clocks in MHz, and what else nvidia-smi tells, right now."""
    command = ["nvidia-smi", f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return {"nvidia-smi": "not on PATH"}
    if done.returncode != 0:
        return {"nvidia-smi": done.stdout.strip() or done.stderr.strip()}
    return dict(zip(SMI_FIELDS, (value.strip() for value in done.stdout.strip().split(",")), strict=False))
