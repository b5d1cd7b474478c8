"""Searches over HTTP: three spellings of one thing, what choices have of it, streams and their named events."""

import pytest
from direct import DirectServer, ready_service
from fakes import ByteTokenizer, make_engine
from scripted_model import ScriptedModel

from llm_decoder import LLM, InvalidRequestError, ModelNotFoundError, SearchParams, companions
from llm_decoder.serving.settings import ServerSettings

PROMPT = "Once upon a time"
CHAT = [{"role": "user", "content": "Tell me a story about a dog."}]
SCORES = ("cumulative_logprob", "beam_score", "rerank_score", "final_score", "beam_rank", "tree_leaf")


def deltas(events, index=0):
    """The text of one choice, joined."""
    choices = [choice for event in events for choice in event.get("choices", []) if "event" not in event]
    return "".join(
        choice.get("text") or choice.get("delta", {}).get("content") or ""
        for choice in choices
        if choice["index"] == index
    )


def named(events, name):
    return [event for event in events if event.get("event") == name]


@pytest.mark.parametrize(
    ("asked", "params"),
    [
        ({"beam_width": 4}, {"width": 4}),
        ({"beam_width": 4, "n": 3}, {"width": 4, "n": 3}),
        ({"use_beam_search": True, "n": 3}, {"width": 3, "n": 3}),
        ({"use_beam_search": True, "beam_width": 4, "n": 2}, {"width": 4, "n": 2}),
        ({"use_beam_search": True}, {"width": 1}),
        ({"num_beams": 4, "num_return_sequences": 2}, {"width": 4, "n": 2}),
        (
            {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.5, "n": 4},
            {"width": 4, "n": 4, "groups": 2, "diversity_penalty": 1.5},
        ),
        (
            {"num_beams": 4, "length_penalty": -1, "early_stopping": True},
            {"width": 4, "length_penalty": -1, "early_stopping": True},
        ),
        ({"num_beams": 3, "early_stopping": "never"}, {"width": 3, "early_stopping": "never"}),
        ({"beam_width": 4, "temperature": 0.8, "seed": 3}, {"width": 4, "temperature": 0.8, "seed": 3}),
        (
            {"beam_width": 3, "stop": ["."], "repetition_penalty": 1.3, "bad_words": ["little"]},
            {"width": 3, "stop": ["."], "repetition_penalty": 1.3, "bad_words": ["little"]},
        ),
        ({"beam_width": 3, "guided_regex": "[a-m ]+"}, {"width": 3, "structured_outputs": {"regex": "[a-m ]+"}}),
    ],
    ids=str,
)  # fmt: skip
def test_every_spelling_is_the_search_of_the_library(server, storyteller, asked, params):
    status, answer, _ = server.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 12} | asked)
    (expected,) = storyteller.search(PROMPT, SearchParams(max_tokens=12, **params))
    assert status == 200, answer
    assert [choice["text"] for choice in answer["choices"]] == [one.text for one in expected.outputs]
    assert [choice["index"] for choice in answer["choices"]] == list(range(params.get("n", 1)))
    for choice, one in zip(answer["choices"], expected.outputs, strict=True):
        assert {name: choice[name] for name in SCORES} == {name: getattr(one, name) for name in SCORES}
        assert choice["finish_reason"] == one.finish_reason


@pytest.mark.parametrize("path", ["/generate", "/chat", "/stream", "/v1/chat/completions"])
def test_a_search_is_the_same_on_every_route(server, storyteller, path):
    asked = {"messages": CHAT, "beam_width": 3, "n": 2, "max_tokens": 10}
    (expected,) = storyteller.search([CHAT], SearchParams(width=3, n=2, max_tokens=10))
    status, answer, _ = server.post(path, asked)
    assert status == 200, answer
    if path == "/stream":
        texts = ["".join(event["text"] for event in answer if event["index"] == index) for index in range(2)]
        assert [event["beam_score"] for event in answer if "finish_reason" in event] == [
            one.beam_score for one in expected.outputs
        ]
    elif path.startswith("/v1"):
        texts = [choice["message"]["content"] for choice in answer["choices"]]
    else:
        texts = [output["text"] for output in answer["outputs"]]
        assert answer["beam_score"] == expected.outputs[0].beam_score
    assert texts == [one.text for one in expected.outputs]


