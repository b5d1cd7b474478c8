"""Text to ids and back, and tokenizer files that are not what they claim."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models_factory import SPECIAL_TOKENS, TOKENIZER_SIZE, make_tokenizer, write_json

from llm_decoder.errors import InvalidRequestError, MalformedFileError, ModelNotFoundError, UnsupportedModelError
from llm_decoder.tokenizer import MAX_TEXT_CHARS, Tokenizer, load_tokenizer

BEGIN, END = 0, SPECIAL_TOKENS.index("<|end|>")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(make_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text())
def test_any_text_survives_there_and_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text())
def test_the_bytes_of_tokens_joined_are_the_bytes_of_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(tokenizer.token_bytes(id_) for id_ in ids) == text.encode()


def test_the_begin_token_is_added_unless_told_otherwise(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("a dog")[0] == BEGIN
    assert BEGIN not in tokenizer.encode("a dog", add_special_tokens=False)


def test_text_that_a_user_typed_never_becomes_a_special_token(tokenizer: Tokenizer) -> None:
    assert END not in tokenizer.encode("a<|end|>b")
    assert END in tokenizer.encode("a<|end|>b", allow_special_tokens=True)
    assert END not in tokenizer.encode("a<|end|>b"), "the switch stays with its call"


def test_ids_past_the_vocabulary_decode_to_nothing(tokenizer: Tokenizer) -> None:
    assert len(tokenizer) == TOKENIZER_SIZE
    ids = tokenizer.encode("a dog")
    assert tokenizer.decode([*ids, TOKENIZER_SIZE, 330, 2**31]) == "a dog"
    assert tokenizer.token_bytes(330) == b""


def test_special_tokens_are_shown_only_when_asked_for(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([END]) == ""
    assert tokenizer.decode([END], skip_special_tokens=False) == "<|end|>"


def test_broken_utf8_decodes_to_replacement_characters(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ö", add_special_tokens=False)
    assert len(ids) == 2
    assert tokenizer.decode(ids[:1]) == "\ufffd"


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", 7, None, b"bytes", ["list"]])
def test_what_is_no_unicode_text_is_a_bad_request(tokenizer: Tokenizer, text: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        tokenizer.encode(text)
    assert caught.value.param == "prompt"


def test_a_text_beyond_any_context_is_refused_before_it_is_tokenised(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="characters"):
        tokenizer.encode("a" * (MAX_TEXT_CHARS + 1))


def test_nul_and_right_to_left_text_is_text(tokenizer: Tokenizer) -> None:
    text = "a\0b \u202e \ufeff שלום 🙂"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_truncation_and_padding_stored_in_the_file_are_switched_off(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    write_json(tmp_path / "tokenizer.json", content)
    assert len(load_tokenizer(tmp_path).encode("one two three four five")) > 5


def test_the_tokens_of_the_settings_are_read_as_text_or_object(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": {"content": "<|end|>", "special": True}})
    assert load_tokenizer(tmp_path).eos_token_ids == {END}


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_folder_for_autotokenizer_says_which_extra_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\0")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UnsupportedModelError, match=r'pip install "llm_decoder\[hf\]"'):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("value", ["<|absent|>", 7, ["x"], {"content": 7}])
def test_a_special_token_that_is_no_token_is_refused(tmp_path: Path, value: Any) -> None:
    make_tokenizer(tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": value})
    with pytest.raises(MalformedFileError, match="eos_token"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"a": NaN}', b'{"a": 1, "a": 2}'])
def test_broken_tokenizer_settings_are_refused(tmp_path: Path, content: bytes) -> None:
    make_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(MalformedFileError, match=r"tokenizer_config\.json"):
        load_tokenizer(tmp_path)


def test_several_threads_with_different_switches_do_not_meet(tokenizer: Tokenizer) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def is_special(index: int) -> bool:
        return (END in tokenizer.encode("a<|end|>b", allow_special_tokens=bool(index % 2))) == bool(index % 2)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(is_special, range(400)))


def test_a_sentencepiece_like_vocabulary_gives_its_bytes_and_spaces() -> None:
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers import decoders, models, normalizers

    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": 1 + byte for byte in range(256)}, "▁": 257, "a": 258, "▁a": 259}
    rust = RustTokenizer(models.BPE(vocab, [("▁", "a")], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    rust.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    rust.decoder = decoders.Sequence(steps)
    tokenizer = Tokenizer(rust)
    ids = tokenizer.encode("a aö\n")
    assert b"".join(tokenizer.token_bytes(id_) for id_ in ids) == " a aö\n".encode()
    assert tokenizer.decode(ids) == "a aö\n"
