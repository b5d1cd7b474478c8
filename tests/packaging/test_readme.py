"""The README's commands run as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
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
    if line.startswith(("llm-decoder ", "python ", "uvicorn "))
]
SERVERS = [command for command in COMMANDS if re.match(r"llm-decoder (serve|web)|uvicorn|python web/", command)]
pytestmark = pytest.mark.packaging


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the scripts of the checkout, a prompts file and a model folder, as the README's lines assume."""
    for name in ("api", "cli", "config", "web"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Once upon a time", "max_tokens": 4}\n')
    shutil.copytree(ROOT / "python/llm_decoder/embedded/storyteller", tmp_path / "path/to/hf-folder")
    return tmp_path


def environment(place: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    folders = {"LLM_DECODER_CACHE_DIR": str(place / "cache"), "XDG_STATE_HOME": str(place / "state")}
    return os.environ | folders | {"PATH": path}


def run_in(place: Path, command: list[str], text: str = "Hello\n") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=place, env=environment(place), input=text, capture_output=True, text=True)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in SERVERS])
def test_a_command_of_the_readme_runs(command: str, place: Path) -> None:
    done = run_in(place, ["sh", "-c", command])
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).strip()


@pytest.mark.parametrize("command", SERVERS)
def test_a_server_of_the_readme_serves_until_it_is_told_to_end(command: str, place: Path) -> None:
    port = free_port()
    env = environment(place) | {"LLM_DECODER_PORT": str(port)}
    server = subprocess.Popen(command.replace("--port 8000", f"--port {port}").split(), cwd=place, env=env)
    try:
        deadline_s = time.monotonic() + 60
        while (status := status_of(port)) != 200 and time.monotonic() < deadline_s and server.poll() is None:
            time.sleep(0.1)
        assert status == 200
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) in (0, -signal.SIGTERM)  # uvicorn ends by the signal that it was sent
    finally:
        server.kill()
        server.wait()


def status_of(port: int) -> int:
    """Of /health; 0 while nobody listens."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health").status_code
    except httpx.TransportError:
        return 0


def test_the_python_of_the_readme_runs(place: Path) -> None:
    done = run_in(place, [sys.executable, "-c", PYTHON])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_readme_names_both_first_commands() -> None:
    assert "make run" in README
    assert "make test" in README
