"""bench on a model, a clock and a machine that are made up, so that every figure of its report can be told."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_fakes import FakeLLM, Program

from llm_decoder.backends import StepTimes
from llm_decoder.cli import bench
from llm_decoder.model_config import ModelConfig
from llm_decoder.roofline import Chunk, Limits, floor_s, step_work
from llm_decoder.sampling import SamplingParams

PARTS = ("attn_qkv", "attention", "lm_head", "sample", "outside", "something_new")
PART_S = np.array([4.0, 1.0, 2.0, 0.5, 2.0, 0.5]) * 1e-3  # a step takes 10 ms
LIMITS = Limits(read_bytes_per_s=1e9, int8_ops_per_s=1e11, f32_ops_per_s=1e10)
CONFIG = ModelConfig(
    model_type="llama",
    n_layers=1,
    hidden_size=16,
    n_heads=1,
    n_kv_heads=1,
    head_dim=16,
    intermediate_size=16,
    vocab_size=100,
    max_model_len=64,
    norm_eps=1e-5,
    attention_scale=0.25,
    windows=(0,),
    rope_inv_freq=(),
    tie_word_embeddings=True,
)


class ProfiledLLM(FakeLLM):
    """Computes prompts in steps of 16 tokens, one sequence after the other, then a token of each in a step. Runs of
    the numbers `slow`, from 0, take twice as long."""

    config = CONFIG

    def __init__(self, slow: tuple[int, ...] = (), max_together: int = 64) -> None:
        super().__init__()
        self.prompts: list[list[list[int]]] = []
        self.steps: list[tuple[int, int]] | None = None
        self.slow, self.max_together = slow, max_together

    def start_profile(self) -> None:
        self.steps = []

    def generate(self, prompts: Any, params: SamplingParams) -> list[Any]:
        assert self.steps is not None
        self.prompts.append(prompts)
        for prompt in prompts:
            self.steps += [(len(prompt[i : i + 16]), 1) for i in range(0, len(prompt), 16)]
        n_together = min(len(prompts), self.max_together)
        self.steps += [(n_together, n_together)] * (params.max_tokens or 0)
        return []

    def stop_profile(self) -> StepTimes:
        n_tokens, n_sequences = (np.array(counts, np.int32) for counts in zip(*self.steps or [], strict=True))
        factor = 2 if len(self.prompts) - 1 in self.slow else 1
        return StepTimes(PARTS, n_tokens, n_sequences, np.tile(PART_S * factor, (len(n_tokens), 1)))

    def stats(self) -> dict[str, Any]:
        engine = {"device": "cpu", "threads": 2, "isa": "generic", "layout": "w8", "kv_cache_dtype": "int8"}
        return {"backend": engine}


@pytest.fixture(autouse=True)
def probe(monkeypatch: pytest.MonkeyPatch) -> list[Limits]:
    """The limits that the machine has at each look; the last ones stay."""
    found = [LIMITS]
    take = lambda: found.pop(0) if len(found) > 1 else found[0]  # noqa: E731
    monkeypatch.setattr(bench, "limits_probe", lambda threads, isa: take)
    return found


@pytest.fixture
def cli(cli: Program) -> Program:
    cli.llm = ProfiledLLM()
    return cli


def report_of(cli: Program, *arguments: str) -> dict[str, Any]:
    ran = cli("bench", *arguments, "--json")
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def test_a_prompt_counts_the_steps_that_compute_it(cli: Program) -> None:
    (column,) = report_of(cli, "--columns", "prefill40")["columns"]
    assert column["n_steps"] == 3
    assert column["tokens_per_s"] == pytest.approx(40 / 0.030)
    assert column["seconds"] == pytest.approx(0.030)
    chunks = [Chunk(16, 16, 0), Chunk(16, 32, 0), Chunk(8, 40, 1)]
    floor = sum(floor_s(step_work(CONFIG, "w8", "int8", [chunk]), LIMITS) for chunk in chunks)
    assert column["floor_tokens_per_s"] == pytest.approx(40 / floor)
    assert column["share"] == pytest.approx(floor / 0.030)


def test_answers_count_the_steps_in_which_each_gets_a_token(cli: Program) -> None:
    (column,) = report_of(cli, "--columns", "batch3@20", "--gen-len", "5")["columns"]
    assert (column["n_steps"], column["n_sequences"], column["n_prompt"]) == (5, 3, 20)
    assert column["tokens_per_s"] == pytest.approx(3 / 0.010)
    work = [step_work(CONFIG, "w8", "int8", [Chunk(1, 21 + i, 1)] * 3) for i in range(5)]
    assert column["share"] == pytest.approx(sum(floor_s(parts, LIMITS) for parts in work) / 0.050)
    assert column["work"]["read_bytes"] == sum(part.read_bytes for parts in work for part in parts.values()) // 5
    part = column["parts"]["lm_head"]
    assert part["seconds"] == pytest.approx(0.002)
    assert part["time_share"] == pytest.approx(0.2)
    assert part["limit_share"] == pytest.approx(work[0]["lm_head"].floor_s(LIMITS) / 0.002)
    assert "limit_share" not in column["parts"]["sample"], "sampling has no floor"


@pytest.mark.parametrize(("slow", "runs"), [((0, 2), [100, 50, 100]), ((1, 2), [50, 50, 100])])
def test_the_median_run_counts_and_the_first_one_does_not(cli: Program, slow: tuple[int, ...], runs: list[int]) -> None:
    cli.llm = ProfiledLLM(slow)
    (column,) = report_of(cli, "--columns", "decode8", "--repeat", "3")["columns"]
    assert [round(run) for run in column["runs"]] == runs
    assert column["tokens_per_s"] == pytest.approx(sorted(runs)[1])


def test_every_prompt_is_new_to_prefill_and_the_same_to_decode(cli: Program) -> None:
    report_of(cli, "--columns", "prefill8,decode8", "--repeat", "2")
    (first, second, third), (fourth, fifth, sixth) = cli.llm.prompts[:3], cli.llm.prompts[3:]
    assert first != second != third != first
    assert fourth == fifth == sixth


def test_a_column_is_held_against_the_better_limits_beside_it(cli: Program, probe: list[Limits]) -> None:
    slower = Limits(5e8, 2e11, 1e10)
    probe[:] = [slower, slower, LIMITS, slower]
    report = report_of(cli, "--columns", "decode8,batch2@8")
    first, second = (column["limits"] for column in report["columns"])
    assert first == {"read_bytes_per_s": 5e8, "int8_ops_per_s": 2e11, "f32_ops_per_s": 1e10}
    assert second == report["limits"] == {"read_bytes_per_s": 1e9, "int8_ops_per_s": 2e11, "f32_ops_per_s": 1e10}


def test_the_table_tells_speeds_limits_and_parts(cli: Program) -> None:
    ran = cli("bench", "--columns", "prefill8,decode8")
    lines = ran.out.splitlines()
    assert lines[0].startswith("fake, w8 weights, int8 KV: 2 threads of ")
    assert lines[1] == "limits: read 1.0 GB/s, int8 100 GOPS, float32 10 GOPS"
    cells = {line.split("  ")[0]: line.split() for line in lines}
    assert cells["COLUMN"] == ["COLUMN", "TOKENS/S", "RANGE", "AT", "MOST", "SHARE", "BOUND", "BY", "GB/S", "GOPS"]
    assert cells["decode8"][:5] == ["decode8", "100.0", "100.0", "to", "100.0"]
    assert cells["one prompt, or a step"][-4:] == ["10.00", "ms", "10.00", "ms"]
    assert cells["sampling"] == ["sampling", "5.0%", "5.0%"]
    assert cells["something_new"] == ["something_new", "5.0%", "5.0%"]
    assert cells["engine"] == ["engine", "20.0%", "20.0%"]


def test_more_than_all_is_explained_where_it_happens(cli: Program, probe: list[Limits]) -> None:
    assert "cache" not in cli("bench", "--columns", "decode8").err
    probe[:] = [Limits(1e5, 1e11, 1e10)]
    assert "more than 100% is no mistake" in cli("bench", "--columns", "decode8").err


def test_default_columns_that_the_context_does_not_hold_are_left_out_and_named(cli: Program) -> None:
    cli.llm.max_model_len = 600
    ran = cli("bench", "--json")
    assert [column["name"] for column in json.loads(ran.out)["columns"]] == [
        "prefill512",
        "decode128",
        "batch8",
        "batch16",
    ]
    assert "left out prefill2048, decode2048: longer than the context of 600 tokens" in ran.err


def test_prompt_len_and_batch_are_short_for_three_columns(cli: Program) -> None:
    names = [
        column["name"] for column in report_of(cli, "--prompt-len", "20", "--batch", "2", "--gen-len", "4")["columns"]
    ]
    assert names == ["prefill20", "decode20", "batch2@20"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--columns", "prefil512"),
        ("--columns", "prefill1"),
        ("--columns", "batch0"),
        ("--columns", "batch4@0"),
        ("--columns", ""),
        ("--columns", "decode8,decode8"),
        ("--columns", "decode8", "--batch", "2"),
        ("--columns", "decode63"),  # longer than the context
        ("--columns", "prefill63"),
        (),  # so are all the default ones
        ("--speculation", "prompt-lookup"),
        ("--device", "cuda"),
        ("--gen-len", "0"),
        ("--repeat", "0"),
        ("--plot", "picture.gif"),
        ("--plot", "no/such/folder/picture.png"),
        ("--output", "no/such/folder/report.json"),
    ],
)
def test_a_bad_value_is_a_usage_error(cli: Program, arguments: tuple[str, ...]) -> None:
    ran = cli("bench", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert (arguments[0] if arguments else "--columns") in ran.err


def test_nothing_is_guessed_ahead(cli: Program) -> None:
    report_of(cli, "--columns", "decode8")
    assert cli.opened[0].speculation == "none"


def test_the_cpu_is_measured_whose_limits_are_known(cli: Program) -> None:
    report_of(cli, "--columns", "decode8")
    report_of(cli, "--columns", "decode8", "--device", "auto")
    assert [options.device for options in cli.opened] == ["cpu", "cpu"]


def test_sequences_that_never_run_together_are_told_with_the_remedy(cli: Program) -> None:
    cli.llm = ProfiledLLM(max_together=4)
    ran = cli("bench", "--columns", "batch5@8")
    assert (ran.code, ran.out) == (2, "")
    assert "its 5 sequences never ran together" in ran.err
    assert "--max-num-seqs" in ran.err


def test_a_plot_is_a_picture_and_a_report_goes_to_a_file(cli: Program, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture, report = tmp_path / "bench.png", tmp_path / "bench.json"
    ran = cli("bench", "--columns", "prefill40,decode8,batch3@8", "--plot", str(picture), "-o", str(report))
    assert ran.code == 0, ran.err
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert json.loads(report.read_text())["columns"][0]["name"] == "prefill40"
    assert "prefill40" in ran.out


def test_a_plot_without_matplotlib_says_what_to_install_before_anything_runs(
    cli: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ran = cli("bench", "--plot", str(tmp_path / "bench.png"))
    assert (ran.code, cli.opened) == (1, [])
    assert "pip install 'llm_decoder[bench]'" in ran.err
