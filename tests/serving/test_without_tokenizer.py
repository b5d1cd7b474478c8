"""A model that came without a tokenizer: token ids in and out, and a 400 for what needs text."""

from pathlib import Path

import pytest
from direct import DirectServer, ready_service
from fakes import FakeBackend

from llm_decoder.engine import Engine
from llm_decoder.llm import LLM
from llm_decoder.no_tokenizer import NoTokenizer

IDS = [1, 2, 3]
CHAT = [{"role": "user", "content": "a"}]


@pytest.fixture
def server():
    none = NoTokenizer(Path("/somewhere/secret"))
    with LLM.over(Engine(FakeBackend, none), none, "ids") as llm:
        yield DirectServer(ready_service(llm))


def test_completions_go_on_with_token_ids(server):
    body = {"prompt": [IDS], "echo": True, "logprobs": 1, "max_tokens": 2, "return_token_ids": True}
    status, answer, _ = server.post("/v1/completions", body | {"add_special_tokens": False})
    (choice,) = answer["choices"]
    assert (status, choice["text"], len(choice["token_ids"])) == (200, "", 2)
    assert choice["logprobs"]["tokens"] == [f"token_id:{id_}" for id_ in (*IDS, *choice["token_ids"])]


def test_embeddings_of_token_ids(server):
    assert len(server.post("/v1/embeddings", {"input": IDS})[1]["data"][0]["embedding"]) > 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/completions", {"prompt": "a", "add_special_tokens": False}),
        ("/v1/completions", {"prompt": IDS, "stop": "a"}),
        ("/v1/chat/completions", {"messages": CHAT}),
        ("/chat", {"messages": CHAT}),
        ("/generate", {"prompt": "a"}),
        ("/v1/embeddings", {"input": "a"}),
        ("/tokenize", {"prompt": "a"}),
        ("/tokenize", {"messages": CHAT}),
        ("/detokenize", {"tokens": IDS}),
    ],
)
def test_what_needs_text_is_refused_and_tells_no_path(server, path, body):
    status, answer, _ = server.post(path, body)
    assert status == 400
    assert "token ids" in answer["error"]["message"] or "stop_token_ids" in answer["error"]["message"]
    assert "secret" not in answer["error"]["message"]