def test_a_batch_searches_each_prompt(server, storyteller):
    prompts = [PROMPT, "The dog"]
    _, answer, _ = server.post("/generate_batch", {"prompts": prompts, "width": 3, "max_tokens": 8})
    expected = storyteller.search(prompts, SearchParams(width=3, max_tokens=8))
    assert [output["text"] for output in answer["outputs"]] == [output.outputs[0].text for output in expected]


def test_usage_tells_answers_and_beams_apart(server):
    _, answer, _ = server.post(
        "/v1/completions", {"prompt": PROMPT, "beam_width": 4, "max_tokens": 10, "ignore_eos": True}
    )
    usage = answer["usage"]
    assert usage["completion_tokens"] == 10
    assert usage["total_tokens"] == usage["prompt_tokens"] + 10
    assert usage["completion_tokens_details"]["beam_tokens"] == 4 * 10
    _, plain, _ = server.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 2})
    assert "completion_tokens_details" not in plain["usage"]
    assert not set(SCORES) & set(plain["choices"][0])


def test_tokens_of_answers_in_log_probabilities_echo_and_ids(server):
    asked = {
        "prompt": PROMPT,
        "beam_width": 3,
        "n": 2,
        "max_tokens": 6,
        "logprobs": 1,
        "echo": True,
        "return_token_ids": True,
    }
    _, answer, _ = server.post("/v1/completions", asked)
    for choice in answer["choices"]:
        assert choice["text"].startswith(PROMPT)
        own = choice["logprobs"]["token_logprobs"][-len(choice["token_ids"]) :]
        assert sum(own) == pytest.approx(choice["cumulative_logprob"], abs=1e-4)


# -- the tree


def test_the_tree_is_told_as_far_as_it_is_asked_for(server, storyteller):
    asked = {"prompt": PROMPT, "beam_width": 3, "n": 2, "max_tokens": 6}
    (expected,) = storyteller.search(PROMPT, SearchParams(width=3, n=2, max_tokens=6))
    _, none, _ = server.post("/v1/completions", asked | {"return_tree": "none"})
    assert "tree" not in none
    _, summary, _ = server.post("/v1/completions", asked | {"return_tree": "summary"})
    tree = summary["tree"]
    assert tree["n_nodes"] == len(expected.tree) - 1
    assert tree["n_steps"] == 6
    assert [leaf["tree_leaf"] for leaf in tree["leaves"]] == [one.tree_leaf for one in expected.outputs]
    assert "nodes" not in tree
    _, full, _ = server.post("/v1/completions", asked | {"return_tree": "full"})
    nodes = {node["id"]: node for node in full["tree"]["nodes"]}
    assert len(nodes) == tree["n_nodes"]
    for choice in full["choices"]:
        node, text = choice["tree_leaf"], ""
        while node:
            text, node = nodes[node]["text"] + text, nodes[node]["parent"]
        assert text == choice["text"]


def test_of_several_prompts_there_are_several_trees(server):
    asked = {"prompt": ["a", "b"], "beam_width": 2, "max_tokens": 3, "return_tree": "summary"}
    _, answer, _ = server.post("/v1/completions", asked)
    assert len(answer["tree"]) == 2
    _, events, _ = server.post("/v1/completions", asked | {"stream": True})
    assert {event["prompt_index"] for event in named(events, "beam.step")} == {0, 1}
    assert len(events[-1]["tree"]) == 2


# -- streams


@pytest.mark.parametrize("asked", [{}, {"return_tree": "full"}, {"stop": ["."]}, {"logprobs": 1}], ids=str)
def test_a_stream_joined_is_the_answer(server, asked):
    asked = {"prompt": PROMPT, "beam_width": 4, "n": 3, "max_tokens": 16} | asked
    _, whole, _ = server.post("/v1/completions", asked)
    _, events, _ = server.post("/v1/completions", asked | {"stream": True, "stream_options": {"include_usage": True}})
    for choice in whole["choices"]:
        assert deltas(events, choice["index"]) == choice["text"]
        (end,) = [
            other for event in events if "event" not in event for other in event["choices"]
            if other["index"] == choice["index"] and other["finish_reason"]
        ]  # fmt: skip
        assert {name: end[name] for name in SCORES} == {name: choice[name] for name in SCORES}
    assert events[-1]["usage"] == whole["usage"] | {
        "prompt_tokens_details": events[-1]["usage"]["prompt_tokens_details"]
    }


