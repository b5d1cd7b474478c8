"""Answers a file of prompts: python cli/generate_batch.py. Flags are those of `llm-decoder batch`."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    run = runpy.run_path(str(Path(__file__).with_name("_checkout.py")))["run"]
    sys.exit(run(["batch", *sys.argv[1:]]))
