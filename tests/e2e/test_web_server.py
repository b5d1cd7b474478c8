"""The page's server as people start it, over the embedded model: Flask by path, FastAPI by its verb."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import FASTAPI, FLASK, Program

ROOT = Path(__file__).parents[2]
QUESTION = {
    "messages": [{"role": "user", "content": "Tell me a story about a dog."}],
    "max_tokens": 24,
    "temperature": 0,
    "ignore_eos": True,
}


@pytest.fixture(scope="module", params=[FLASK, FASTAPI], ids=["flask", "fastapi"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    program = Program(request.param, tmp_path_factory.mktemp("web") / "log")
    try:
        program.wait_until_ready()
        yield program
    finally:
        program.process.terminate()
        assert program.process.wait(60) == 0, program.log.read_text()


def texts(raw: bytes) -> str:
    lines = [line.removeprefix("data: ") for line in raw.decode().split("\n") if line.startswith('data: {"text"')]
    return "".join(json.loads(line)["text"] for line in lines)


def test_the_page_s_stream_joined_is_the_answer_that_is_not_streamed(program: Program) -> None:
    streamed = texts(program.ask("/page/stream", QUESTION))
    whole = json.loads(program.ask("/v1/chat/completions", QUESTION))["choices"][0]["message"]["content"]
    assert streamed == whole
    assert len(whole) > 20


def test_the_page_and_its_session_are_there(program: Program) -> None:
    assert b"<script" in program.ask("/")
    session = json.loads(program.ask("/page/session"))
    assert session["model"] == "storyteller"
    assert session["max_model_len"] >= 1024
    assert session["defaults"]["temperature"] > 0


def test_a_stream_whose_connection_broke_is_read_on(program: Program) -> None:
    body = json.dumps(QUESTION).encode()
    request = urllib.request.Request(program.url + "/page/stream", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        seen = b"".join(answer.readline() for _ in range(4 * 5))  # the first events: four lines, or three
    last_id = int(re.findall(rb"id: (\d+)\n", seen)[-1]) - 1  # the last one may have been cut
    seen = seen.partition(b"id: %d\n" % (last_id + 1))[0]
    stream_id = json.loads(seen.split(b"data: ")[1].split(b"\n")[0])["stream"]
    again = urllib.request.Request(f"{program.url}/page/stream/{stream_id}", headers={"last-event-id": str(last_id)})
    with urllib.request.urlopen(again, timeout=60) as answer:
        rest = answer.read()
    assert texts(seen) + texts(rest) == texts(program.ask("/page/stream", QUESTION))


def test_openai_s_client_is_served(program: Program) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=program.url + "/v1", api_key="none", max_retries=0) as client:
        asked = {"model": "storyteller", "messages": QUESTION["messages"], "max_tokens": 12, "temperature": 0}
        whole = client.chat.completions.create(**asked)
        streamed = [
            chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**asked, stream=True)
        ]
    assert "".join(streamed) == whole.choices[0].message.content


def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path: Path) -> None:
    command = [sys.executable, *FLASK, "--port", "0", "--model", str(tmp_path / "none")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 1
    assert "could not be loaded" in ran.stderr
    assert "Traceback" not in ran.stderr