def test_nobody_gets_named_events_unasked(server):
    for path, asked in (("/v1/completions", {"prompt": PROMPT}), ("/v1/chat/completions", {"messages": CHAT})):
        for more, is_named in (({}, False), ({"return_tree": "summary"}, True)):
            _, events, _ = server.post(path, asked | {"beam_width": 2, "max_tokens": 5, "stream": True} | more)
            assert any("event" in event for event in events) == is_named


def test_steps_tell_the_tree_as_it_grows(server):
    asked = {"prompt": PROMPT, "beam_width": 4, "max_tokens": 12}
    _, whole, _ = server.post("/v1/completions", asked | {"return_tree": "full"})
    _, events, _ = server.post("/v1/completions", asked | {"return_tree": "full", "stream": True})
    steps = named(events, "beam.step")
    assert [step["step"] for step in steps] == list(range(1, 13))
    told = {node["id"]: node for step in steps for node in step["nodes"]}
    for prune in named(events, "beam.prune"):
        told[prune["node"]] |= {"state": "pruned", "reason": prune["reason"]}
    assert list(told.values()) == whole["tree"]["nodes"]
    assert all(step["live"] == [] or len(step["live"]) <= 4 for step in steps)
    assert steps[-1]["live"] == []


def test_tails_are_what_the_beams_have_beyond_what_was_sent(server):
    asked = {"prompt": PROMPT, "beam_width": 3, "max_tokens": 8, "return_tree": "full", "stream": True}
    _, events, _ = server.post("/v1/completions", asked)
    texts, sent, tails = {0: ""}, "", []
    for event in events:
        if event.get("event") == "beam.step":
            texts |= {node["id"]: "" for node in event["nodes"]}
            for node in event["nodes"]:
                texts[node["id"]] = texts[node["parent"]] + node["text"]
            tails = event["live"]
        elif event.get("choices"):
            sent += event["choices"][0]["text"]
        for beam in tails if event.get("choices") else ():
            assert texts[beam["leaf"]] == sent + beam["tail"]
    assert sent


def test_the_narrow_route_streams_a_search_with_its_candidates(server, storyteller):
    asked = {"messages": CHAT, "width": 4, "n": 3, "max_tokens": 10}
    _, events, _ = server.post("/stream_chat_beam", asked)
    (expected,) = storyteller.search([CHAT], SearchParams(width=4, n=3, max_tokens=10))
    plain = [event for event in events if "event" not in event]
    assert "".join(event["text"] for event in plain) == expected.outputs[0].text
    assert [one["text"] for one in plain[-1]["candidates"]] == [one.text for one in expected.outputs]
    assert [one["beam_score"] for one in plain[-1]["candidates"]] == [one.beam_score for one in expected.outputs]
    assert plain[-1]["finish_reason"] == expected.outputs[0].finish_reason
    assert plain[-1]["usage"]["completion_tokens"] == sum(len(one.token_ids) for one in expected.outputs)
    assert all(step["nodes"] for step in named(events, "beam.step"))
    assert events[-1] is plain[-1]


def test_the_narrow_route_needs_no_number_of_beams(server, storyteller):
    _, events, _ = server.post("/stream_chat_beam", {"prompt": PROMPT, "max_tokens": 6})
    (expected,) = storyteller.search(PROMPT, SearchParams(max_tokens=6))
    assert events[-1]["candidates"][0]["text"] == expected.outputs[0].text
    assert max(len(step["live"]) for step in named(events, "beam.step")) == SearchParams.width


# -- bad input

