import random

import pytest
from fakes import ByteTokenizer
from hypothesis import given
from hypothesis import strategies as st

from llm_decoder.detokenizer import Detokenizer, StopMatcher
from llm_decoder.embedded import embedded_model
from llm_decoder.tokenizer import load_tokenizer

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


class PieceTokenizer:
    """Any bytes as tokens, as byte-level pairs are: a token may hold the end of one character and the beginning of
    another. Id 0 is a special token, which gives nothing."""

    def __init__(self, pieces):
        self.pieces = [b"", *pieces]

    def decode(self, ids, skip_special_tokens=True):
        return b"".join(self.pieces[token] for token in ids).decode(errors="replace")


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
    assert out + detokenizer.push(b"ok") == "\ufffd" * 1000 + "ok"


@pytest.mark.parametrize("piece", [b"\xff", b"\x97", b"\xa5\xe6\x97", b"\x99\x82\xf0\x9f", b"\xf0\x9f"])
def test_the_window_stays_small_whatever_never_becomes_text(piece):
    tokenizer = PieceTokenizer([piece])
    detokenizer = Detokenizer(tokenizer, [0])
    ids = [1, 0] * 500
    out = ""
    for token in ids:
        out += detokenizer.push([token])
        assert len(detokenizer._window) < 32
    assert out + detokenizer.flush() == tokenizer.decode(ids)


def test_a_character_that_begins_among_many_broken_bytes_is_completed():
    for n_broken in range(40):
        data = b"\xff" * n_broken + "日".encode()
        pieces = pushed_one_by_one(Detokenizer(ByteTokenizer(), list(b"abc")), data)
        assert "".join(pieces) == "\ufffd" * n_broken + "日"


def test_a_character_that_broken_bytes_in_the_prompt_began_is_completed_and_they_do_not_come_out_again():
    first, *rest = "日".encode()
    assert "".join(pushed_one_by_one(Detokenizer(ByteTokenizer(), [*b"x\xff\xff", first]), rest)) == "日"


def test_random_tokens_of_a_byte_level_tokenizer_give_the_text_of_all_of_them_at_once():
    tokenizer = load_tokenizer(embedded_model())
    single_bytes = [token for token in range(len(tokenizer)) if len(tokenizer.token_bytes(token)) == 1]
    rng = random.Random(1)
    for trial in range(3000):
        among = range(len(tokenizer)) if trial % 2 else single_bytes
        ids = rng.choices(among, k=rng.randrange(1, 60))
        assert "".join(pushed_one_by_one(Detokenizer(tokenizer, [0]), ids)) == tokenizer.decode(ids)


# The beginnings, middles and ends of characters of two to four bytes, bytes that begin none, and whole ones.
FRAGMENTS = [b"\xc3", b"\xa9", b"\xe6", b"\x97", b"\xa5", b"\xf0", b"\x9f", b"\x99", b"\x82", b"\xff", b"\xe0", b"a"]


@given(
    pieces=st.lists(st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=6).map(b"".join), min_size=1, max_size=6),
    data=st.data(),
)
def test_pieces_of_characters_in_any_order_give_the_text_of_all_of_them_at_once(pieces, data):
    tokenizer = PieceTokenizer(pieces)
    ids = data.draw(st.lists(st.integers(0, len(pieces)), max_size=60))
    assert "".join(pushed_one_by_one(Detokenizer(tokenizer, []), ids)) == tokenizer.decode(ids)


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
