"""The GPU benchmark without a GPU: who is compared with whom, what is told of the absent, what the tables and bars say.
Its kernels and peers run on a machine with a GPU alone."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu_clock
import gpu_kernels
import gpu_rows
import pytest
from gpu_rows import Work


class Cuda:
    @staticmethod
    def synchronize() -> None:
        """Nothing is queued."""


class FakeTorch:
    """As far as contestants without a result need it."""

    cuda = Cuda


class FakeClock:
    def graph_us(self, call: Any) -> dict[str, float]:
        call()
        return {"us": 100.0}

    host_us = graph_us


def time_all(contestants: dict[str, Any], **work: Any) -> Any:
    return gpu_kernels.time_all(FakeTorch, Work(contestants, **work), FakeClock())


def raising(error: Exception) -> Any:
    def make() -> Any:
        raise error

    return make


def test_every_contestant_is_timed_and_its_speed_told() -> None:
    times, absent, differences = time_all({"peer": lambda: lambda: None}, n_bytes=200_000_000, flops=10**9)
    assert times == {"peer": {"us": 100.0, "gb_per_s": 2000.0, "tflops": 10.0}}
    assert (absent, differences) == ({}, {})


def test_a_contestant_may_move_other_bytes_than_the_rest() -> None:
    makers = {"peer": lambda: lambda: None, "ours int8": lambda: lambda: None}
    times, *_ = time_all(makers, n_bytes=200_000_000, own_bytes={"ours int8": 100_000_000})
    assert [times[name]["gb_per_s"] for name in makers] == [2000.0, 1000.0]


def test_a_peer_that_is_not_there_or_refuses_is_absent_with_the_reason() -> None:
    contestants = {
        "triton": raising(ModuleNotFoundError("No module named 'triton'")),
        "cudnn": lambda: raising(RuntimeError("no kernel\nand a long story")),
        "ours": lambda: lambda: None,
    }
    times, absent, _ = time_all(contestants)
    assert list(times) == ["ours"]
    assert absent == {
        "triton": "ModuleNotFoundError: No module named 'triton'",
        "cudnn": "RuntimeError: no kernel",
    }


def test_what_goes_wrong_with_ours_fails_the_row() -> None:
    with pytest.raises(RuntimeError, match="launch failed"):
        time_all({"ours fp8": raising(RuntimeError("launch failed"))})


def test_results_of_ours_are_held_against_the_first_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Result(float):
        def float(self) -> Result:
            return self

        def clone(self) -> Result:
            return self

    monkeypatch.setattr(gpu_kernels, "difference", lambda _, result, reference: abs(result - reference) / reference)
    peers = {"first": lambda: lambda: Result(2.0), "second": lambda: lambda: Result(2.5)}
    times, absent, differences = time_all(peers | {"ours": lambda: lambda: Result(2.02)})
    assert list(times) == ["first", "ours"]
    assert absent == {"second": "RuntimeError: second lies 0.25 from the first peer, 0.02 is allowed"}
    assert differences == {"ours": pytest.approx(0.01)}
    with pytest.raises(RuntimeError, match=r"ours lies 0.5 from the first peer, 0.02 is allowed"):
        time_all(peers | {"ours": lambda: lambda: Result(3.0)})


def test_a_row_of_ours_alone_has_nothing_to_be_held_against() -> None:
    assert time_all({"ours bfloat16": lambda: lambda: None, "ours fp8": lambda: lambda: None})[2] == {}


def row(**times: dict[str, float]) -> dict[str, Any]:
    named = {name.replace("_", " "): time for name, time in times.items()}
    return {"times": named, "absent": {}, "limits": {"copy_gb_per_s": 4000.0, "bf16_tflops": 800.0}}


def test_the_table_has_shares_of_the_copy_and_ratios_to_ours() -> None:
    rows = {
        "decode-b32-4096": row(
            torch_sdpa_flash={"us": 200.0, "gb_per_s": 2500.0}, ours={"us": 125.0, "gb_per_s": 4000.0, "tflops": 1.5}
        ),
        "broken": {"failed": "RuntimeError: no"},
    }
    rows["decode-b32-4096"]["absent"] = {"triton paged": "no such module"}
    lines = gpu_kernels.markdown({"rows": rows}).splitlines()
    assert lines[2] == "| decode-b32-4096 | torch sdpa flash | 200 | 2500 | 62% | - | 1.60 |"
    assert lines[3] == "| decode-b32-4096 | ours | 125 | 4000 | 100% | 1.50 | 1.00 |"
    assert "- decode-b32-4096, triton paged: no such module" in lines
    assert "- broken failed: RuntimeError: no" in lines


def test_bars_are_told_kept_or_missed() -> None:
    rows = {
        "decode-b32-4096": row(
            torch_flex={"us": 90.0}, triton_paged={"us": 140.0}, ours={"us": 100.0, "gb_per_s": 3640.0}
        ),
        "decode-b1-1024": row(ours={"us": 9.9}),
        "prefill-b1-8192": row(ours={"us": 1.0, "tflops": 299.0}),
        "decode-kv-b32-1024": row(ours_bfloat16={"us": 1.0}, ours_fp8={"us": 2.0}, ours_int8={"us": 2.0}),
        "decode-kv-b32-2048": row(ours_bfloat16={"us": 3.0}, ours_fp8={"us": 2.0}, ours_int8={"us": 4.0}),
        "decode-kv-b32-4096": {"failed": "no"},
        "prefill-b4-2048": row(ours={"us": 1.0, "tflops": 1.0}),
    }
    assert gpu_kernels.bars(rows) == [
        "- decode-b32-4096: 91% of the copy bandwidth, 90% promised: kept",
        "- decode-b32-4096: 0.90 times as fast as torch flex: MISSED",
        "- decode-b1-1024: 9.9 us, less than 10 promised: kept",
        "- prefill-b1-8192: mma_sync 299 TFLOP/s, 300 promised: MISSED",
        "- decode-kv-b32-2048: fp8 1.50 times as fast as bfloat16: kept",
        "- decode-kv-b32-2048: int8 0.75 times as fast as bfloat16: MISSED",
    ]


def test_on_hopper_both_kernels_for_prompts_have_a_bar() -> None:
    times = row(ours={"us": 1.0, "tflops": 601.0}, ours_mma={"us": 2.0, "tflops": 299.0})
    assert gpu_kernels.bars({"prefill-b1-8192": times}) == [
        "- prefill-b1-8192: mma_sync 299 TFLOP/s, 300 promised: MISSED",
        "- prefill-b1-8192: wgmma 601 TFLOP/s, 600 promised: kept",
    ]


def test_without_torch_or_a_device_nothing_is_measured_and_the_reason_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["gpu_kernels.py", "--out", str(out)])
    monkeypatch.setitem(sys.modules, "torch", None)
    assert gpu_kernels.main() == gpu_kernels.CANNOT
    assert capsys.readouterr().err.startswith("gpu_kernels: nothing is measured: torch is not there")
    assert not out.exists()


def test_rows_of_the_quick_run_are_rows() -> None:
    assert set(gpu_rows.QUICK) <= set(gpu_rows.all_rows())


class TickingTorch:
    """A device on which a filling of the cache takes 50 us, and every graph 3 us more; `now` is in us."""

    float32 = None

    def __init__(self) -> None:
        self.now = 0.0
        self.recorded: list[float] | None = None
        self.cuda = self

    def spend(self, us: float) -> None:
        if self.recorded is None:
            self.now += us
        else:
            self.recorded.append(us)

    def sum(self, *_: Any, **__: Any) -> None:
        self.spend(50.0)

    def zeros(self, shape: tuple[int, int], **_: Any) -> Any:
        return SimpleNamespace(shape=shape)

    empty = zeros

    def get_device_properties(self, _: int) -> Any:
        return SimpleNamespace(L2_cache_size=60 << 20)

    def Stream(self) -> Any:
        return SimpleNamespace(wait_stream=lambda _: None)

    def current_stream(self) -> None:
        """No other is there."""

    def synchronize(self) -> None:
        """Everything has happened."""

    def stream(self, _: Any) -> Any:
        return contextlib.nullcontext()

    def CUDAGraph(self) -> Any:
        graph = SimpleNamespace(parts=[3.0])
        graph.replay = lambda: self.spend(sum(graph.parts))
        return graph

    @contextlib.contextmanager
    def graph(self, graph: Any, stream: Any) -> Iterator[None]:
        self.recorded = graph.parts
        yield
        self.recorded = None

    def Event(self, enable_timing: bool) -> Any:
        event = SimpleNamespace()
        event.record = lambda: setattr(event, "at", self.now)
        event.elapsed_time = lambda end: (end.at - event.at) / 1e3
        return event


def test_a_graphs_time_is_that_of_its_calls_without_the_fillings_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = TickingTorch()
    monkeypatch.setattr(gpu_clock.time, "perf_counter", lambda: torch.now / 1e6)
    clock = gpu_clock.GpuClock(torch)
    time = clock.graph_us(lambda: torch.spend(7.0))
    assert time["us"] == pytest.approx(7.0)
    assert time["n"] == gpu_clock.N_SAMPLES
    assert torch.now > 2 * gpu_clock.WARM_S * 1e6


def test_a_summary_is_the_median_and_what_lies_around_it() -> None:
    found = gpu_clock.summary([float(i) for i in range(1, 31)])
    assert (found["us"], found["n"]) == (15.5, 30)
    assert math.isclose(found["us_p10"], 3.1)
    assert math.isclose(found["us_p90"], 27.9)