WIDTHS = (0, -1, 65, 10**9, 1.5, "4", True, [])
BAD = [
    *(({name: value}, name) for name in ("beam_width", "num_beams") for value in WIDTHS),
    *(({"beam_width": 4, name: value}, name) for name, values in (
        ("n", (5, 0)), ("num_return_sequences", (5, 129, "2")), ("num_beam_groups", (3, 5, 0, True)),
        ("length_penalty", (10.5, "1", True)), ("early_stopping", ("always", 1, 0)),
        ("diversity_penalty", (-1, 101, 1, "x")), ("use_beam_search", (False, "yes", 1)),
        ("return_tree", ("all", True, 1)), ("rerank", (True, "x", [])),
    ) for value in values),
    *(({"beam_width": 4, "rerank": {name: value}}, f"rerank.{name}") for name, values in (
        ("alpha", (-0.1, 1.1, "x")), ("top_n", (0, 65)), ("normalise", ("softmax", 1)), ("query", ("", 7)),
        ("model", (3,)),
    ) for value in values),
    *(({name: value}, name) for name, value in (
        ("length_penalty", 2.0), ("early_stopping", True), ("num_beam_groups", 2), ("diversity_penalty", 0.5),
        ("return_tree", "summary"), ("rerank", {}),
    )),
    ({"beam_width": 4, "num_beams": 3}, "num_beams"),
    ({"beam_width": 4, "n": 2, "num_return_sequences": 3}, "num_return_sequences"),
    ({"beam_width": 4, "n": 2, "rerank": {"top_n": 3}}, "rerank.top_n"),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "param"), BAD, ids=str)
def test_a_bad_search_is_refused_by_field(server, asked, param):
    status, answer, _ = server.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 4} | asked)
    assert (status, answer["error"]["param"]) == (400, param), answer
    assert len(answer["error"]["message"]) < 300


def test_a_penalty_that_is_no_number_is_no_json(server):
    for text in (b"NaN", b"Infinity", b"1e999"):
        status, answer, _ = server.post(
            "/v1/completions", b'{"prompt": "a", "beam_width": 2, "length_penalty": %b}' % text
        )
        assert (status, answer["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"width": 4, "beam_width": 3}, "beam_width"),
        ({"width": 4, "groups": 2, "num_beam_groups": 4}, "num_beam_groups"),
        ({"width": 4, "method": "depth-first"}, "method"),
        ({"alpha": 0.5}, "alpha"),
        ({"query": "x"}, "query"),
        ({"scorer": "likelihood"}, "scorer"),
        ({"width": 2, "scorer": "os.system"}, "scorer"),
        ({"width": 2, "rerank": {"alpha": 0.5}, "alpha": 0.6}, "rerank.alpha"),
    ],
)
def test_own_routes_refuse_by_the_names_of_the_library(server, asked, param):
    for path in ("/generate", "/stream", "/generate_batch"):
        body = {"prompts" if path == "/generate_batch" else "prompt": PROMPT, "max_tokens": 4} | asked
        status, answer, _ = server.post(path, body)
        assert (status, answer["error"]["param"]) == (400, param), answer


def test_the_narrow_route_is_a_stream_and_a_search(server):
    for asked, param in (({"stream": False}, "stream"), ({"use_beam_search": False}, "use_beam_search")):
        status, answer, _ = server.post("/stream_chat_beam", {"prompt": PROMPT} | asked)
        assert (status, answer["error"]["param"]) == (400, param)


def test_a_server_sets_limits_to_beams(storyteller):
    server = DirectServer(ready_service(storyteller, ServerSettings(max_beam_width=3, max_answer_tokens=2000)))
    assert server.post("/v1/completions", {"prompt": "a", "beam_width": 3, "max_tokens": 2})[0] == 200
    for name, path in (("beam_width", "/v1/completions"), ("num_beams", "/generate"), ("width", "/stream_chat_beam")):
        status, answer, _ = server.post(path, {"prompt": "a", name: 4, "max_tokens": 2})
        assert (status, answer["error"]["param"]) == (400, name)
    with LLM.over(make_engine(max_num_seqs=2), ByteTokenizer(), "fake") as narrow:
        status, answer, _ = DirectServer(ready_service(narrow)).post("/v1/completions", {"prompt": "a", "num_beams": 3})
        assert (status, answer["error"]["param"]) == (400, "num_beams")
    asked = {"prompt": ["a"] * 8, "max_tokens": 200}
    assert server.post("/v1/completions", asked | {"max_tokens": 2, "beam_width": 3})[0] == 200
    status, answer, _ = server.post("/v1/completions", asked | {"beam_width": 3})
    assert (status, answer["error"]["param"]) == (400, "max_tokens")


# -- chats: each answer is taken apart by itself


@pytest.fixture(scope="module")
def model():
    model = ScriptedModel()
    yield model
    model.llm.close()


@pytest.fixture
def scripted(model):
    return DirectServer(ready_service(model.llm))


