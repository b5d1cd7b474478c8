"""python -m llm_decoder: the same program as the console script `llm-decoder`."""

import sys

from llm_decoder.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
