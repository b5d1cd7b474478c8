"""make gpu-e2e without a GPU: how it goes on, what is a failure, what is counted, what its page says. Each stage in
small is in test_gpu_e2e_stages.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gpu_model
import gpu_page
import pytest
from gpu_idle import busy_and_waiting, middle
from gpu_model_weights import LLAMA_8B, step_bytes
from resumed import DONE, FAILED, LEFT, UNDER_WAY

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tools/gpu_e2e"))

import e2e_stage  # noqa: E402
import run as e2e_run  # noqa: E402

from llm_decoder.models import parse_config  # noqa: E402

# ---- stages ------------------------------------------------------------------------------------------------------


class Stages:
    """Programs that end as is written for each. Each leaves a row, except one that ends with NOTHING."""

    def __init__(self, out: Path, **ends: list[int]) -> None:
        self.out, self.ends = out, {e2e_run.STAGES[name]: list(statuses) for name, statuses in ends.items()}
        self.began: list[str] = []
        self.now = 0.0

    def __call__(self, program: Path, options: Sequence[str], end_s: float) -> int:
        self.began.append(" ".join([program.stem, *options[2:]]))
        self.now += 100.0
        status = self.ends[program].pop(0)
        if status != NOTHING:
            failed = {"failed": UNDER_WAY} if status in (HUNG, CRASHED) else {}
            row = {f"{program.stem}-{len(self.began)}": {"of": {}, **failed}}
            before = json.loads(self.out.read_text())["rows"] if self.out.exists() else {}
            self.out.write_text(json.dumps({"rows": before | row}))
        return FAILED if status == HUNG else status

    def run(self, limit_s: float = 1000.0) -> int:
        names = [name for name, program in e2e_run.STAGES.items() if program in self.ends]
        return e2e_run.run_stages(names, self.out, limit_s, self, clock=lambda: self.now)


CRASHED, NOTHING, HUNG = -11, -9, 100


def test_all_stages_run_and_the_worst_is_told(tmp_path: Path) -> None:
    assert Stages(tmp_path / "a", judges=[DONE], soak=[DONE]).run() == DONE
    assert Stages(tmp_path / "b", judges=[FAILED], soak=[LEFT]).run() == FAILED
    assert Stages(tmp_path / "c", judges=[DONE], soak=[LEFT]).run() == LEFT
    assert Stages(tmp_path / "d", judges=[2], soak=[2]).run() == 2


@pytest.mark.parametrize("end", [CRASHED, e2e_stage.LOST, HUNG])
def test_a_stage_that_dies_has_failed_and_is_begun_again_for_what_is_new(tmp_path: Path, end: int) -> None:
    stages = Stages(tmp_path / "out", judges=[end, end, DONE], soak=[DONE])
    assert stages.run() == FAILED
    assert stages.began == ["e2e_judges", "e2e_judges --new", "e2e_judges --new", "e2e_soak"]


def test_a_stage_that_dies_before_its_first_row_is_not_begun_again(tmp_path: Path) -> None:
    stages = Stages(tmp_path / "out", judges=[NOTHING], soak=[DONE])
    assert stages.run() == FAILED
    assert stages.began == ["e2e_judges", "e2e_soak"]


def test_no_stage_begins_when_the_time_is_over(tmp_path: Path) -> None:
    stages = Stages(tmp_path / "out", judges=[DONE], soak=[DONE])
    assert stages.run(limit_s=105.0) == LEFT
    assert stages.began == ["e2e_judges"]


def test_a_stage_is_told_that_nothing_is_fetched(tmp_path: Path) -> None:
    program = tmp_path / "stage.py"
    program.write_text("import os, sys\nsys.exit(os.environ['HF_HUB_OFFLINE'] != '1')\n")
    assert e2e_run.run_program(tmp_path / "out", program, [], 60.0) == 0


STAGE = """
import os, sys, time
sys.path.insert(0, {folder!r})
import e2e_stage
from e2e_stage import Row

e2e_stage.device_name = lambda: "a device"
e2e_stage.is_alive = lambda: {alive}
e2e_stage.sources = lambda *folders: []

def broken():
    raise RuntimeError("no such kernel")

