import subprocess
import sys

import numpy as np
import pytest
from fakes import ByteTokenizer, FakeBackend, alone, fake_logits, make_engine
from models_factory import make_checkpoint

from llm_decoder.errors import (
    ConfigError,
    ContextLengthExceededError,
    InvalidRequestError,
    ModelNotFoundError,
    RequestFailedError,
)
from llm_decoder.llm import LLM
from llm_decoder.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=12)


@pytest.fixture
def backend():
    return FakeBackend(max_model_len=200)


@pytest.fixture
def llm(backend):
    with LLM.over(make_engine(backend), ByteTokenizer(), "fake", chat_stop=("~",)) as llm:
        yield llm


def test_generate_gives_a_list_in_the_order_of_the_prompts(llm):
    prompts = ["one", [257, *b"two"], "three"]
    outputs = llm.generate(prompts, GREEDY)
    assert [output.prompt for output in outputs] == ["one", None, "three"]
    for output, text in zip(outputs, [b"one", b"two", b"three"], strict=True):
        assert output.prompt_token_ids == [257, *text]
        assert output.outputs[0].token_ids == alone([257, *text], temperature=0, max_tokens=12).outputs[0].token_ids


@pytest.mark.parametrize("prompt", ["one", [257, *b"one"], np.array([257, *b"one"])])
def test_one_prompt_gives_a_list_of_one(llm, prompt):
    (output,) = llm.generate(prompt, GREEDY)
    assert output.prompt_token_ids == [257, *b"one"]


def test_each_prompt_may_have_params_of_its_own(llm):
    own = [SamplingParams(max_tokens=n_tokens, ignore_eos=True) for n_tokens in (2, 5)]
    outputs = llm.generate(["a", "b"], own)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [2, 5]
    with pytest.raises(InvalidRequestError, match="each of the 2, got 1"):
        llm.generate(["a", "b"], [GREEDY])


