"""Weights are mapped, not copied: what a warm start holds in anonymous memory is the KV pool and little else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from models_factory import make_checkpoint

MEASURE = """
import json, sys
from pathlib import Path
from llm_decoder import LLM, SamplingParams

def anonymous_bytes():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

with LLM(sys.argv[1], kv_cache_bytes=32 << 20, threads=1) as llm:
    llm.generate([[1, 2, 3]], SamplingParams(max_tokens=8, ignore_eos=True))
    print(json.dumps({"anonymous_bytes": anonymous_bytes()}))
"""
KV_POOL_BYTES = 32 << 20
ALLOWED_BYTES = 250 << 20


def anonymous_bytes_after_a_step(model: Path) -> int:
    done = subprocess.run([sys.executable, "-c", MEASURE, str(model)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["anonymous_bytes"]


def test_a_warm_start_maps_its_weights(tmp_path: Path) -> None:
    # 320 MB of int8 weights: more than the allowance, so a copy in anonymous memory could not hide.
    shape = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 6, "num_attention_heads": 16}
    model = make_checkpoint(tmp_path / "model", "llama", dtype="BF16", **shape)
    anonymous_bytes_after_a_step(model)  # quantises and fills the disk cache
    assert anonymous_bytes_after_a_step(model) <= KV_POOL_BYTES + ALLOWED_BYTES
