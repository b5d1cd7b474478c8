import json
import logging

import pytest

ROUTES = ["/v1/completions", "/v1/chat/completions", "/generate", "/stream", "/chat", "/generate_batch"]


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"{}x",
        b"[" * 100_000,
        b'{"prompt":' * 100_000,
        b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"prompt":"\\ud800"}',
        b'{"prompt":"\xed\xa0\x80"}',
        b'{"prompt":"\xff"}',
        '{"prompt":"a"}'.encode("utf-16"),
        b'{"prompt":"a","prompt":"b"}',
        b'{"prompt":"a","stream_options":{"include_usage":true,"include_usage":false}}',
        b'{"prompt":"a","temperature":NaN}',
        b'{"prompt":"a","temperature":Infinity}',
        b'{"prompt":"a","temperature":-1e999}',
        b'{"prompt":"a","json_schema":{"const":1e999}}',
        b'{"prompt":"a","max_tokens":' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_json_object_is_a_400_that_says_so(server, path, body):
    status, answer, _ = server.post(path, body)
    assert status == 400
    assert answer["error"]["code"] == "invalid_json"
    assert len(answer["error"]["message"]) < 300


@pytest.mark.parametrize(
    "given", ["text/plain", "", "application/x-www-form-urlencoded", "application/json; charset=utf-16", "json\r\nx"]
)
def test_another_content_type_is_refused(server, given):
    status, answer, _ = server.post("/v1/completions", {"prompt": "a"}, **{"content-type": given})
    assert status == 400
    assert answer["error"]["param"] == "content-type"


@pytest.mark.parametrize(
    "given", ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"']
)
def test_json_by_any_of_its_spellings_is_taken(server, given):
    status, _, _ = server.post("/v1/completions", {"prompt": "a", "max_tokens": 1}, **{"content-type": given})
    assert status == 200


@pytest.mark.parametrize(
    "field",
    [
        {"prompt": None},
        {"prompt": ""},
        {"prompt": []},
        {"prompt": [""]},
        {"prompt": [[]]},
        {"prompt": ["a", 5]},
        {"prompt": [5, "a"]},
        {"prompt": [[1], "a"]},
        {"prompt": [[1, "a"]]},
        {"prompt": [True]},
        {"prompt": [[True]]},
        {"prompt": [1.5]},
        {"prompt": [-1]},
        {"prompt": [[10**30]]},
        {"prompt": [4096]},
        {"prompt": {"text": "a"}},
        {"prompt": ["a"] * 257},
        {"max_tokens": -1},
        {"max_tokens": "5"},
        {"max_tokens": 5.5},
        {"max_tokens": True},
        {"max_tokens": 10**12},
        {"n": 0},
        {"n": 10**9},
        {"n": 129},
        {"temperature": "hot"},
        {"temperature": -0.1},
        {"temperature": 101},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -2},
        {"min_p": 2},
        {"presence_penalty": 3},
        {"frequency_penalty": -3},
        {"repetition_penalty": 0},
        {"repeat_penalty": 0},
        {"seed": 1 << 64},
        {"stop": [""]},
        {"stop": 5},
        {"stop": ["a"] * 65},
        {"stop": "a" * 1025},
        {"stop_token_ids": [-1]},
        {"stop_token_ids": [4096]},
        {"stop_token_ids": [0] * 65_537},
        {"allowed_token_ids": []},
        {"allowed_token_ids": [10**12]},
        {"logit_bias": {"-1": 1}},
        {"logit_bias": {"4096": 1}},
        {"logit_bias": {"x": 1}},
        {"logit_bias": {"1": 101}},
        {"logit_bias": {"1": "a"}},
        {"logit_bias": {str(i): 0 for i in range(4097)}},
        {"bad_words": [""]},
        {"bad_words": ["a"] * 257},
        {"logprobs": 21},
        {"logprobs": -1},
        {"logprobs": True},
        {"prompt_logprobs": -1},
        {"prompt_logprobs": 4096},
        {"min_tokens": 20, "max_tokens": 5},
        {"stream": "yes"},
        {"stream_options": {"include_usage": 1}},
        {"cache_salt": "a" * 257},
        {"best_of": 0},
        {"best_of": 65},
        {"best_of": True},
        {"best_of": 2, "n": 3},
        {"request_id": "a\r\nb"},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        {"response_format": {"type": "json_object"}, "guided_regex": "a"},
        {"guided_regex": "a", "structured_outputs": {"regex": "b"}},
        {"structured_outputs": {}},
        {"structured_outputs": {"regex": "a", "choice": ["b"]}},
        {"structured_outputs": {"choice": []}},
    ],
    ids=str,
)
def test_a_bad_field_is_a_400_that_names_it(server, field):
    status, answer, _ = server.post("/v1/completions", {"prompt": "a"} | field)
    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["param"].split(".")[0] in {*field, "guided_regex", "structured_outputs", "prompt_token_ids"}
    assert len(json.dumps(answer)) < 600


