"""Grammars compiled at the door, and followed token by token."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import tokenizers
from fakes import ByteTokenizer

from llm_decoder import InvalidRequestError, RequestFailedError, StructuredOutputs, grammars
from llm_decoder.grammars import Follower, GrammarCompiler

END = ByteTokenizer.eos_token_id


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(ByteTokenizer(), 300, frozenset({END}))


def follow(compiler: GrammarCompiler, text: str = "", **fields: Any) -> Follower:
    follower = compiler.compile(StructuredOutputs(**fields)).follow()
    for byte in text.encode():
        follower.advance(byte)
    return follower


def allowed(follower: Follower) -> set[int]:
    mask = np.zeros(follower.n_words, np.uint32)
    follower.fill(mask)
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())


def accepts(compiler: GrammarCompiler, text: str, **fields: Any) -> bool:
    """Whether the whole of `text` is an answer."""
    follower = follow(compiler, **fields)
    for byte in text.encode():
        if byte not in allowed(follower):
            return False
        follower.advance(byte)
    return follower.is_complete or END in allowed(follower)


def test_a_mask_has_what_may_come_next(compiler: GrammarCompiler) -> None:
    follower = follow(compiler, "a", regex="a[bc]?")
    assert allowed(follower) == {ord("b"), ord("c"), END}
    follower.advance(ord("b"))
    assert follower.is_complete


def test_tokens_that_the_tokenizer_does_not_know_are_never_allowed(compiler: GrammarCompiler) -> None:
    follower = follow(compiler, regex="(?s:.)*")
    assert follower.n_words == 10
    assert max(allowed(follower)) == END


def test_an_end_token_completes_a_grammar_that_may_be_over(compiler: GrammarCompiler) -> None:
    follower = follow(compiler, "aa", regex="a*")
    assert not follower.is_complete
    follower.advance(END)
    assert follower.is_complete


@pytest.mark.parametrize("choice", ['a"b', "c\\d", "e\nf", "é😀", "/x/", "a\x00b", " lead", "\u2028", "\\u0041"])
def test_choices_are_taken_to_the_letter(compiler: GrammarCompiler, choice: str) -> None:
    assert accepts(compiler, choice, choice=[choice, "other"])
    assert accepts(compiler, "other", choice=[choice, "other"])
    assert not accepts(compiler, choice + "r", choice=[choice, "other"])


def test_thousands_of_choices_are_one_automaton(compiler: GrammarCompiler) -> None:
    choices = [f"number {i * 7919}" for i in range(grammars.MAX_CACHED * 100)]
    assert accepts(compiler, choices[1234], choice=choices)
    assert not accepts(compiler, "number 1", choice=choices)


def test_grammars_come_in_lark_and_in_gbnf(compiler: GrammarCompiler) -> None:
    lark = 'start: "(" start ")" | "x"'
    gbnf = 'root ::= "(" root ")" | [x] # a comment\n'
    for grammar in (lark, gbnf):
        assert accepts(compiler, "((x))", grammar=grammar)
        assert not accepts(compiler, "((x)", grammar=grammar)


def test_the_gbnf_of_llama_cpp_for_json_is_understood(compiler: GrammarCompiler) -> None:
    grammar = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws
string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
# Optional space: by convention, applied in this grammar after literal chars when allowed
ws ::= | " " | "\n" [ \t]{0,20}
"""
    assert accepts(compiler, '{"a": [1, "b\\n", {}], "é": null}', grammar=grammar)
    assert not accepts(compiler, "[1]", grammar=grammar)


