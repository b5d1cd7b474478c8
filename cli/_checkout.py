"""How a script of this folder, run by its path, finds the package `llm_decoder`.

Imports the standard library only: it runs before anything is known to be installed. In this order: the package of the
running interpreter, the environment that `make run` made in the checkout, the plain CMake build.
"""

import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
MISSING = """\
llm_decoder is not built for this Python ({python}). From {root} run one of:
  make run                                    builds everything in .venv, then: .venv/bin/python {script}
  {python} -m pip install .                   installs it for this Python
  mkdir build && cd build && cmake .. && make -j      then: PYTHONPATH=build/python {python} {script}
"""


def run(arguments: list[str]) -> int:
    """Runs the command line program on `arguments` and returns its exit code; 1 with advice when it cannot be found."""
    # Python put this folder first on the path: its generate.py or cache.py must not hide somebody else's module.
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != HERE]
    if importlib.util.find_spec("llm_decoder") is None and not _find_package():
        script = os.path.relpath(sys.argv[0], ROOT)
        sys.stderr.write(MISSING.format(python=sys.executable, root=ROOT, script=script))
        return 1
    try:
        from llm_decoder.cli.main import main
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"llm_decoder needs the Python package {error.name!r}, which {sys.executable} does not have. Run:\n"
            f"  {sys.executable} -m pip install -r {ROOT / 'requirements.txt'}\n"
        )
        return 1
    return main(arguments)


def _find_package() -> bool:
    environment = ROOT / ".venv"
    if (environment / "bin" / "llm-decoder").exists() and Path(sys.prefix).resolve() != environment.resolve():
        python = environment / "bin" / "python"
        sys.stderr.write(f"using {python}\n")
        sys.stderr.flush()
        os.execv(python, [str(python), *sys.argv])
    tree = ROOT / "build" / "python"
    if any((tree / "llm_decoder").glob("_core*")):
        sys.path.insert(0, str(tree))
        return True
    return False
