"""generate --url and chat --url: a server answers, and no model is loaded here."""

from __future__ import annotations

import itertools
import json
import socket
import time
from collections.abc import Iterator

import pytest
from cli_fakes import Program
from scripted_server import ScriptedServer, chat, completion, of_json, refusal, stream

from llm_decoder.cli import _remote
from llm_decoder.cli._remote import checked_url, fields_of
from llm_decoder.sampling import SamplingParams


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    yield scripted
    scripted.close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client would have slept."""
    slept: list[float] = []
    monkeypatch.setattr(_remote.time, "sleep", slept.append)
    return slept


def test_generate_writes_what_the_server_streams_and_loads_no_model(cli: Program, server: ScriptedServer) -> None:
    server.replies = [stream(*completion("You", " said", " Hello."))]
    ran = cli("generate", "Hello", "--url", server.url, "--max-tokens", "7", "--temperature", "0.5", "--stop", "x")
    assert (ran.code, ran.out) == (0, "You said Hello.\n")
    assert "3 tokens in" in ran.err
    assert "prompt 3 tokens" in ran.err
    assert not cli.opened
    asked = server.asked[0]
    assert asked.path == "/v1/completions"
    assert asked.body == {
        "model": "scripted",
        "prompt": "Hello",
        "max_tokens": 7,
        "temperature": 0.5,
        "stop": ["x"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_the_url_may_end_as_clients_of_openai_write_it(cli: Program, server: ScriptedServer, end: str) -> None:
    server.replies = [stream(*completion("Yes"))]
    assert cli("generate", "Hello", "--url", server.url + end).out == "Yes\n"


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "http://a:b@host", "http://host:99999"])
def test_what_is_no_url_is_wrong_usage(cli: Program, url: str) -> None:
    ran = cli("generate", "Hello", "--url", url)
    assert (ran.code, ran.out) == (2, "")
    assert "--url" in ran.err


def test_a_url_keeps_its_path() -> None:
    assert checked_url("https://host/models/v1/") == "https://host/models"


def test_generate_json_has_the_request_output_of_several_answers(cli: Program, server: ScriptedServer) -> None:
    one, two, usage = completion("One", "Two", prompt_token_ids=[7, 8])
    two["choices"][0] |= {"index": 1, "finish_reason": "length"}
    server.replies = [stream(one, two, usage)]
    ran = cli("generate", "Hello", "--json", "--n", "2", "--url", server.url)
    output = json.loads(ran.out)
    assert output["prompt"] == "Hello"
    assert output["prompt_token_ids"] == [7, 8]
    assert [answer["text"] for answer in output["outputs"]] == ["One", "Two"]
    assert output["outputs"][1]["finish_reason"] == "length"
    assert output["outputs"][0]["cumulative_logprob"] is None
    assert output["metrics"]["n_prompt_tokens"] == 3
    assert server.asked[0].body["n"] == 2


def test_log_probabilities_come_back_by_token_id(cli: Program, server: ScriptedServer) -> None:
    columns = {
        "tokens": ["token_id:5"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"token_id:9": -0.25, "token_id:5": -0.5}],
    }
    server.replies = [stream(*completion("A", logprobs=columns))]
    output = json.loads(cli("generate", "Hello", "--json", "--logprobs", "2", "--url", server.url).out)
    answer = output["outputs"][0]
    assert answer["logprobs"] == [{"token_id": 5, "logprob": -0.5, "rank": 2, "top": [[9, -0.25], [5, -0.5]]}]
    assert answer["cumulative_logprob"] == -0.5


def test_log_probabilities_of_a_prompt_are_asked_for_in_one_piece(cli: Program, server: ScriptedServer) -> None:
    entry = {"8": {"logprob": -2.0, "rank": 3}, "1": {"logprob": -0.1, "rank": 1}}
    choice = {
        "index": 0,
        "text": "A",
        "token_ids": [1],
        "finish_reason": "length",
        "prompt_token_ids": [7, 8],
        "prompt_logprobs": [None, entry],
    }
    server.replies = [of_json({"choices": [choice], "usage": {"prompt_tokens": 2, "completion_tokens": 1}})]
    output = json.loads(cli("generate", "Hello", "--json", "--prompt-logprobs", "1", "--url", server.url).out)
    assert "stream" not in server.asked[0].body
    assert output["prompt_logprobs"][0] is None
    assert output["prompt_logprobs"][1]["token_id"] == 8
    assert output["prompt_logprobs"][1]["rank"] == 3


def test_only_what_was_asked_for_is_sent() -> None:
    assert fields_of(SamplingParams(max_tokens=None), is_chat=False) == {}
    params = SamplingParams(max_tokens=5, n=2, logit_bias={3: 1.5}, structured_outputs={"regex": "a+"}, logprobs=2)
    assert fields_of(params, is_chat=False) == {
        "max_tokens": 5,
        "n": 2,
        "logit_bias": {"3": 1.5},
        "structured_outputs": {"regex": "a+"},
        "logprobs": 2,
    }
    assert fields_of(SamplingParams(max_tokens=None, logprobs=2), is_chat=True) == {"logprobs": True, "top_logprobs": 2}


def test_a_chat_at_a_server_grows_and_shows_its_name(cli: Program, server: ScriptedServer) -> None:
    server.replies = [stream(*chat("Hel", "lo.", reasoning="Well")), stream(*chat("Again."))]
    ran = cli("chat", "--url", server.url, "--system", "Be brief.", stdin="Hi\nMore\n")
    assert (ran.code, ran.out) == (0, "Hello.\nAgain.\n")
    assert f"scripted at {server.url}" in ran.err
    assert [asked.path for asked in server.asked] == ["/v1/chat/completions"] * 2
    assert server.asked[1].body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "More"},
    ]


def test_a_chat_with_json_tells_reasoning_apart(cli: Program, server: ScriptedServer) -> None:
    server.replies = [stream(*chat("Hello.", reasoning="Well"))]
    answer = json.loads(cli("chat", "--json", "--url", server.url, stdin="Hi\n").out)["outputs"][0]
    assert answer["text"] == "Hello."
    assert answer["message"] == {"content": "Hello.", "reasoning_content": "Well", "tool_calls": []}


def test_a_chat_that_outgrows_the_server_s_context_loses_its_oldest_turns(cli: Program, server: ScriptedServer) -> None:
    too_long = refusal(400, "[messages] too long", code="context_length_exceeded", param="messages")
    server.replies = [stream(*chat("A")), stream(*chat("B")), too_long, stream(*chat("C"))]
    ran = cli("chat", "--url", server.url, "--system", "S", stdin="1\n2\n3\n")
    assert (ran.code, ran.out) == (0, "A\nB\nC\n")
    assert "oldest 2 messages are dropped" in ran.err
    assert [message["content"] for message in server.asked[3].body["messages"]] == ["S", "2", "B", "3"]


def test_a_single_turn_that_is_too_long_is_an_error(cli: Program, server: ScriptedServer) -> None:
    server.replies = [refusal(400, "[messages] too long", code="context_length_exceeded", param="messages")]
    ran = cli("chat", "--url", server.url, stdin="1\n")
    assert ran.code == 1
    assert "too long" in ran.err
    assert len(server.asked) == 1


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_a_server_that_is_not_there_is_an_error_with_a_remedy(cli: Program, verb: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    ran = cli(verb, *(["Hello"] if verb == "generate" else []), "--url", url, stdin="Hi\n")
    assert ran.code == 1
    assert f"nothing answers at {url}" in ran.err
    assert "llm-decoder serve" in ran.err


def test_a_wrong_key_is_told_with_the_flag_that_mends_it(cli: Program, server: ScriptedServer) -> None:
    server.models = [refusal(401, "[authorization] need a key")]
    ran = cli("generate", "Hello", "--url", server.url)
    assert ran.code == 1
    assert "--api-key" in ran.err
    assert "need a key" in ran.err


@pytest.mark.parametrize("how", ["flag", "variable", "list"])
def test_the_key_goes_with_every_request(
    cli: Program, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    server.replies = [stream(*completion("Yes"))]
    if how != "flag":
        monkeypatch.setenv("LLM_DECODER_API_KEY", "secret" if how == "variable" else '["secret", "other"]')
    assert cli("generate", "Hello", "--url", server.url, *(["--api-key", "secret"] if how == "flag" else [])).code == 0
    assert {asked.headers["authorization"] for asked in (*server.looked, *server.asked)} == {"Bearer secret"}


def test_a_model_that_the_server_does_not_have_is_an_error(cli: Program, server: ScriptedServer) -> None:
    server.replies = [refusal(404, "there is no model 'x'; there is 'scripted'", code="model_not_found")]
    ran = cli("generate", "Hello", "--url", server.url, "--model", "x")
    assert ran.code == 1
    assert "there is 'scripted'" in ran.err
    assert server.asked[0].body["model"] == "x"
    assert not server.looked


def test_a_place_that_is_not_the_api_is_not_the_model_s_fault(cli: Program, server: ScriptedServer) -> None:
    missing = refusal(404, "[path] there is no route /v1/models; /docs lists them", code="no_such_route")
    server.models = [missing]
    server.replies = [missing]
    ran = cli("generate", "Hello", "--url", server.url)
    assert ran.code == 1
    assert "error: [--url] " in ran.err
    assert "has no /v1/completions" in ran.err


def test_a_route_that_is_missing_is_an_error(cli: Program, server: ScriptedServer) -> None:
    server.models = [of_json({}, 404)]
    server.replies = [of_json({}, 404)]
    ran = cli("generate", "Hello", "--url", server.url)
    assert ran.code == 1
    assert "has no /v1/completions" in ran.err


def test_a_model_of_the_environment_is_none_of_the_server_s(
    cli: Program, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_DECODER_MODEL", "/a/folder/here")
    server.replies = [stream(*completion("Yes"))]
    cli("generate", "Hello", "--url", server.url)
    assert server.asked[0].body["model"] == "scripted"


@pytest.mark.parametrize("flag", [("--threads", "2"), ("--offline",), ("--quantization", "int8")])
def test_flags_of_a_model_that_is_loaded_here_do_not_go_with_a_url(cli: Program, flag: tuple[str, ...]) -> None:
    ran = cli("generate", "Hello", "--url", "http://127.0.0.1:1", *flag)
    assert ran.code == 2
    assert flag[0] in ran.err


def test_a_full_server_is_asked_again_after_the_time_it_names(
    cli: Program, server: ScriptedServer, waits: list[float]
) -> None:
    full = refusal(429, "[server] 4 requests wait", code="queue_full", retry_after="3")
    server.replies = [full, full, stream(*completion("Yes"))]
    ran = cli("generate", "Hello", "--url", server.url)
    assert (ran.code, ran.out) == (0, "Yes\n")
    assert waits == [3.0, 3.0]
    assert ran.err.count("4 requests wait") == 1


def test_a_model_that_is_still_loaded_is_waited_for(cli: Program, server: ScriptedServer, waits: list[float]) -> None:
    server.models = [refusal(503, "the model is being loaded", code="loading", retry_after="2"), *server.models]
    server.replies = [stream(*completion("Yes"))]
    ran = cli("generate", "Hello", "--url", server.url)
    assert (ran.code, ran.out, waits) == (0, "Yes\n", [2.0])
    assert "the model is being loaded Waiting" in ran.err


@pytest.mark.parametrize("headers", [{}, {"retry_after": "86400"}, {"retry_after": "nonsense"}])
def test_a_server_that_names_no_time_or_too_long_a_one_is_not_waited_for(
    cli: Program, server: ScriptedServer, waits: list[float], headers: dict[str, str]
) -> None:
    server.replies = [refusal(429, "come back tomorrow", **headers)]
    ran = cli("generate", "Hello", "--url", server.url)
    assert (ran.code, waits) == (1, [])
    assert "come back tomorrow" in ran.err


def test_a_date_is_a_time_to_come_back_too(cli: Program, server: ScriptedServer, waits: list[float]) -> None:
    server.replies = [refusal(503, "soon", retry_after="Thu, 01 Jan 1970 00:00:00 GMT"), stream(*completion("Yes"))]
    assert cli("generate", "Hello", "--url", server.url).code == 0
    assert waits == [_remote._SHORTEST_WAIT_S]


def test_a_field_that_the_server_refuses_is_wrong_usage_of_its_flag(cli: Program, server: ScriptedServer) -> None:
    server.replies = [refusal(400, "[stop_token_ids] must be below 100", param="stop_token_ids")]
    ran = cli("generate", "Hello", "--url", server.url, "--stop-token-ids", "500")
    assert ran.code == 2
    assert "--stop-token-ids" in ran.err


def test_a_field_that_the_server_would_ignore_is_refused(cli: Program, server: ScriptedServer) -> None:
    server.replies = [stream(*completion("Yes"), headers={"x-ignored-fields": "return_token_ids, bad_token_ids"})]
    ran = cli("generate", "Hello", "--url", server.url, "--bad-token-ids", "5")
    assert (ran.code, ran.out) == (2, "\n")
    assert "--bad-token-ids" in ran.err
    assert cli("generate", "Hello", "--url", server.url).code == 0


def test_a_stream_that_breaks_off_is_an_error_after_what_came(cli: Program, server: ScriptedServer) -> None:
    server.replies = [stream(*completion("You", " said")[:1], is_done=False)]
    ran = cli("generate", "Hello", "--url", server.url)
    assert (ran.code, ran.out) == (1, "You\n")
    assert "broke the answer off" in ran.err
    server.replies = [stream(*completion("You", " said")[:1], is_done=False, is_cut=True)]
    assert cli("generate", "Hello", "--url", server.url).code == 1


def test_an_error_in_a_stream_is_told(cli: Program, server: ScriptedServer) -> None:
    server.replies = [stream({"error": {"message": "it \x1b[31mfailed", "code": "failed"}})]
    ran = cli("generate", "Hello", "--url", server.url)
    assert ran.code == 1
    assert "it [31mfailed" in ran.err  # the escape character is gone


@pytest.mark.parametrize("chunk", [[], {"choices": [{}]}, {"choices": 5}, "text"])
def test_what_is_no_answer_of_the_api_is_an_error(cli: Program, server: ScriptedServer, chunk: object) -> None:
    server.replies = [stream(chunk)]
    ran = cli("generate", "Hello", "--url", server.url)
    assert ran.code == 1
    assert "as the OpenAI API has them" in ran.err


def test_ctrl_c_ends_the_server_s_answer(cli: Program, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = ({"choices": [{"index": 0, "text": "a", "token_ids": [1]}]} for _ in itertools.count())
    server.replies = [stream(is_done=False)]
    server.replies[0].pieces = (b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in endless)
    server.replies[0].before = lambda index: time.sleep(0.001)

    def interrupt(answer: object, choice: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_remote.GatheredAnswers, "_take", interrupt)
    assert cli("generate", "Hello", "--url", server.url).code == 130
    assert server.is_cut.wait(10)
