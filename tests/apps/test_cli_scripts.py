"""The scripts of cli/, run by path from a checkout: how they find the package, and what they say when they cannot."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CLI = Path(__file__).parents[2] / "cli"
SCRIPTS = {
    "generate_cli.py": ["generate", "--prompt", "Hello"],
    "chat_cli.py": ["chat", "--prompt", "Hello"],
    "generate_batch.py": ["batch", "--prompt", "Hello"],
    "rerank_eval.py": ["rerank-eval", "--prompt", "Hello"],
    "cli_app.py": ["--prompt", "Hello"],
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout that was never built."""
    shutil.copytree(CLI, tmp_path / "cli", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def run(checkout: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The script under a Python without any installed package."""
    command = [sys.executable, "-E", "-s", "-S", f"cli/{script}", *arguments]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True)


def make_package(folder: Path, main: str = "print(arguments)") -> None:
    """A package llm_decoder whose program runs `main`."""
    (folder / "llm_decoder" / "cli").mkdir(parents=True)
    (folder / "llm_decoder" / "__init__.py").touch()
    (folder / "llm_decoder" / "_core.so").touch()
    (folder / "llm_decoder" / "cli" / "__init__.py").touch()
    code = f"def main(arguments):\n    {main}\n    return 0\n"
    (folder / "llm_decoder" / "cli" / "main.py").write_text(code, encoding="utf-8")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_without_the_package_says_exactly_what_to_run(checkout: Path, script: str) -> None:
    done = run(checkout, script)
    assert (done.returncode, done.stdout) == (1, "")
    assert "make run" in done.stderr
    assert f"{sys.executable} -m pip install ." in done.stderr
    assert f"PYTHONPATH=build/python {sys.executable} cli/{script}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_hands_its_arguments_to_its_verb(checkout: Path, script: str) -> None:
    make_package(checkout / "build" / "python")
    done = run(checkout, script, "--prompt", "Hello")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{SCRIPTS[script]}\n"


def test_the_environment_of_make_run_goes_before_the_plain_build(checkout: Path) -> None:
    make_package(checkout / "build" / "python")
    programs = checkout / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "llm-decoder").touch()
    (programs / "python").write_text('#!/bin/sh\necho "run by .venv: $*"\n', encoding="utf-8")
    (programs / "python").chmod(0o755)
    done = run(checkout, "generate_cli.py", "--prompt", "Hello there")
    assert done.stdout == "run by .venv: cli/generate_cli.py --prompt Hello there\n"
    assert str(programs / "python") in done.stderr


def test_a_missing_dependency_is_named(checkout: Path) -> None:
    make_package(checkout / "build" / "python", main="import no_such_dependency")
    module = checkout / "build" / "python" / "llm_decoder" / "cli" / "main.py"
    module.write_text("import no_such_dependency\n", encoding="utf-8")
    done = run(checkout, "generate_cli.py")
    assert done.returncode == 1
    assert "'no_such_dependency'" in done.stderr
    assert "requirements.txt" in done.stderr


def test_files_beside_a_script_hide_no_module_of_the_same_name(checkout: Path) -> None:
    look = "import importlib.util as u; print([n for n in ('generate', 'cache', 'stream', 'chat') if u.find_spec(n)])"
    make_package(checkout / "build" / "python", main=look)
    assert run(checkout, "generate_cli.py").stdout == "[]\n"


def test_no_file_of_cli_has_the_name_of_a_library() -> None:
    libraries = {"typer", "rich", "click", "numpy", "prompt_toolkit", "tokenizers", "jinja2", "yaml", "httpx", "tqdm"}
    names = {path.stem for path in CLI.glob("*.py")} - {"__init__"}
    assert not names & (libraries | sys.stdlib_module_names)
