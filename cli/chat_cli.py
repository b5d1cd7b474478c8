"""A conversation with a model: python cli/chat_cli.py. Flags are those of `llm-decoder chat`."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    run = runpy.run_path(str(Path(__file__).with_name("_checkout.py")))["run"]
    sys.exit(run(["chat", *sys.argv[1:]]))