@pytest.mark.parametrize(
    "field",
    [
        {"suffix": "end"},
        {"truncate_prompt_tokens": 5},
        {"prompt_embeds": "AAAA"},
    ],
    ids=str,
)
def test_what_is_not_in_this_version_is_a_400_that_says_what_to_do(server, field):
    status, answer, _ = server.post("/v1/completions", {"prompt": "a"} | field)
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, "unsupported", *field)
    assert ";" in answer["error"]["message"] or "prompts are" in answer["error"]["message"]


def test_values_that_ask_for_nothing_are_taken(server):
    nothing = {
        "use_beam_search": False,
        "beam_width": 1,
        "length_penalty": 1.0,
        "best_of": 1,
        "suffix": "",
        "priority": 0,
        "early_stopping": False,
        "diversity_penalty": 0.0,
        "user": "somebody",
        "store": True,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "return_progress": True,
        "response_format": {"type": "text"},
        "stop": None,
        "max_tokens": 1.0,
        "logit_bias": {},
        "spaces_between_special_tokens": True,
    }
    status, answer, headers = server.post("/v1/completions", {"prompt": "a"} | nothing)
    assert status == 200, answer
    assert "x-ignored-fields" not in headers


def test_null_is_as_good_as_absent(server):
    from llm_decoder.serving.schemas_completions import CompletionRequest

    nulls = dict.fromkeys(set(CompletionRequest.model_fields) - {"prompt"})
    status, answer, headers = server.post("/v1/completions", {"prompt": "a", "seed": 1} | nulls | {"seed": 1})
    assert (status, headers) == (200, {})
    assert answer["choices"] == server.post("/v1/completions", {"prompt": "a", "seed": 1})[1]["choices"]


def test_fields_that_nobody_knows_are_told_in_a_header_and_the_log(server, caplog):
    body = {
        "prompt": "a",
        "max_tokens": 1,
        "mirostat": 2,
        "stream_options": {"x": 1},
        "ab\r\nset-cookie: c": 1,
        "no": None,
    }
    with caplog.at_level(logging.WARNING, "llm_decoder"):
        status, _, headers = server.post("/v1/completions", body)
    assert status == 200
    assert headers["x-ignored-fields"] == "mirostat,ab__set-cookie__c,stream_options.x"
    assert "request-1" in caplog.text
    assert "mirostat" in caplog.text
    for messages in ([{"role": "user", "content": "a", "mood": "x"}],):
        _, _, headers = server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 1, "tfs_z": 1})
        assert headers["x-ignored-fields"] == "tfs_z,messages.mood"


def test_more_answers_than_a_server_gives_are_refused(storyteller):
    from direct import DirectServer, ready_service

    from llm_decoder.serving.settings import ServerSettings

    server = DirectServer(ready_service(storyteller, ServerSettings(max_prompts=2, max_n=3, max_answer_tokens=2000)))
    for body, param in (
        ({"prompt": ["a"] * 3}, "prompt"),
        ({"prompt": "a", "n": 4}, "n"),
        ({"prompt": ["a"] * 2, "n": 3, "max_tokens": 500}, "max_tokens"),
        ({"prompt": "a", "n": 3, "n_predict": -1}, "max_tokens"),
    ):
        status, answer, _ = server.post("/v1/completions", body)
        assert (status, answer["error"]["param"]) == (400, param)
    assert server.post("/v1/completions", {"prompt": ["a"] * 2, "n": 3, "max_tokens": 2})[0] == 200


def test_while_the_model_loads_requests_are_told_to_come_again():
    from direct import DirectServer

    from llm_decoder.serving.service import Service

    server = DirectServer(Service(lambda: None))
    for path, body in (
        ("/v1/completions", {"prompt": "a"}),
        ("/chat", {"messages": [{"role": "user", "content": "a"}]}),
    ):
        status, answer, headers = server.post(path, body)
        assert (status, answer["error"]["type"]) == (503, "unavailable_error")
        assert int(headers["retry-after"]) > 0
    assert server.get("/v1/models")[0] == 503


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [0] * 1024}] * 2500}),
        ("/v1/completions", {"prompt": "a", "logit_bias": {f"x{i}": 1 for i in range(400_000)}}),
        ("/detokenize", {"tokens": ["a"] * 1_500_000}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_large_bad_body_gives_one_error_and_not_one_for_each_item(server, path, body, monkeypatch):
    from llm_decoder.serving import parse

    n_errors = []
    refusal = parse._refusal
    monkeypatch.setattr(parse, "_refusal", lambda error: n_errors.append(error.error_count()) or refusal(error))
    assert server.post(path, body)[0] == 400
    assert n_errors[0] <= 4


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"null", "[body] need a JSON object, got null"),
        (b"[1]", "[body] need a JSON object, got a list"),
        (b'{"prompt":"a","max_tokens":true}', "got true"),
        (b'{"prompt":null}', "got null"),
    ],
)
def test_what_was_got_is_told_in_the_words_of_json(server, body, said):
    assert server.post("/v1/completions", body)[1]["error"]["message"].endswith(said)


def test_a_type_that_is_refused_is_told_as_it_came(server):
    status, answer, _ = server.post(
        "/generate", {"prompt": "a"}, **{"content-type": "application/x-www-form-urlencoded"}
    )
    assert status == 400
    assert answer["error"]["message"].endswith("got application/x-www-form-urlencoded")