rows = {{
    "good": Row(lambda: {{"us": 1}}, 60),
    "broken": Row(broken, 60),
    "dies": Row(lambda: os._exit(11), 60),
    "hangs": Row(lambda: time.sleep(60), 0.5),
    "last": Row(lambda: {{"us": 2}}, 60),
}}
asked = e2e_stage.arguments("a stage").parse_args()
sys.exit(e2e_stage.run_stage(lambda: rows, asked))
"""


def run_stage(tmp_path: Path, *options: str, alive: bool = True) -> subprocess.CompletedProcess[str]:
    program = tmp_path / "stage.py"
    program.write_text(STAGE.format(folder=str(ROOT / "tools/gpu_e2e"), alive=alive))
    command = [sys.executable, str(program), "--out", str(tmp_path / "out.json"), *options]
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, timeout=60)


def rows_of(tmp_path: Path) -> dict[str, Any]:
    return dict(json.loads((tmp_path / "out.json").read_text())["rows"])


def test_a_row_that_ends_its_process_is_a_failed_row_and_the_next_process_goes_on(tmp_path: Path) -> None:
    first = run_stage(tmp_path)
    assert first.returncode == 11
    assert "no such kernel" in first.stderr
    assert list(rows_of(tmp_path)) == ["good", "broken", "dies"]
    assert run_stage(tmp_path, "--new").returncode == FAILED
    found = rows_of(tmp_path)
    assert found["dies"]["failed"] == found["hangs"]["failed"] == UNDER_WAY
    assert run_stage(tmp_path, "--new").returncode == DONE
    assert rows_of(tmp_path)["last"]["us"] == 2


def test_a_device_that_answers_no_more_asks_for_another_process(tmp_path: Path) -> None:
    assert run_stage(tmp_path, "--rows", "broken", alive=False).returncode == e2e_stage.LOST


def test_no_row_begins_with_less_than_half_its_time_left(tmp_path: Path) -> None:
    assert run_stage(tmp_path, "--rows", "good", "--limit-s", "20").returncode == LEFT
    assert rows_of(tmp_path) == {}


def test_rows_are_of_sources_and_not_of_what_a_compiler_made_of_them() -> None:
    known = list(e2e_stage.sources(*e2e_stage._SOURCES))
    assert {"answer_judge.py", "soak_calls.py", "dense_gemm_cublaslt.cpp", "llm.py"} <= {path.name for path in known}
    assert Path(__file__) not in known
    suffixes = {path.suffix for path in known}
    assert {".h", ".cpp", ".py"} <= suffixes
    assert ".so" not in suffixes


# ---- figures -----------------------------------------------------------------------------------------------------


def test_a_rate_counts_what_comes_while_all_write() -> None:
    early = [(0.0, 1), (1.0, 1), (2.0, 1)]
    late = [(0.5, 1), (1.5, 3), (2.5, 1)]
    assert gpu_model.rate_of([early, late]) == pytest.approx((2 + 3) / 1.5)
    with pytest.raises(ValueError, match="written at the same time"):
        gpu_model.rate_of([[(0.0, 1)], [(1.0, 1)]])


def test_what_warms_the_device_up_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(gpu_model.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(gpu_model, "device_state", dict)

    def measure() -> float:
        now[0] += 0.2
        return now[0]

    row = gpu_model.measured(measure, gpu_model.Scale(n_samples=3, warm_s=0.5), "seconds", n_prompt=7)
    assert row["samples"] == pytest.approx([0.8, 1.0, 1.2])
    assert (row["seconds"], row["n_prompt"]) == (pytest.approx(1.0), 7)


def test_gaps_between_kernels_are_the_hosts_where_they_are_long() -> None:
    found = busy_and_waiting([(0, 10), (11, 20), (15, 25), (45, 50)], host_gap_us=5.0)
    assert found == {"span_us": 50, "busy_us": 29, "waiting_us": 20, "waiting_share": 0.4, "n_kernels": 4}
    with pytest.raises(ValueError, match="need kernels"):
        busy_and_waiting([])


def test_where_a_profiler_begins_and_ends_nothing_counts() -> None:
    late = [(0.0, 5.0), (50.0, 60.0), (65.0, 90.0), (95.0, 100.0)]
    assert middle(late) == [(50.0, 60.0), (65.0, 90.0)]
    assert middle([]) == []


def test_a_step_reads_every_weight_but_the_table_of_embeddings() -> None:
    config = parse_config(dict(LLAMA_8B))
    layer = 4096 * (4096 + 2 * 1024 + 4096) + 3 * 4096 * 14336
    matrices = 2 * (32 * layer + 128256 * 4096)
    norms = 4 * (65 * 4096)
    assert step_bytes(config, "gpu_bf16") == matrices + norms


def test_flops_of_a_prompt_are_of_products_attention_and_one_row_of_logits() -> None:
    config = dict(hidden_size=4, intermediate_size=8, head_dim=2, num_attention_heads=2, num_key_value_heads=1,
                  num_hidden_layers=3, vocab_size=16)  # fmt: skip
    products = 2 * (4 * (4 + 2 + 2) + 4 * 4 + 3 * 4 * 8)
    attention = 2 * (2 * 2 * 2) * (1 + 2 + 3 + 4 + 5)  # scores and sums of 2 heads of 2, position i sees i
    assert gpu_model.prefill_flops(config, 5) == 3 * (5 * products + attention) + 2 * 16 * 4


# ---- the page ----------------------------------------------------------------------------------------------------


def written(tmp_path: Path, **rows: dict[str, Any]) -> str:
    of = {"device": "NVIDIA H200", "sources": "abc"}
    named = {name.replace("_", "-"): {"of": of, **row} for name, row in rows.items()}
    old = {"bench-int8-decode-1": {"of": {**of, "sources": "old"}, "tokens_per_s": 9.0}}
    path = tmp_path / "gpu_e2e.json"
    path.write_text(json.dumps({"facts": {"of": of}, "rows": old | named}))
    return gpu_page.markdown(path)


LIMITS = {"read_gb_per_s": 4000.0, "copy_gb_per_s": 3900.0, "bf16_tflops": 800.0}


def test_the_page_has_figures_shares_and_bars(tmp_path: Path) -> None:
    page = written(
        tmp_path,
        judge_llama={"worst_share_of_bound": 0.6},
        judge_qwen3={"failed": "AssertionError: 2.0 above 1.0\nmore"},
        memcheck_graphs={"skipped": "compute-sanitizer is not on PATH"},
        bench_limits=LIMITS,
        bench_bfloat16_decode_1={"tokens_per_s": 200.0, "step_bytes": 15_000_000_000},
        bench_bfloat16_decode_64={"tokens_per_s": 9000.0, "step_bytes": 15_000_000_000},
        bench_int4_decode_1={"tokens_per_s": 520.0, "step_bytes": 4_700_000_000},
        bench_transformers_decode_64={"tokens_per_s": 3000.0},
        bench_bfloat16_first_token_4096={"seconds": 0.1, "flops": 56_000_000_000_000},
        bench_bfloat16_first_token_2048={"seconds": 0.05, "flops": 28_000_000_000_000},
        bench_bfloat16_waiting_1={"step_us": 5000.0, "waiting_share": 0.03},
    )
    assert "- judges: 1 passed, 1 failed" in page
    assert "- compute-sanitizer: 0 passed, 0 failed, 1 skipped (compute-sanitizer is not on PATH)" in page
    assert "the largest error of logits is 60% of what is allowed" in page
    assert "| bfloat16 | 200 | 9000 | 75% |" in page
    assert "| transformers | - | 3000 | - |" in page
    assert "| bfloat16 | 4096 | 100 | 40960 | 70% |" in page
    assert "| bfloat16 | 1 | 5.00 | 3.0% |" in page
    assert "int8" not in page  # of other sources
    assert "one answer in bfloat16 at 75% of the bandwidth of reads, 80% promised: MISSED" in page
    assert "int4 2.60 times as fast as bfloat16, 2.5 promised: kept" in page
    assert "64 answers 3.0 times as fast as transformers, 5 promised: MISSED" in page
    assert "a prompt of 4096 at 70% of the bf16 peak, 60% promised: kept" in page
    assert "first token of a prompt of 2048 after 50 ms, 60 promised: kept" in page
    assert "the GPU waits 3.0% of a step, 5% allowed: kept" in page
    assert "- judge-qwen3 failed: AssertionError: 2.0 above 1.0\n" in page + "\n"


def test_what_was_not_measured_is_no_bar(tmp_path: Path) -> None:
    page = written(tmp_path, bench_limits={"failed": "RuntimeError: no"}, bench_int4_decode_1={"tokens_per_s": 5.0})
    assert "promised" not in page
    assert "bench-limits failed: RuntimeError: no" in page