def test_generate_reports_progress(llm):
    seen = []
    llm.generate(["a", "b", "c"], GREEDY, progress=lambda n_done, n_all: seen.append((n_done, n_all)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    "prompts", ["", [], [""], [[]], None, 5, b"x", ["a", 5], [[1, "a"]], [True], "\ud800", {"prompt": "x"}, [[1.0]]]
)
def test_a_prompt_of_another_form_is_refused_and_nothing_runs(llm, prompts):
    with pytest.raises(InvalidRequestError):
        llm.generate(prompts, GREEDY)
    assert llm.stats()["n_requests"] == 0


def test_a_text_far_too_long_is_refused_before_it_is_tokenized(llm):
    with pytest.raises(ContextLengthExceededError, match="200 tokens"):
        llm.generate("x" * (512 * 200 + 1), GREEDY)


def test_one_bad_prompt_cancels_the_others_of_the_call(llm):
    with pytest.raises(InvalidRequestError, match="got 999"):
        llm.generate(["a good one", [999]], SamplingParams(max_tokens=None, ignore_eos=True))
    assert llm.stats()["n_requests"] == 0
    assert llm.stats()["pages"]["n_held"] == 0


def test_a_request_that_fails_raises_and_the_engine_goes_on(llm, backend):
    backend.spoil = lambda history, logits: logits.fill(np.nan) if history[1] == ord("!") else None
    with pytest.raises(RequestFailedError):
        llm.generate(["good", "!bad"], GREEDY)
    assert llm.generate("good", GREEDY)


def test_stream_gives_the_text_of_generate(llm):
    events = list(llm.stream("one", GREEDY))
    assert "".join(event.text for event in events) == llm.generate("one", GREEDY)[0].outputs[0].text
    assert events[-1].finish_reason == "length"
    assert events[-1].output.metrics.n_generated_tokens == 12


@pytest.mark.parametrize("leave", ["close", "drop", "with"])
def test_a_stream_that_is_left_cancels_its_request(llm, leave):
    stream = llm.stream("one", SamplingParams(max_tokens=None, ignore_eos=True))
    if leave == "with":
        with stream:
            next(stream)
    elif leave == "close":
        next(stream)
        stream.close()
        assert list(stream) == []
    else:
        del stream
    assert llm.stats()["n_finished"]["abort"] + llm.stats()["n_finished"]["length"] == 1
    assert llm.stats()["pages"]["n_held"] == 0


def test_a_stream_is_refused_when_it_is_asked_for_not_when_it_is_read(llm):
    with pytest.raises(InvalidRequestError):
        llm.stream("", GREEDY)


def test_chat_goes_through_the_template_and_ends_at_its_stop_text(llm, backend):
    messages = [{"role": "user", "content": "hi"}]
    prompt = ByteTokenizer().apply_chat_template(messages)

    def spoil(history, logits):
        answer = b"well ~ no"
        if len(history) >= len(prompt):
            logits[answer[(len(history) - len(prompt)) % len(answer)]] = 50.0

    backend.spoil = spoil
    output = llm.chat(messages)
    assert output.prompt_token_ids == prompt
    assert (output.outputs[0].text, output.outputs[0].finish_reason) == ("well ", "stop")
    assert "".join(event.text for event in llm.stream_chat(messages)) == "well "
    assert "".join(event.text for event in llm.stream(messages, SamplingParams(max_tokens=9))) == "well "


def test_a_chat_that_outgrows_the_context_says_how_many_messages_it_dropped(llm):
    messages = [{"role": role, "content": "x" * 40} for _ in range(3) for role in ("user", "assistant")]
    messages.append({"role": "user", "content": "now?"})
    output = llm.chat(messages, GREEDY)
    assert output.dropped_messages == 4
    assert all(event.dropped_messages == 4 for event in llm.stream_chat(messages, GREEDY))


def test_logits_are_those_of_every_token(llm):
    ids = list(b"some tokens that take more than one step" * 3)
    logits = llm.logits(ids)
    assert (logits.shape, logits.dtype) == ((len(ids), 258), np.float32)
    for i in (0, 63, 64, len(ids) - 1):
        np.testing.assert_array_equal(logits[i], fake_logits(np.array(ids[: i + 1], np.int32), 258))


def test_score_gives_the_log_probability_of_each_token_but_the_first(llm):
    scores = llm.score("hello")
    logits = llm.logits([257, *b"hello"]).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert (scores.shape, scores.dtype) == ((5,), np.float32)
    np.testing.assert_allclose(scores, expected[np.arange(5), list(b"hello")], atol=1e-5)
    assert llm.score([5]).shape == (0,)


def test_embed_is_the_mean_of_the_hidden_states(llm):
    vectors = llm.embed(["hello", "hello", "other"])
    assert (vectors.shape, vectors.dtype) == ((3, 4), np.float32)
    np.testing.assert_allclose(vectors[0], llm.logits([257, *b"hello"])[:, :4].mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert (vectors[0] != vectors[2]).any()


def test_an_llm_says_what_it_is(llm):
    assert (llm.name, llm.max_model_len, llm.vocab_size) == ("fake", 200, 258)
    assert llm.stats()["model"] == "fake"


@pytest.mark.parametrize("params", [{"max_tokens": 2}, 3, "x", [3], [{"max_tokens": 2}]])
def test_params_of_another_type_are_refused_by_name(llm, params):
    with pytest.raises(InvalidRequestError, match=r"^\[params\] ") as caught:
        llm.generate(["a"], params)
    assert caught.value.param == "params"
    with pytest.raises(InvalidRequestError, match=r"^\[params\] "):
        llm.stream("a", params)


@pytest.mark.parametrize("verb", ["logits", "score", "embed"])
def test_numbers_of_a_prompt_longer_than_the_context_are_refused_and_others_go_on(llm, verb):
    prompt = [5] * 201
    with pytest.raises(ContextLengthExceededError):
        getattr(llm, verb)([prompt] if verb == "embed" else prompt)
    assert llm.logits([5] * 200).shape == (200, 258)


def test_numbers_of_a_prompt_that_fills_the_whole_pool_are_given_and_one_more_token_is_refused():
    backend = FakeBackend(n_pages=2, max_model_len=200)
    with LLM.over(make_engine(backend), ByteTokenizer(), "fake") as llm:
        n_tokens = 2 * backend.page_size
        assert len(llm.score([5] * n_tokens)) == n_tokens - 1
        with pytest.raises(ContextLengthExceededError, match="KV cache"):
            llm.score([5] * (n_tokens + 1))


@pytest.mark.parametrize("defaults", ["x", {"bad": 1}, {"temperature": -1}])
def test_sampling_defaults_are_checked_before_a_model_is_looked_for(defaults):
    with pytest.raises(ConfigError, match=r"^\[sampling_defaults\] "):
        LLM("/no/such/model", sampling_defaults=defaults)


@pytest.mark.parametrize("messages", ["hello", [], [1, 2], None, {"role": "user", "content": "x"}, ["hello"]])
def test_a_chat_of_anything_but_messages_is_refused_rather_than_taken_as_a_prompt(llm, messages):
    for verb in (llm.chat, llm.stream_chat):
        with pytest.raises(InvalidRequestError, match=r"^\[messages\] need a list such as"):
            verb(messages)


@pytest.fixture(scope="module")
def folder_without_tokenizer(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("ids_only"), tokenizer=False)


@pytest.fixture(scope="module")
def ids_only(folder_without_tokenizer):
    with LLM(folder_without_tokenizer, threads=1, kv_cache_bytes=1 << 20) as llm:
        yield llm


def test_a_model_without_a_tokenizer_answers_token_ids_with_the_ids_it_gives_with_one(tmp_path, ids_only):
    with LLM(make_checkpoint(tmp_path), threads=1, kv_cache_bytes=1 << 20) as llm:
        expected = llm.generate([5, 6, 7], GREEDY)[0].outputs[0]
    answer = ids_only.generate([5, 6, 7], GREEDY)[0].outputs[0]
    assert answer.token_ids == expected.token_ids
    assert (answer.text, bool(expected.text)) == ("", True)
    events = list(ids_only.stream([5, 6, 7], GREEDY))
    assert events[-1].output.outputs[0].token_ids == expected.token_ids
    assert "".join(event.text for event in events) == ""


def test_a_model_without_a_tokenizer_gives_numbers_of_token_ids(ids_only):
    assert ids_only.logits([5, 6, 7]).shape == (3, 331)
    assert ids_only.score([5, 6, 7]).shape == (2,)
    assert ids_only.embed([[5, 6, 7]]).shape == (1, 64)
    stopped = ids_only.generate([5, 6, 7], SamplingParams(temperature=0, stop_token_ids=range(331)))
    assert stopped[0].outputs[0].finish_reason == "stop"


MESSAGES = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("param", "ask"),
    [
        ("prompt", lambda llm: llm.generate("a text")),
        ("prompt", lambda llm: llm.generate([[5], "a text"])),
        ("prompt", lambda llm: llm.stream("a text")),
        ("prompt", lambda llm: llm.score("a text")),
        ("prompt", lambda llm: llm.embed("a text")),
        ("messages", lambda llm: llm.chat(MESSAGES)),
        ("messages", lambda llm: llm.stream_chat(MESSAGES)),
        ("stop", lambda llm: llm.generate([5], SamplingParams(stop="x"))),
        ("bad_words", lambda llm: llm.generate(np.array([5]), SamplingParams(bad_words=["x"]))),
    ],
)
def test_what_is_asked_for_in_text_of_a_model_without_a_tokenizer_is_refused_by_the_files_it_lacks(
    ids_only, folder_without_tokenizer, param, ask
):
    with pytest.raises(
        InvalidRequestError, match=rf"^\[{param}\] need (token ids|stop_token_ids|bad_token_ids), got text"
    ) as caught:
        ask(ids_only)
    assert caught.value.param == param
    assert f"{folder_without_tokenizer} holds none of tokenizer.json, tokenizer.model" in str(caught.value)
    assert ids_only.stats()["n_requests"] == 0


def test_the_tokenizer_of_a_model_without_one_is_an_error_that_says_what_works(ids_only):
    with pytest.raises(ModelNotFoundError, match=r"none of tokenizer\.json.*work with token ids"):
        _ = ids_only.tokenizer


@pytest.mark.parametrize("verb", [["generate", "a text"], ["stream", "a text"]], ids=lambda verb: verb[0])
def test_the_command_line_says_so_too_when_a_model_has_no_tokenizer(folder_without_tokenizer, verb):
    command = [sys.executable, "-m", "llm_decoder", *verb, "--model", str(folder_without_tokenizer), "--threads", "1"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: [prompt] need token ids, got text, and the model has no tokenizer")
