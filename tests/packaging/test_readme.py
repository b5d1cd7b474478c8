"""The README's commands run as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.M | re.S)
PYTHON = "".join(code for language, code in BLOCKS if language == "python")
COMMANDS = [
    line.split("  #")[0].strip()
    for language, code in BLOCKS
    if language == "bash"
    for line in code.splitlines()
    if line.startswith(("llm-decoder ", "python "))
]
pytestmark = pytest.mark.packaging


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the scripts of the checkout, a prompts file and a model folder, as the README's lines assume."""
    for name in ("cli", "config"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Once upon a time", "max_tokens": 4}\n')
    shutil.copytree(ROOT / "python/llm_decoder/embedded/storyteller", tmp_path / "path/to/hf-folder")
    return tmp_path


def run_in(place: Path, command: list[str], text: str = "Hello\n") -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    folders = {"LLM_DECODER_CACHE_DIR": str(place / "cache"), "XDG_STATE_HOME": str(place / "state")}
    env = os.environ | folders | {"PATH": path}
    return subprocess.run(command, cwd=place, env=env, input=text, capture_output=True, text=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_runs(command: str, place: Path) -> None:
    done = run_in(place, ["sh", "-c", command])
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).strip()


def test_the_python_of_the_readme_runs(place: Path) -> None:
    done = run_in(place, [sys.executable, "-c", PYTHON])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_readme_names_both_first_commands() -> None:
    assert "make run" in README
    assert "make test" in README