@pytest.mark.parametrize("stream", [False, True])
def test_every_choice_has_its_own_reasoning_and_calls(model, scripted, stream):
    model.says('<think>\nhm\n</think>\nlook\n<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>')
    weather = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    asked = {"messages": CHAT, "tools": [weather], "beam_width": 3, "n": 2, "max_tokens": 60, "stream": stream}
    status, answer, _ = scripted.post("/v1/chat/completions", asked)
    assert status == 200, answer
    if stream:
        parts = [c for event in answer for c in event["choices"] if c["index"] == 0]
        message = {
            "content": "".join(part["delta"].get("content") or "" for part in parts),
            "reasoning_content": "".join(part["delta"].get("reasoning_content") or "" for part in parts),
            "tool_calls": [call for part in parts for call in part["delta"].get("tool_calls", ()) if "id" in call],
        }
        finish_reason = parts[-1]["finish_reason"]
    else:
        assert len(answer["choices"]) == 2
        message, finish_reason = answer["choices"][0]["message"], answer["choices"][0]["finish_reason"]
    assert message["content"].strip() == "look"
    assert message["reasoning_content"].strip() == "hm"
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather"]
    assert finish_reason == "tool_calls"


# -- rerankers, and the other methods


class Vowels:
    """The more vowels, the better."""

    name = "vowels"

    def __init__(self):
        self.queries = []

    def score(self, query, documents):
        self.queries.append(query)
        return [float(sum(letter in "aeiou" for letter in text)) for text in documents]


@pytest.fixture
def reranker():
    return Vowels()


@pytest.fixture
def reranking(reranker):
    with LLM.over(make_engine(), ByteTokenizer(), "fake", reranker=reranker) as llm:
        yield DirectServer(ready_service(llm))


LETTERS = {"allowed_token_ids": list(range(97, 123)), "ignore_eos": True}


def test_a_reranker_decides_which_answer_is_the_best(reranking):
    asked = {"prompt": PROMPT, "beam_width": 6, "n": 6, "max_tokens": 8, **LETTERS}
    _, plain, _ = reranking.post("/v1/completions", asked)
    _, ranked, _ = reranking.post("/v1/completions", asked | {"rerank": {"model": "vowels", "alpha": 1}})
    texts = [choice["text"] for choice in plain["choices"]]
    assert sorted(texts) == sorted(choice["text"] for choice in ranked["choices"])
    for choice in ranked["choices"]:
        assert choice["rerank_score"] == choice["final_score"] == sum(letter in "aeiou" for letter in choice["text"])
        assert texts[choice["beam_rank"]] == choice["text"]
    finals = [choice["final_score"] for choice in ranked["choices"]]
    assert finals == sorted(finals, reverse=True)
    assert len(set(finals)) > 1
    _, few, _ = reranking.post("/v1/completions", asked | {"n": None, "rerank": {"top_n": 2, "alpha": 1}})
    assert [choice["text"] for choice in few["choices"]] == [choice["text"] for choice in ranked["choices"][:2]]


def test_alpha_zero_is_no_rerank(reranking, reranker):
    asked = {"prompt": PROMPT, "beam_width": 4, "n": 4, "max_tokens": 8}
    _, plain, _ = reranking.post("/v1/completions", asked)
    _, ranked, _ = reranking.post("/v1/completions", asked | {"rerank": {"alpha": 0}})
    assert ranked["choices"] == plain["choices"]
    assert reranker.queries == []


def test_a_reranked_stream_tells_the_scores_before_the_answers(reranking):
    asked = {"prompt": PROMPT, "beam_width": 6, "n": 2, "max_tokens": 8, "rerank": {"alpha": 1}, **LETTERS}
    _, whole, _ = reranking.post("/v1/completions", asked)
    _, events, _ = reranking.post("/v1/completions", asked | {"stream": True, "return_tree": "summary"})
    for choice in whole["choices"]:
        assert deltas(events, choice["index"]) == choice["text"]
    (rerank,) = named(events, "rerank")
    assert [one["index"] for one in rerank["choices"]] == list(range(6))
    assert [one["final_score"] for one in rerank["choices"][:2]] == [one["final_score"] for one in whole["choices"]]
    assert set(rerank["choices"][0]) == {*SCORES, "index"} - {"cumulative_logprob"}
    first_end = next(
        i for i, event in enumerate(events) if "event" not in event and event["choices"][0]["finish_reason"]
    )
    assert events.index(rerank) < first_end


