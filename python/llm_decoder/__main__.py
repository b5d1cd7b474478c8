"""python -m llm_decoder, and the console script `llm-decoder`."""

import sys


def main() -> int:
    """Runs the command line. A Ctrl-C that comes while it is still being imported ends quietly, like any later one."""
    try:
        from llm_decoder.cli.main import main as run
    except KeyboardInterrupt:
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
