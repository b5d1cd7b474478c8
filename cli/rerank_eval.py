"""Judges rerankers on labelled runs: python cli/rerank_eval.py RUNS. Flags are those of `llm-decoder rerank-eval`."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    run = runpy.run_path(str(Path(__file__).with_name("_checkout.py")))["run"]
    sys.exit(run(["rerank-eval", *sys.argv[1:]]))