def test_what_a_reranker_reads_beside_an_answer(reranking, reranker):
    chat = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": "two"},
    ]
    asked = {"beam_width": 2, "max_tokens": 3}
    for rerank in ({}, {"query": "last_user"}, {"query": "three"}):
        reranking.post("/v1/chat/completions", asked | {"messages": chat, "rerank": rerank})
    reranking.post("/v1/completions", asked | {"prompt": PROMPT, "rerank": {}})
    reranking.post("/generate", {"prompt": PROMPT, "width": 2, "max_tokens": 3, "scorer": "reranker", "query": "four"})
    assert reranker.queries == ["two", "two", "three", PROMPT, "four"]


@pytest.mark.parametrize(
    ("rerank", "status", "param"),
    [
        ({"model": "another"}, 404, "rerank.model"),
        ({"query": "last_user"}, 400, "rerank.query"),
        ({"model": "vowels", "top_n": 3}, 400, "rerank.top_n"),
    ],
)
def test_a_rerank_that_cannot_be_is_refused(reranking, rerank, status, param):
    asked = {"prompt": PROMPT, "beam_width": 2, "max_tokens": 3, "rerank": rerank}
    got, answer, _ = reranking.post("/v1/completions", asked)
    assert (got, answer["error"]["param"]) == (status, param), answer


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("secret of /home/somebody"), 500), (InvalidRequestError("[query] too long"), 400)],
)
def test_what_a_reranker_raises_is_told_where_it_is_ours(reranking, reranker, monkeypatch, error, status):
    def fail(query, documents):
        raise error

    monkeypatch.setattr(reranker, "score", fail)
    asked = {"prompt": PROMPT, "beam_width": 2, "max_tokens": 3}
    got, answer, _ = reranking.post("/v1/completions", asked | {"rerank": {}})
    assert got == status
    assert "secret" not in answer["error"]["message"]
    assert reranking.post("/v1/completions", asked)[0] == 200
    assert reranking.service.stats()["pages"]["n_held"] == 0


@pytest.mark.parametrize(
    ("asked", "params"),
    [
        ({"method": "sample", "width": 5, "n": 2}, {"method": "sample", "width": 5, "n": 2}),
        (
            {"method": "sample", "num_beams": 3, "scorer": "likelihood"},
            {"method": "sample", "width": 3, "scorer": "likelihood"},
        ),
        (
            {"method": "steps", "width": 2, "branches": 3, "separator": ".", "step_tokens": 9},
            {"method": "steps", "width": 2, "branches": 3, "separator": ".", "step_tokens": 9},
        ),
        (
            {"method": "steps", "width": 2, "rerank": {"alpha": 0.9, "normalise": "zscore"}},
            {"method": "steps", "width": 2, "scorer": "reranker", "alpha": 0.9, "normalise": "zscore"},
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/generate", "/stream_chat_beam"])
def test_samples_and_steps_are_those_of_the_library(reranking, path, asked, params):
    asked = {"prompt": PROMPT, "max_tokens": 12, "seed": 5} | asked
    (expected,) = reranking.service.llm.search(PROMPT, SearchParams(max_tokens=12, seed=5, **params))
    status, answer, _ = reranking.post(path, asked)
    assert status == 200, answer
    if path == "/generate":
        found = [answer["text"]] if len(expected.outputs) == 1 else [one["text"] for one in answer["outputs"]]
    else:
        plain = [event for event in answer if "event" not in event]
        assert "".join(event["text"] for event in plain) == expected.outputs[0].text
        found = [one["text"] for one in plain[-1]["candidates"]]
        assert bool(named(answer, "beam.step")) == (params["method"] == "steps")
        assert bool(named(answer, "rerank")) == ("scorer" in params)
    assert found == [one.text for one in expected.outputs]


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"method": "sample", "num_beam_groups": 2}, "num_beam_groups"),
        ({"method": "sample", "early_stopping": True}, "early_stopping"),
        ({"method": "steps", "branches": 129}, "branches"),
        ({"method": "steps", "width": 64, "branches": 3}, "branches"),
        ({"method": "steps", "separator": ""}, "separator"),
        ({"width": 2, "separator": "."}, "separator"),
        ({"width": 2, "step_tokens": 5}, "step_tokens"),
        ({"width": 2, "alpha": 0.3}, "alpha"),
        ({"width": 2, "query": "x", "scorer": "logprob"}, "query"),
    ],
    ids=str,
)
def test_a_field_that_would_change_nothing_is_refused(server, asked, param):
    status, answer, _ = server.post("/generate", {"prompt": PROMPT, "max_tokens": 4} | asked)
    assert (status, answer["error"]["param"]) == (400, param), answer


