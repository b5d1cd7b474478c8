"""Clients of others against the servers as programs: what each of them is told, beside what a plain request is told.

They run in .venv-clients, made by `make judge` from clients/requirements.txt, as programs that print what they found;
LLM_DECODER_CLIENTS_PYTHON names another Python that has them.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models_factory import TOOLS_TEMPLATE, make_checkpoint

from llm_decoder import LLM, SamplingParams

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE / "clients"))

from asked import CHAT, N_TOKENS, PROMPT, TEXTS, TOOLS_MODEL  # noqa: E402

pytestmark = pytest.mark.judge

PYTHON = Path(os.environ.get("LLM_DECODER_CLIENTS_PYTHON", ROOT / ".venv-clients" / "bin" / "python"))
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
    "NO_COLOR": "1",
}
KEY = {"authorization": "Bearer secret"}
SMALL = ["--threads", "1", "--kv-cache-bytes", "32MiB", "--port", "0"]
WAIT_S = 600.0


class Server:
    """A program that serves, behind a key; `url` once its model is there."""

    def __init__(self, log: Path, *command: str) -> None:
        self.log = log
        environment = dict(os.environ) | {"LLM_DECODER_API_KEY": "secret"}
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, *command, *SMALL], cwd=ROOT, stderr=stderr, env=environment, start_new_session=True
            )
        self.url = self._wait()

    def _wait(self) -> str:
        import time

        until_s = time.monotonic() + WAIT_S
        while time.monotonic() < until_s and self.process.poll() is None:
            said = self.log.read_text()
            found = re.search(r"http://127\.0\.0\.1:\d+", said)
            if found and " ready " in said:
                return found[0]
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def ask(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, KEY | {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def end(self) -> None:
        self.process.terminate()
        assert self.process.wait(60) == 0, self.log.read_text()
        assert "Traceback" not in self.log.read_text()


@dataclass
class Servers:
    stories: Server
    tools: Server

    def judged_by(self, program: str, *arguments: str, scratch: Path) -> Any:
        """What a client's program has found."""
        assert PYTHON.exists(), f"need the clients' environment, got no {PYTHON}; run make judge"
        command = [str(PYTHON), str(HERE / "clients" / program), self.stories.url, self.tools.url, *arguments]
        environment = {**os.environ, **OFFLINE, "HOME": str(scratch)}
        for name in ("PYTHONPATH", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
            environment.pop(name, None)
        ran = subprocess.run(
            command, cwd=scratch, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False
        )
        assert ran.returncode == 0, ran.stderr[-4000:]
        return json.loads(ran.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("servers")
    caller = make_checkpoint(folder / "caller", chat_template=TOOLS_TEMPLATE, max_position_embeddings=4096)
    serve = ["-m", "llm_decoder", "serve"]
    stories = Server(folder / "stories.log", *serve)
    tools = Server(folder / "tools.log", *serve, "--model", str(caller), "--served-model-name", TOOLS_MODEL)
    yield Servers(stories, tools)
    stories.end()
    tools.end()


@pytest.fixture(scope="module")
def chat_text(servers: Servers) -> str:
    """What the model of stories answers to CHAT."""
    asked = {"messages": CHAT, "max_tokens": N_TOKENS, "temperature": 0}
    text: str = servers.stories.ask("/v1/chat/completions", asked)["choices"][0]["message"]["content"]
    assert len(text) > N_TOKENS
    return text


@pytest.fixture(scope="module")
def completion_text(servers: Servers) -> str:
    asked = {"prompt": PROMPT, "max_tokens": N_TOKENS, "temperature": 0}
    text: str = servers.stories.ask("/v1/completions", asked)["choices"][0]["text"]
    assert len(text) > N_TOKENS
    return text


@pytest.fixture(scope="module")
def vectors(servers: Servers) -> Any:
    """Of TEXTS, as floats."""
    answer = servers.stories.ask("/v1/embeddings", {"input": TEXTS, "encoding_format": "float"})
    return [entry["embedding"] for entry in answer["data"]]


def assert_is_a_call(name: str, arguments: Any) -> None:
    assert name == "weather"
    assert set(arguments) == {"city", "days"}
    assert arguments["city"] in ("Paris", "Rome")
    assert arguments["days"] in (1, 2, 3)


def test_litellm_is_served(
    servers: Servers, chat_text: str, completion_text: str, vectors: Any, tmp_path: Path
) -> None:
    found = servers.judged_by("litellm_client.py", scratch=tmp_path)
    assert found["chat"]["text"] == chat_text
    assert found["chat"]["finish_reason"] == "length"
    n_prompt, n_completion, n_total = found["chat"]["n_tokens"]
    assert (n_completion, n_total) == (N_TOKENS, n_prompt + N_TOKENS)
    assert found["streamed"] == {"text": chat_text, "rebuilt": chat_text, "n_completion_tokens": N_TOKENS}
    assert found["asyncio"] == {"texts": [chat_text] * 4, "streamed": chat_text}
    assert found["completion"] == {"text": completion_text, "streamed": completion_text}
    calls = found["calls"]
    assert_is_a_call(calls["name"], json.loads(calls["arguments"]))
    assert calls["streamed"] == [calls["name"], calls["arguments"]]
    assert calls["finish_reason"] == "tool_calls"
    assert 0 < calls["n_tokens_after"] <= N_TOKENS
    np.testing.assert_array_equal(np.float32(found["vectors"]), np.float32(vectors))
    errors = found["errors"]
    assert {name: (error["kind"], error["status"]) for name, error in errors.items()} == {
        "bad_field": ("BadRequestError", 400),
        "no_such_model": ("NotFoundError", 404),
        "wrong_key": ("AuthenticationError", 401),
        "too_long": ("BadRequestError", 400),  # it looks for other servers' words, not for the code
        "no_tools": ("BadRequestError", 400),
        "nobody": ("InternalServerError", 500),  # its own word for a server that nobody is at
    }
    assert "[temperature]" in errors["bad_field"]["text"]
    assert "n_ctx = 1024" in errors["too_long"]["text"]


def test_langchain_is_served(
    servers: Servers, chat_text: str, completion_text: str, vectors: Any, tmp_path: Path
) -> None:
    found = servers.judged_by("langchain_client.py", scratch=tmp_path)
    chat = found["chat"]
    assert (chat["text"], chat["streamed"], chat["batch"]) == (chat_text, chat_text, [chat_text] * 3)
    assert chat["n_parts"] > 3
    assert (chat["finish_reason"], chat["logprobs"]) == ("length", N_TOKENS)
    assert chat["n_tokens"]["output_tokens"] == N_TOKENS
    counts = ("input_tokens", "output_tokens", "total_tokens")
    assert [chat["streamed_n_tokens"][name] for name in counts] == [chat["n_tokens"][name] for name in counts]
    assert found["asyncio"] == {"text": chat_text, "streamed": chat_text, "batch": [chat_text] * 3}
    text = completion_text
    assert found["completion"] == {"text": text, "streamed": text, "batch": [text] * 3}
    calls = found["calls"]
    assert_is_a_call(calls["name"], calls["arguments"])
    assert calls["streamed"] == [calls["name"], calls["arguments"]]
    assert 0 < calls["n_tokens_after"] <= N_TOKENS
    assert 0 < calls["n_tokens_free"] <= N_TOKENS
    for method in ("json_schema", "function_calling"):
        assert_is_a_call("weather", found["forms"][method])
    assert found["forms"]["error"] is None
    np.testing.assert_array_equal(np.float32(found["vectors"]["documents"]), np.float32(vectors))
    np.testing.assert_array_equal(np.float32(found["vectors"]["query"]), np.float32(vectors[0]))
    assert found["vectors"]["n_many"] == 1100  # it sends a thousand in a request
    assert found["vectors"]["are_their_own"] == [True] * 5
    assert "[temperature]" in found["error"]


def test_llama_index_is_served(servers: Servers, chat_text: str, completion_text: str, tmp_path: Path) -> None:
    found = servers.judged_by("llama_index_client.py", scratch=tmp_path)
    assert found["completion"] == {"text": completion_text, "streamed": completion_text}
    assert found["chat"] == found["asyncio"] == {"text": chat_text, "streamed": chat_text}


def test_the_evaluation_harness_finds_the_numbers_of_the_model(
    servers: Servers, chat_text: str, tmp_path: Path
) -> None:
    found = servers.judged_by("lm_eval_client.py", str(tmp_path), scratch=tmp_path)
    documents = found["documents"]
    greedy = SamplingParams(max_tokens=N_TOKENS, temperature=0.0)
    with LLM(kv_cache_bytes=32 << 20, threads=1) as llm:
        expected = [[log_likelihood(llm, entry["text"], choice) for choice in entry["choices"]] for entry in documents]
        bare = [llm.tokenizer.encode(entry["text"], add_special_tokens=False) for entry in documents]
        stories = [llm.generate(tokens, greedy)[0].outputs[0].text for tokens in bare]
        chats = [llm.chat([{"role": "user", "content": entry["text"]}], greedy).outputs[0].text for entry in documents]
    for answered in (found["completions"]["choices"], found["in_batches"]["choices"]):
        for of_document, of_ours in zip(answered, expected, strict=True):
            for ((logprob, is_greedy),), (our_logprob, is_ours_greedy) in zip(of_document, of_ours, strict=True):
                assert math.isclose(logprob, our_logprob, rel_tol=1e-6)
                assert is_greedy == is_ours_greedy
    assert [texts for ((texts,),) in found["completions"]["stories"]] == stories
    assert [texts for ((texts,),) in found["chat"]["stories"]] == chats


def log_likelihood(llm: LLM, text: str, continuation: str) -> tuple[float, bool]:
    """(The log probability of a continuation, whether each of its tokens is the likeliest), as the harness divides the
    two: by the tokens of `text` alone."""
    tokens = llm.tokenizer.encode(text + continuation, add_special_tokens=False)
    n_text = len(llm.tokenizer.encode(text, add_special_tokens=False))
    asked = SamplingParams(max_tokens=0, prompt_logprobs=1)
    entries = llm.generate(tokens, asked)[0].prompt_logprobs
    assert entries is not None
    of_continuation = [entry for entry in entries[n_text:] if entry is not None]
    return sum(entry.logprob for entry in of_continuation), all(entry.rank == 1 for entry in of_continuation)


def test_what_the_page_of_clients_shows_runs(servers: Servers, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(snippets) == 4
    program = "\n".join([*snippets, "print('{}')"])
    program = program.replace("http://127.0.0.1:8000", servers.stories.url).replace('"none"', '"secret"')
    (tmp_path / "page.py").write_text(program, encoding="utf-8")
    assert servers.judged_by(str(tmp_path / "page.py"), scratch=tmp_path) == {}


# -- schemathesis: what the document says, and bodies that are wrong in every way


# A request that follows its schema may be refused all the same: tokens beyond the vocabulary, a thing said in two ways.
NOT_TOLD_BY_A_SCHEMA = "positive_data_acceptance"
FUZZING = ["--phases", "examples,coverage,fuzzing", "--mode", "all", "--max-examples", "8", "--seed", "1"]
FUZZING += ["--no-shrink", "--continue-on-failure", "--suppress-health-check", "all", "--request-timeout", "60"]
FUZZING += ["--exclude-checks", NOT_TOLD_BY_A_SCHEMA, "--generation-database", "none", "--no-color"]
SMALL_ANSWERS = ["--header", "Authorization: Bearer secret"]


@pytest.mark.parametrize("command", [["-m", "llm_decoder", "serve"], ["web/app.py"]], ids=["fastapi", "flask"])
def test_schemathesis_finds_no_fault(command: list[str], tmp_path: Path) -> None:
    assert PYTHON.exists(), f"need the clients' environment, got no {PYTHON}; run make judge"
    server = Server(tmp_path / "log", *command)
    ran = subprocess.run(
        [PYTHON, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", *FUZZING, *SMALL_ANSWERS],
        cwd=tmp_path,
        env={**os.environ, **OFFLINE, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert int(re.findall(r"(\d+) generated", ran.stdout)[-1]) > 1000
    assert server.ask("/v1/completions", {"prompt": PROMPT, "max_tokens": 2})["usage"]["completion_tokens"] == 2
    server.end()
    assert not re.search(r"status=5\d\d", server.log.read_text())
