"""--device cuda through the programs that people start, with the host machine in the place of a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from answer_judge import open_gpu
from programs import ROOT, Program

from llm_decoder import SamplingParams

ON_HOST_MACHINE = "tests/on_host_machine.py"
FLAGS = ["--device", "cuda", "--kv-cache-bytes", "1M", "--deterministic"]
PROMPT = "The dog and the cat"


def test_generate_answers_on_a_gpu(folder: Path) -> None:
    command = [sys.executable, ON_HOST_MACHINE, "generate", PROMPT, "--model", str(folder), "--json", *FLAGS]
    ran = subprocess.run(
        [*command, "--max-tokens", "4", "--temperature", "0"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    with open_gpu(folder, deterministic=True) as llm:
        (output,) = llm.generate(PROMPT, SamplingParams(max_tokens=4, temperature=0.0))
    assert json.loads(ran.stdout)["outputs"][0]["token_ids"] == output.outputs[0].token_ids


def test_a_server_answers_on_a_gpu_and_says_so(folder: Path, tmp_path: Path) -> None:
    server = Program([ON_HOST_MACHINE, "serve"], tmp_path / "log", "--model", str(folder), *FLAGS)
    try:
        server.wait_until_ready()
        answer = json.loads(server.ask("/generate", {"prompt": PROMPT, "max_tokens": 4, "temperature": 0.0}))
        told = server.ask("/metrics").decode()
        assert server.wait_for_log("info ready ").endswith(f" model={folder} device=cuda")
    finally:
        server.process.terminate()
        server.process.wait()
    with open_gpu(folder, deterministic=True) as llm:
        (output,) = llm.generate(PROMPT, SamplingParams(max_tokens=4, temperature=0.0))
    assert answer["token_ids"] == output.outputs[0].token_ids
    assert 'device="cuda"' in told
    assert 'num_cpu_blocks="0"' in told