def test_a_server_without_a_reranker_says_so(monkeypatch):
    def find():
        raise ModelNotFoundError("[secret/folder] need the embedded reranker, got none")

    monkeypatch.setattr(companions, "embedded_reranker", find)
    with LLM.over(make_engine(), ByteTokenizer(), "fake") as llm:
        server = DirectServer(ready_service(llm))
        status, answer, _ = server.post("/v1/completions", {"prompt": PROMPT, "beam_width": 2, "rerank": {}})
    assert (status, answer["error"]["param"], answer["error"]["code"]) == (400, "rerank", "unsupported")
    assert "--reranker" in answer["error"]["message"]
    assert "secret" not in answer["error"]["message"]


# -- the openai package


def test_the_openai_client_searches(client, storyteller):
    asked = {"model": "storyteller", "prompt": PROMPT, "max_tokens": 12, "n": 2}
    (expected,) = storyteller.search(PROMPT, SearchParams(width=4, n=2, max_tokens=12))
    whole = client.completions.create(**asked, extra_body={"beam_width": 4})
    assert [choice.text for choice in whole.choices] == [one.text for one in expected.outputs]
    assert whole.choices[0].beam_score == expected.outputs[0].beam_score
    texts = ["", ""]
    for chunk in client.completions.create(**asked, stream=True, extra_body={"beam_width": 4}):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [one.text for one in expected.outputs]


def test_the_openai_client_reads_a_streamed_search_of_a_chat(client, storyteller):
    (expected,) = storyteller.search([CHAT], SearchParams(width=4, max_tokens=12))
    asked = {"model": "storyteller", "messages": CHAT, "max_tokens": 12, "extra_body": {"num_beams": 4}}
    deltas_of = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**asked, stream=True)]
    assert "".join(deltas_of) == expected.outputs[0].text


# -- best_of


@pytest.mark.parametrize(
    ("asked", "params"),
    [
        ({"best_of": 5}, {"width": 5}),
        ({"best_of": 5, "n": 3}, {"width": 5, "n": 3}),
        ({"best_of": 3, "n": 3, "temperature": 1.5}, {"width": 3, "n": 3, "temperature": 1.5}),
        ({"best_of": 4, "use_beam_search": False, "beam_width": 1}, {"width": 4}),
        ({"best_of": 4, "stop": ["."], "logprobs": 1, "echo": True}, {"width": 4, "stop": ["."], "logprobs": 1}),
    ],
    ids=str,
)
def test_best_of_gives_the_likeliest_samples_by_token(server, storyteller, asked, params):
    status, answer, headers = server.post(
        "/v1/completions", {"prompt": PROMPT, "max_tokens": 10, "seed": 4, "return_token_ids": True} | asked
    )
    assert status == 200, answer
    assert "x-ignored-fields" not in headers
    drawn = {"max_tokens": 10, "seed": 4} | params
    (expected,) = storyteller.search(PROMPT, SearchParams(method="sample", **drawn))
    assert [choice["token_ids"] for choice in answer["choices"]] == [one.token_ids for one in expected.outputs]
    means = [choice["cumulative_logprob"] / len(choice["token_ids"]) for choice in answer["choices"]]
    assert means == sorted(means, reverse=True)
    (all_of_them,) = storyteller.search(PROMPT, SearchParams(method="sample", **drawn | {"n": params["width"]}))
    assert len({tuple(one.token_ids) for one in all_of_them.outputs}) > 1
    assert means[0] == max(one.cumulative_logprob / len(one.token_ids) for one in all_of_them.outputs)
    assert answer["usage"]["completion_tokens"] == sum(len(choice["token_ids"]) for choice in answer["choices"])
    assert answer["usage"]["completion_tokens_details"]["beam_tokens"] == sum(
        len(one.token_ids) for one in all_of_them.outputs
    )


