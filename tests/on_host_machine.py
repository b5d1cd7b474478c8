"""llm-decoder, the host machine of the kernels in the place of a GPU: python tests/on_host_machine.py generate ..."""

from __future__ import annotations

import importlib
import sys

from llm_decoder.cli.main import main

if __name__ == "__main__":
    sys.modules["llm_decoder._cuda"] = importlib.import_module("llm_decoder._cuda_host")
    sys.exit(main())
