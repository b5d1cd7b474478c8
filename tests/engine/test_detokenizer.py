import pytest
from fakes import ByteTokenizer
from hypothesis import given
from hypothesis import strategies as st

from llm_decoder.detokenizer import Detokenizer, StopMatcher

TEXT = "naïve 日本語 🙂👩‍👩‍👧 مرحبا \x00 end"


class SpaceTokenizer:
    """Words whose leading space shows only when something stands to their left, as sentencepiece decodes."""

    words = ("▁Once", "▁upon", "▁a", "time", "!")

    def decode(self, ids, skip_special_tokens=True):
        return "".join(self.words[token] for token in ids).replace("▁", " ").removeprefix(" ")


class FallbackTokenizer:
    """Bytes as sentencepiece's byte fallback decodes them: a run that is not valid UTF-8 is U+FFFD throughout."""

    def decode(self, ids, skip_special_tokens=True):
        text, run = "", bytearray()
        for token in [*ids, -1]:
            if 128 <= token < 256:
                run.append(token)
                continue
            try:
                text += run.decode()
            except UnicodeDecodeError:
                text += "\ufffd" * len(run)
            run.clear()
            text += chr(token) if token >= 0 else ""
        return text


def pushed_one_by_one(detokenizer, ids):
    return [detokenizer.push([token]) for token in ids] + [detokenizer.flush()]


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), FallbackTokenizer()])
def test_text_comes_out_whole_character_by_character(tokenizer):
    pieces = pushed_one_by_one(Detokenizer(tokenizer, list(b"prompt")), TEXT.encode())
    assert "".join(pieces) == TEXT
    assert all("\ufffd" not in piece for piece in pieces)
    assert max(map(len, pieces)) == 1


def test_a_continuation_keeps_the_space_that_its_first_word_shows_only_after_a_prompt():
    pieces = pushed_one_by_one(Detokenizer(SpaceTokenizer(), [0]), [1, 2, 3, 4] * 10)
    assert "".join(pieces) == " upon atime!" * 10
    assert pieces[:4] == [" upon", " a", "time", "!"]


def test_a_character_that_the_prompt_began_is_completed():
    first, *rest = "日".encode()
    assert "".join(pushed_one_by_one(Detokenizer(ByteTokenizer(), [*b"x", first]), rest)) == "日"


def test_a_prompt_that_ends_in_a_broken_character_does_not_come_out_again():
    assert "".join(pushed_one_by_one(Detokenizer(ByteTokenizer(), [*b"x", 0xE6]), b"ab")) == "ab"


def test_an_incomplete_character_comes_out_as_a_replacement_at_the_end():
    detokenizer = Detokenizer(ByteTokenizer(), [1])
    assert detokenizer.push("日".encode()[:2]) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


def test_bytes_that_never_become_text_are_not_held_for_ever():
    detokenizer = Detokenizer(ByteTokenizer(), [1])
    out = detokenizer.push([0xFF] * 1000)
    assert 900 < out.count("\ufffd") <= 1000
    assert detokenizer.push(b"ok").endswith("ok")


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), FallbackTokenizer()])
@given(data=st.data())
def test_text_does_not_depend_on_how_tokens_arrive(tokenizer, data):
    ids = data.draw(st.lists(st.sampled_from([*b"ab\xe6\x97\xa5\xff\xf0\x9f\x99\x82"]), max_size=60))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=5)))
    together = Detokenizer(tokenizer, [97])
    whole = together.push(ids) + together.flush()
    parts = Detokenizer(tokenizer, [97])
    pieces = [parts.push(ids[begin:end]) for begin, end in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    assert "".join(pieces) + parts.flush() == whole


@given(st.text(max_size=80))
def test_valid_text_comes_out_as_it_went_in(text):
    detokenizer = Detokenizer(ByteTokenizer(), list(b"abc"))
    if not text.endswith("\ufffd"):
        assert detokenizer.push(text.encode()) == text
    else:
        assert detokenizer.push(text.encode()) + detokenizer.flush() == text


@given(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4), st.text("abc", max_size=30), st.data())
def test_the_stop_string_that_ends_first_is_found_however_the_text_is_cut(stops, text, data):
    ends = [(end, -len(stop), stop) for stop in stops for end in range(len(text) + 1) if text[:end].endswith(stop)]
    found = min(ends, default=None)
    expected = text if found is None else text[: found[0] + found[1]]
    matcher, out, stop = StopMatcher(stops), "", None
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        if stop is None:
            piece, stop = matcher.push(text[begin:end])
            out += piece
            assert expected.startswith(out), "text left that could have been the beginning of a stop string"
    if stop is None:
        out += matcher.flush()
    assert (out, stop) == (expected, None if found is None else found[2])


def test_what_may_begin_a_stop_string_is_held_back_and_comes_out_when_it_does_not():
    matcher = StopMatcher(["</s>"])
    assert matcher.push("a<") == ("a", None)
    assert matcher.push("/") == ("", None)
    assert matcher.push("x<") == ("</x", None)
    assert matcher.push("/s>tail") == ("", "</s>")


def test_a_stop_string_is_kept_when_it_is_asked_for():
    assert StopMatcher(["END"], include_stop=True).push("an END b") == ("an END", "END")
