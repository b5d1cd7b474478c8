"""The whole command line by path: python cli/cli_app.py stream. Verbs and flags are those of `llm-decoder`."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    run = runpy.run_path(str(Path(__file__).with_name("_checkout.py")))["run"]
    sys.exit(run(sys.argv[1:]))
