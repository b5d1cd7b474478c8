"""Generates text: python cli/generate_cli.py --prompt "Hello". Flags are those of `llm-decoder generate`."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    run = runpy.run_path(str(Path(__file__).with_name("_checkout.py")))["run"]
    sys.exit(run(["generate", *sys.argv[1:]]))
