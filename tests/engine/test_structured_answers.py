"""Answers follow their grammar, whatever else a request asks for: judged by jsonschema and re over many seeds."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import numpy as np
import pytest
from fakes import ByteTokenizer, Desk, FakeBackend, alone, make_engine

from llm_decoder import LLM, InvalidRequestError, RequestFailedError, SamplingParams, StructuredOutputs
from llm_decoder.serving.errors import as_http_error
from llm_decoder.speculation import SpeculationOptions

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b", None]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {
    "object": PERSON,
    "number": {"type": "number", "minimum": -2.5, "exclusiveMaximum": 1e3},
    "any of": {"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": "^[a-z]{2,4}$"}]},
    "const": {"const": {"a": [1, "é😀", None]}},
    "tuple": {"type": "array", "prefixItems": [{"type": "integer"}, {"enum": ["x"]}], "items": False, "minItems": 2},
    "all of": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 17}]},
    "tree": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}},
                "required": ["children"],
                "additionalProperties": False,
            }
        },
    },
    "formats": {
        "type": "object",
        "properties": {
            "when": {"type": "string", "format": "date-time"},
            "id": {"type": "string", "format": "uuid"},
        },
        "required": ["when", "id"],
        "additionalProperties": False,
    },
}
REGEXES = [r"[0-9]{3}-[0-9]{4}", r"(?i)(yes|no)[!.]{1,3}", r"[\p{L}]{1,8}", r"[a-z]+@[a-z]+\.(com|org)", r".{5,10}"]


def desk(**options: Any) -> Desk:
    return Desk(FakeBackend(n_pages=400, max_model_len=4096), **options)


def answer(**params: Any) -> Any:
    return desk().ask("Hello", max_tokens=4000, **params).outputs[0]


@pytest.mark.parametrize("name", SCHEMAS)
def test_answers_are_what_their_schema_says(name: str) -> None:
    schema = SCHEMAS[name]
    for seed in range(15):
        completion = answer(structured_outputs=StructuredOutputs(json=schema), seed=seed)
        assert completion.finish_reason == "stop"
        jsonschema.validate(json.loads(completion.text), schema, format_checker=jsonschema.FormatChecker())


def test_answers_are_json_objects() -> None:
    n_whole = 0
    ends = {ord("}"): 3.0, ord('"'): 3.0}
    for seed in range(10):
        completion = answer(structured_outputs={"json_object": True}, seed=seed, logit_bias=ends)
        if completion.finish_reason == "stop":  # an object of random keys may go on for ever
            assert isinstance(json.loads(completion.text), dict)
            n_whole += 1
    assert n_whole


@pytest.mark.parametrize("regex", REGEXES)
def test_answers_match_their_expression(regex: str) -> None:
    own = regex.replace(r"[\p{L}]", r"[^\W\d_]")
    for seed in range(15):
        completion = answer(structured_outputs={"regex": regex}, seed=seed, temperature=2.0)
        assert re.fullmatch(own, completion.text), completion.text
        assert completion.finish_reason == "stop"


def test_answers_are_one_of_the_choices_and_all_are_found() -> None:
    choices = ["yes", "yes, really", "nö", '"']
    found = {answer(structured_outputs={"choice": choices}, seed=seed, temperature=5.0).text for seed in range(60)}
    assert found == set(choices)


def test_answers_follow_a_grammar_that_no_expression_can_say() -> None:
    for seed in range(20):
        text = answer(structured_outputs={"grammar": 'root ::= "(" root ")" | "[" root "]" | "x"'}, seed=seed).text
        left, right = text.split("x")
        assert right == left[::-1].translate(str.maketrans("([", ")]"))


def test_an_answer_whose_grammar_is_complete_ends_with_stop_and_without_an_end_token() -> None:
    completion = answer(structured_outputs={"choice": ["done"]})
    assert (completion.text, completion.finish_reason, completion.stop_reason) == ("done", "stop", None)
    assert completion.token_ids == list(b"done")


def test_an_answer_that_is_complete_with_its_last_token_ends_with_stop() -> None:
    assert desk().ask("Hello", max_tokens=4, structured_outputs={"choice": ["done"]}).outputs[0].finish_reason == "stop"
    cut = desk().ask("Hello", max_tokens=3, structured_outputs={"choice": ["done"]}).outputs[0]
    assert (cut.text, cut.finish_reason) == ("don", "length")


def test_an_answer_that_may_be_over_is_ended_by_an_end_token() -> None:
    completion = answer(structured_outputs={"regex": "a*"}, logit_bias={256: 1})
    assert completion.finish_reason == "stop"
    assert completion.token_ids == [*completion.text.encode(), ByteTokenizer.eos_token_id]


def test_an_end_token_that_is_ignored_elsewhere_ends_a_grammar_that_may_be_over() -> None:
    completion = answer(structured_outputs={"regex": "a*"}, ignore_eos=True, logit_bias={256: 5})
    assert (completion.finish_reason, set(completion.text) <= {"a"}) == ("stop", True)
    assert len(completion.text) < 4000


def test_every_answer_of_a_request_follows_the_grammar_on_its_own() -> None:
    output = desk().ask("Hello", max_tokens=400, n=6, seed=1, structured_outputs={"json": PERSON})
    texts = [completion.text for completion in output.outputs]
    assert len(set(texts)) == 6
    for text in texts:
        jsonschema.validate(json.loads(text), PERSON)


def test_requests_with_and_without_a_grammar_do_not_disturb_each_other() -> None:
    asks: list[dict[str, Any]] = [
        {"structured_outputs": {"json": PERSON}, "seed": 1},
        {"seed": 2},
        {"structured_outputs": {"regex": "[ab]{20}"}, "seed": 3, "n": 2},
        {"seed": 4, "frequency_penalty": 1.0, "logprobs": 3},
        {"structured_outputs": {"json": PERSON}, "seed": 5, "logprobs": 2, "presence_penalty": 1.0},
    ]
    expected = [alone(f"Prompt {i}", max_tokens=60, **ask) for i, ask in enumerate(asks)]
    together = Desk()
    ids = [together.add(f"Prompt {i}", max_tokens=60, **ask) for i, ask in enumerate(asks)]
    together.run()
    assert [together.last(id_).outputs for id_ in ids] == [output.outputs for output in expected]
    together.assert_nothing_is_held()


def test_a_preempted_answer_goes_on_where_its_grammar_was() -> None:
    asks = [{"structured_outputs": {"json": PERSON}, "seed": seed, "max_tokens": 90} for seed in range(6)]
    expected = [alone("Hello, this is a prompt of some length", **ask).outputs for ask in asks]
    tight = Desk(FakeBackend(n_pages=14))
    ids = [tight.add("Hello, this is a prompt of some length", **ask) for ask in asks]
    tight.run()
    assert tight.core.stats()["n_preemptions"] > 0
    assert [tight.last(id_).outputs for id_ in ids] == expected


def test_drafts_change_no_answer_and_are_made() -> None:
    # The prompt is what the grammar demands, so that looking it up finds drafts.
    text = "the cat sat on the mat, and the dog sat on the cat; "
    ask: dict[str, Any] = {"structured_outputs": {"regex": f"({text})+[0-9]{{4,9}}"}, "max_tokens": 150}
    for seed in range(5):
        plain = desk(start_speculation=SpeculationOptions("none").start).ask(text * 2, seed=seed, **ask)
        drafted = desk().ask(text * 2, seed=seed, **ask)
        assert drafted.outputs == plain.outputs
        assert drafted.metrics.n_accepted_tokens > 40


def test_what_a_grammar_forces_is_drafted() -> None:
    text = "A long sentence that nobody could have guessed, but for its grammar. "
    ask: dict[str, Any] = {"structured_outputs": {"regex": f"[0-9]{text}[0-9]"}, "max_tokens": 100, "seed": 5}
    drafted = desk().ask("Hello", **ask)
    assert drafted.outputs == desk(start_speculation=SpeculationOptions("none").start).ask("Hello", **ask).outputs
    # Nobody drafts the last token before a choice: that is drawn behind the one before it.
    assert drafted.metrics.n_accepted_tokens == drafted.metrics.n_drafted_tokens > 0.8 * len(text)


def test_drafts_that_the_grammar_forbids_are_not_computed() -> None:
    def count_on(history: Any, logits: Any) -> None:
        logits[history[-1] + 1] += 20

    watched = desk()
    watched.backend.spoil = count_on
    step = watched.backend.step
    seen: list[set[int]] = []

    def spy(tokens: Any, *arguments: Any) -> int:
        seen.append(set(tokens.tolist()))
        return step(tokens, *arguments)

    watched.backend.step = spy  # type: ignore[method-assign]
    # What followed "abcd" in the prompt must not follow it in the answer.
    output = watched.ask("abcdefgh" * 8, max_tokens=64, structured_outputs={"regex": "[a-d]{60}"})
    assert output.metrics.n_drafted_tokens > 0
    assert ord("e") in seen[0]
    assert not any(ord("e") in tokens for tokens in seen[1:])


def test_a_stop_string_ends_an_answer_inside_its_grammar() -> None:
    completion = answer(structured_outputs={"regex": "(one two )+"}, stop=["two"])
    assert (completion.text, completion.finish_reason, completion.stop_reason) == ("one ", "stop", "two")


def test_text_held_back_for_a_stop_string_comes_out_when_the_grammar_is_complete() -> None:
    completion = answer(structured_outputs={"choice": ["hello"]}, stop=["lox"])
    assert (completion.text, completion.finish_reason, completion.stop_reason) == ("hello", "stop", None)


def test_a_stop_token_ends_an_answer_inside_its_grammar() -> None:
    completion = answer(structured_outputs={"regex": "xyz"}, stop_token_ids=[ord("y")])
    assert (completion.text, completion.finish_reason, completion.stop_reason) == ("x", "stop", ord("y"))


def test_min_tokens_hold_while_the_grammar_can_go_on() -> None:
    completion = answer(structured_outputs={"regex": "a*"}, min_tokens=30, logit_bias={256: 50})
    assert completion.token_ids == [ord("a")] * 30 + [256]
    assert answer(structured_outputs={"choice": ["done"]}, min_tokens=30).text == "done"


def test_penalties_and_bias_choose_among_what_the_grammar_allows() -> None:
    form = {"regex": "[ab]{10}"}
    assert answer(structured_outputs=form, temperature=0, logit_bias={ord("a"): 100}).text == "a" * 10
    assert answer(structured_outputs=form, temperature=0, logit_bias={ord("c"): 100, ord("b"): 50}).text == "b" * 10
    alternating = answer(structured_outputs=form, temperature=0, frequency_penalty=2.0, presence_penalty=2.0).text
    assert 3 <= alternating.count("a") <= 7


def test_log_probabilities_stay_those_of_the_model() -> None:
    completion = answer(structured_outputs={"choice": ["x"]}, logprobs=3)
    plain = desk().ask("Hello", max_tokens=1, logprobs=3).outputs[0]
    assert completion.logprobs is not None
    assert plain.logprobs is not None
    assert completion.logprobs[0].top == plain.logprobs[0].top
    assert completion.logprobs[0].rank > 1


def test_an_answer_that_has_nothing_left_to_draw_fails_and_others_go_on() -> None:
    together = desk()
    bad = together.add("Hello", structured_outputs={"choice": ["yes"]}, allowed_token_ids=[ord("n")])
    worse = together.add("Hello", structured_outputs={"choice": ["yes"]}, bad_token_ids=[ord("e")], max_tokens=5)
    good = together.add("Hello", structured_outputs={"choice": ["yes"]})
    together.run()
    assert together.last(good).outputs[0].text == "yes"
    for request_id in (bad, worse):
        error = together.last(request_id)
        assert isinstance(error, RequestFailedError)
        assert "structured_outputs" in str(error)
        assert error.param == "structured_outputs"
        assert as_http_error(error).status == 400
    together.assert_nothing_is_held()


def test_a_grammar_that_becomes_too_much_work_fails_its_own_request_only() -> None:
    together = desk()
    bad = together.add("Hello", structured_outputs={"regex": "b[0-9]{2}((a{1000}){1000}){1000}"}, max_tokens=100)
    good = together.add("Hello", structured_outputs={"choice": ["fine"]})
    plain = together.add("Hello", max_tokens=20, seed=3)
    together.run()
    assert isinstance(together.last(bad), RequestFailedError)
    assert together.last(bad).param == "structured_outputs"
    assert together.last(good).outputs[0].text == "fine"
    assert together.last(plain).outputs == desk().ask("Hello", max_tokens=20, seed=3).outputs
    together.assert_nothing_is_held()


def test_a_stream_gives_the_text_of_the_answer() -> None:
    with LLM.over(make_engine(FakeBackend(max_model_len=1024)), ByteTokenizer(), "fake") as llm:  # type: ignore[arg-type]
        params = SamplingParams(max_tokens=500, seed=4, structured_outputs=StructuredOutputs(json=PERSON))
        (whole,) = llm.generate("Hello", params)
        events = list(llm.stream("Hello", params))
        assert "".join(event.text for event in events) == whole.outputs[0].text
        assert events[-1].finish_reason == "stop"
        jsonschema.validate(json.loads(whole.outputs[0].text), PERSON)


def test_what_is_no_grammar_is_refused_before_the_request_is_in_line() -> None:
    with LLM.over(make_engine(), ByteTokenizer(), "fake") as llm:  # type: ignore[arg-type]
        with pytest.raises(InvalidRequestError) as caught:
            llm.generate("Hello", SamplingParams(structured_outputs={"regex": "("}))
        assert caught.value.param == "structured_outputs"
        assert llm.stats()["n_steps"] == 0
        params = SamplingParams(structured_outputs={"choice": ["on we go"]})
        assert llm.generate("Hello", params)[0].outputs[0].text == "on we go"


def test_prompts_that_are_only_scored_need_no_grammar() -> None:
    with LLM.over(make_engine(), ByteTokenizer(), "fake") as llm:  # type: ignore[arg-type]
        params = SamplingParams(max_tokens=0, prompt_logprobs=1, structured_outputs={"choice": ["x"]})
        (output,) = llm.generate("Hello", params)
        assert output.outputs[0].text == ""
        assert np.isfinite(output.prompt_logprobs[1].logprob)  # type: ignore[index, union-attr]