def test_best_of_is_for_every_route_and_prompt_that_is_answered_whole(reranking):
    (expected,) = reranking.service.llm.search(PROMPT, SearchParams(method="sample", width=4, max_tokens=8, seed=1))
    asked = {"best_of": 4, "max_tokens": 8, "seed": 1}
    _, answer, _ = reranking.post("/v1/completions", {"prompt": [PROMPT, PROMPT]} | asked)
    assert [choice["text"] for choice in answer["choices"]] == [expected.outputs[0].text] * 2
    _, answer, _ = reranking.post("/generate", {"prompt": PROMPT} | asked)
    assert answer["text"] == expected.outputs[0].text
    (expected,) = reranking.service.llm.search([CHAT], SearchParams(method="sample", width=4, max_tokens=8, seed=1))
    _, answer, _ = reranking.post("/v1/chat/completions", {"messages": CHAT} | asked)
    assert answer["choices"][0]["message"]["content"] == expected.outputs[0].text


def test_a_reranker_may_have_a_say_in_which_samples_are_the_best(reranking):
    asked = {"prompt": PROMPT, "best_of": 6, "n": 2, "max_tokens": 8, "seed": 1, "rerank": {"alpha": 1}}
    status, answer, _ = reranking.post("/v1/completions", asked)
    params = SearchParams(method="sample", width=6, n=2, max_tokens=8, seed=1, scorer="reranker", alpha=1.0)
    (expected,) = reranking.service.llm.search(PROMPT, params)
    assert status == 200, answer
    assert [choice["final_score"] for choice in answer["choices"]] == [one.final_score for one in expected.outputs]


@pytest.mark.parametrize(
    ("asked", "param", "said"),
    [
        ({"best_of": 2, "n": 3}, "n", "need at most best_of = 2 answers, got 3"),
        ({"best_of": 1, "n": 2}, "n", "need at most best_of = 1 answers, got 2"),
        ({"best_of": 2, "num_return_sequences": 3}, "num_return_sequences", "got 3"),
        ({"best_of": 2, "stream": True}, "best_of", "leave out best_of or stream"),
        ({"best_of": 2, "beam_width": 4}, "best_of", "beam_width asks for another search"),
        ({"best_of": 2, "num_beams": 2}, "best_of", "num_beams asks for another search"),
        ({"best_of": 2, "use_beam_search": True}, "best_of", "use_beam_search asks for another search"),
        ({"best_of": 2, "diversity_penalty": 0.5}, "diversity_penalty", "need num_beam_groups above 1"),
        ({"best_of": 2, "early_stopping": True}, "early_stopping", 'need method "beam"'),
        ({"best_of": 1, "length_penalty": 0.5}, "length_penalty", "need a search"),
    ],
    ids=str,
)
def test_best_of_beside_what_it_cannot_be_with_is_a_clear_400(server, asked, param, said):
    status, answer, _ = server.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 4} | asked)
    assert (status, answer["error"]["param"]) == (400, param), answer
    assert said in answer["error"]["message"]


@pytest.mark.parametrize(("path", "name"), [("/stream", "prompt"), ("/stream_chat_beam", "prompt")])
def test_routes_that_stream_have_no_best_of(server, path, name):
    status, answer, _ = server.post(path, {name: PROMPT, "max_tokens": 4, "best_of": 2})
    assert (status, answer["error"]["param"]) == (400, "best_of"), answer
    assert server.post(path, {name: PROMPT, "max_tokens": 4, "best_of": 1})[0] == 200


def test_best_of_is_bound_by_the_servers_limit_of_beams(storyteller):
    limited = DirectServer(ready_service(storyteller, ServerSettings(max_beam_width=3)))
    status, answer, _ = limited.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 4, "best_of": 4})
    assert (status, answer["error"]["param"]) == (400, "best_of"), answer
    assert limited.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 4, "best_of": 3})[0] == 200


def test_the_openai_client_asks_for_the_best_of_several(client, storyteller):
    asked = {"model": "storyteller", "prompt": PROMPT, "max_tokens": 12, "n": 2, "best_of": 5, "seed": 2}
    (expected,) = storyteller.search(PROMPT, SearchParams(method="sample", width=5, n=2, max_tokens=12, seed=2))
    assert [choice.text for choice in client.completions.create(**asked).choices] == [
        one.text for one in expected.outputs
    ]