def test_json_may_have_a_space_or_a_line_of_indentation_between_its_parts_and_no_more(
    compiler: GrammarCompiler,
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    assert accepts(compiler, '{"a":1}', json=schema)
    assert accepts(compiler, '{\n  "a": 1\n}', json=schema)
    assert not accepts(compiler, '{  "a":1}', json=schema)
    assert not accepts(compiler, '{\n\n"a":1}', json=schema)


def test_a_schema_may_say_which_space_it_wants(compiler: GrammarCompiler) -> None:
    schema = {"type": "array", "items": {"type": "null"}, "x-guidance": {"whitespace_flexible": False}}
    assert accepts(compiler, "[null,null]", json=schema)
    assert not accepts(compiler, "[null, null]", json=schema)


def test_a_grammar_that_becomes_too_much_work_fails_where_it_does(compiler: GrammarCompiler) -> None:
    follower = follow(compiler, "bb12", regex="bb[0-9]{2}((a{1000}){1000}){1000}")

    def answer() -> None:
        for _ in range(100):
            follower.advance(ord("a"))
            allowed(follower)

    with pytest.raises(RequestFailedError, match="simpler"):
        answer()


def test_looking_ahead_stops_where_the_grammar_does_not_go_on_and_moves_nothing(compiler: GrammarCompiler) -> None:
    follower = follow(compiler, "0", regex="0123")
    before = allowed(follower)
    masks = follower.look_ahead([ord("1"), ord("2"), ord("x")])
    assert masks.shape == (2, follower.n_words)
    assert allowed(follower) == before == {ord("1")}
    follower.advance(ord("1"))
    mask = np.zeros(follower.n_words, np.uint32)
    follower.fill(mask)
    assert (mask == masks[0]).all()
    assert follower.look_ahead([ord("x")]).shape[0] == 0
    # The last token of an answer is never one that was guessed.
    assert follower.look_ahead([ord("2"), ord("3"), END]).shape[0] == 1


def test_what_must_come_is_known(compiler: GrammarCompiler) -> None:
    assert follow(compiler, regex="abc[0-9]").forced() == list(b"abc")
    assert follow(compiler, "abc", regex="abc[0-9]").forced() == []


def test_a_panic_of_the_library_ends_no_more_than_its_request(compiler: GrammarCompiler) -> None:
    class PanicException(BaseException):
        pass

    class Broken:
        def consume_token(self, token: int) -> bool:
            raise PanicException("index out of bounds")

    with pytest.raises(RequestFailedError, match="index out of bounds"):
        Follower(Broken(), 9).advance(1)  # type: ignore[arg-type]


def test_a_tokenizer_without_bytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    words = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab={"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    words.decoder = tokenizers.decoders.WordPiece()
    monkeypatch.setattr(ByteTokenizer, "to_json", lambda self: str(words.to_str()))
    with pytest.raises(InvalidRequestError, match="tokens are bytes"):
        GrammarCompiler(ByteTokenizer(), 258, frozenset()).compile(StructuredOutputs(regex="a"))  # type: ignore[arg-type]


def test_followers_of_one_grammar_do_not_see_each_other(compiler: GrammarCompiler) -> None:
    one, other = follow(compiler, "a", regex="abc"), follow(compiler, regex="abc")
    assert allowed(one) == {ord("b")}
    assert allowed(other) == {ord("a")}


def test_an_equal_form_is_compiled_once(compiler: GrammarCompiler) -> None:
    asked = StructuredOutputs(regex="once[0-9]")
    assert compiler.compile(asked) is compiler.compile(StructuredOutputs(regex="once[0-9]"))


def test_grammars_are_compiled_for_many_threads_at_once(compiler: GrammarCompiler) -> None:
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda i=i: found.append(accepts(compiler, f"t{i % 3}", regex=f"t{i % 3}")))
        for i in range(9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 9


def test_a_panic_of_the_library_is_an_invalid_request(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):  # as its bindings raise it
        pass

    def panic(asked: StructuredOutputs) -> str:
        raise PanicException("index out of bounds")

    monkeypatch.setattr(grammars, "_grammar_text", panic)
    with pytest.raises(InvalidRequestError, match="index out of bounds"):
        compiler.compile(StructuredOutputs(regex="panic"))
