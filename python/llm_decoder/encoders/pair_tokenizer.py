"""Texts and pairs of texts as the tokens that an encoder reads, cut to its length."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors

from llm_decoder.errors import (
    ConfigError,
    InvalidRequestError,
    MalformedFileError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from llm_decoder.json_file import read_bounded, read_json_object
from llm_decoder.tokenizer import MAX_TEXT_CHARS, MAX_TOKENIZER_BYTES, guarded

__all__ = ["PairTokenizer", "Part", "Tokens", "load_pair_tokenizer"]

Ints = npt.NDArray[np.int32]

_MAX_VOCAB_BYTES = 64 * 2**20
_LONGEST = 1_000_000  # a model_max_length above it means that the tokenizer does not know
# So many characters a token that is kept are looked at first, more only where they give too few tokens.
_CHARS_A_TOKEN = 64


@dataclass(frozen=True)
class Tokens:
    """One text or pair. ids, type_ids: int32 [n_tokens]. is_cut: it was longer."""

    ids: Ints
    type_ids: Ints
    is_cut: bool


@dataclass(frozen=True)
class Part:
    """A text by itself. ids: int32, those that can count, at most max_length. n: how many it has."""

    ids: Ints
    n: int


@dataclass(frozen=True)
class _Frame:
    """What a model puts around texts: before the first, between two, behind the last. text_types: of each text."""

    ids: tuple[Ints, ...]
    type_ids: tuple[Ints, ...]
    text_types: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: RustTokenizer, n_texts: int) -> _Frame:
        """Raises UnsupportedModelError where the texts do not stand in their order, each once and whole."""
        encoding = guarded(lambda: tokenizer.encode("a", "a" if n_texts == 2 else None), "encode")
        gaps: list[list[tuple[int, int]]] = [[]]
        text_types: list[int] = []
        texts: list[int] = []
        for id_, type_id, text in zip(encoding.ids, encoding.type_ids, encoding.sequence_ids, strict=True):
            if text is None:
                gaps[-1].append((id_, type_id))
            elif texts[-1:] != [text] or gaps[-1]:
                texts.append(text)
                text_types.append(type_id)
                gaps.append([])
        if texts != list(range(n_texts)):
            raise UnsupportedModelError(
                f"[tokenizer: post_processor] need each text once, in their order, got {texts} of {n_texts} texts"
            )
        ids, type_ids = (tuple(np.array([token[i] for token in gap], np.int32) for gap in gaps) for i in (0, 1))
        return cls(ids, type_ids, tuple(text_types))

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.ids))

    def around(self, texts: Sequence[Ints]) -> tuple[Ints, Ints]:
        """(ids, type ids) of the whole."""
        ids, type_ids = [self.ids[0]], [self.type_ids[0]]
        for i, text in enumerate(texts):
            ids += [text, self.ids[i + 1]]
            type_ids += [np.full(len(text), self.text_types[i], np.int32), self.type_ids[i + 1]]
        return np.concatenate(ids), np.concatenate(type_ids)


class PairTokenizer:
    """Safe to use from several threads. Text never becomes special tokens: "[SEP]" in it is characters.

    max_length: tokens of a text or pair, what the model puts around it included; of a longer pair the longer text loses
    its end (its beginning where `side` is "left") until it fits. has_types: the second text is told from the first.
    """

    def __init__(
        self, tokenizer: RustTokenizer, *, max_length: int, side: str = "right", has_types: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._side = side
        self._has_types = has_types
        self.max_length = max_length
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        self._around_one, self._around_two = _Frame.of(tokenizer, 1), _Frame.of(tokenizer, 2)
        least = self._around_two.n_tokens + 2
        if max_length < least:
            raise ConfigError(f"[max_length] need at least {least} tokens, a pair with nothing in it, got {max_length}")
        tokenizer.enable_truncation(max_length, direction=side)
        self.n_ids = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    def encode(self, text: str, *, place: str) -> Tokens:
        """One text. Raises InvalidRequestError for what is no text; `place` names it there."""
        part = self.part(text, place=place)
        room = self.max_length - self._around_one.n_tokens
        return self._tokens(self._around_one, [self._cut(part, room)], part.n > room)

    def encode_pair(self, first: str, second: str, *, places: tuple[str, str]) -> Tokens:
        """Two texts as one sequence. Raises InvalidRequestError for what is no text; `places` name them there."""
        return self.pair(self.part(first, place=places[0]), self.part(second, place=places[1]))

    def part(self, text: str, *, place: str) -> Part:
        """One text, for `pair`: what stands in many pairs is read once. Raises InvalidRequestError for what is no text;
        `place` names it there."""
        _check(text, place)
        # The end of a book is thrown away before it is tokenised.
        n_chars = _CHARS_A_TOKEN * self.max_length
        while True:
            some = text[-n_chars:] if self._side == "left" else text[:n_chars]
            encoding = guarded(functools.partial(self._tokenizer.encode, some, add_special_tokens=False), "encode")
            if encoding.overflowing or len(some) == len(text):
                n = len(encoding.ids) + sum(len(more.ids) for more in encoding.overflowing)
                return Part(np.array(encoding.ids, np.int32), n)
            n_chars *= 4

    def pair(self, first: Part, second: Part) -> Tokens:
        """Two texts as one sequence."""
        room = self.max_length - self._around_two.n_tokens
        n_first, n_second = first.n, second.n
        is_cut = n_first + n_second > room
        if is_cut:
            n_first, n_second = _longest_first(n_first, n_second, room)
        return self._tokens(self._around_two, [self._cut(first, n_first), self._cut(second, n_second)], is_cut)

    def _cut(self, part: Part, n: int) -> Ints:
        return part.ids[max(0, len(part.ids) - n) :] if self._side == "left" else part.ids[:n]

    def _tokens(self, frame: _Frame, texts: Sequence[Ints], is_cut: bool) -> Tokens:
        ids, type_ids = frame.around(texts)
        return Tokens(ids, type_ids if self._has_types else np.zeros_like(ids), is_cut)


def _longest_first(n_first: int, n_second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts stay where they have more than there is room for, as the tokenizers library has it:
    the longer one gives way until it is as short as the other, then both do."""
    short = min(n_first, n_second)
    long = max(short, room - short)
    if short + long > room:
        short, long = room // 2, room - room // 2
    return (short, long) if n_first <= n_second else (long, short)


def _check(text: str, place: str) -> None:
    param = place.partition("[")[0]
    if not isinstance(text, str):
        raise InvalidRequestError(f"[{place}] need a text, got {type(text).__name__}", param=param)
    if len(text) > MAX_TEXT_CHARS:
        raise InvalidRequestError(
            f"[{place}] need at most {MAX_TEXT_CHARS:,} characters, got {len(text):,}", param=param
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidRequestError(f"[{place}] need valid Unicode, got a lone surrogate", param=param) from None


def load_pair_tokenizer(
    folder: Path, *, model_length: int, default_length: int | None = None, max_length: int | None, n_ids: int
) -> PairTokenizer:
    """The tokenizer of an encoder's folder: tokenizer.json, or the vocab.txt of a WordPiece.

    model_length: tokens that the model can read. max_length: how many are wanted, None = default_length, or as many as
    model and tokenizer take. n_ids: rows of the embedding. Raises ConfigError for a max_length out of limits,
    ModelNotFoundError, MalformedFileError or UnsupportedModelError.
    """
    settings_path = folder / "tokenizer_config.json"
    settings = read_json_object(settings_path) if settings_path.exists() else {}
    if max_length is None:
        longest = min(model_length, default_length or model_length, _stated_length(settings) or model_length)
    elif isinstance(max_length, bool) or not isinstance(max_length, int) or not 1 <= max_length <= model_length:
        raise ConfigError(
            f"[max_length] need an integer in 1..{model_length}, which the model can read, got {max_length!r:.40}"
        )
    else:
        longest = max_length
    side = settings.get("truncation_side", "right")
    if side not in ("left", "right"):
        raise MalformedFileError(f"[{settings_path}: truncation_side] need left or right, got {side!r:.40}")
    inputs = settings.get("model_input_names")
    has_types = not isinstance(inputs, list) or "token_type_ids" in inputs
    tokenizer = PairTokenizer(_open(folder, settings), max_length=longest, side=side, has_types=has_types)
    if tokenizer.n_ids > n_ids:
        raise MalformedFileError(
            f"[{folder}] the tokenizer has ids up to {tokenizer.n_ids - 1}, the model's embedding {n_ids} rows; "
            "they belong to different models"
        )
    return tokenizer


def _stated_length(settings: Mapping[str, Any]) -> int | None:
    """model_max_length, None where the tokenizer does not know: then it is absent, or a very large number."""
    length = settings.get("model_max_length")
    is_number = isinstance(length, int | float) and not isinstance(length, bool)
    return int(length) if is_number and 1 <= length < _LONGEST else None  # type: ignore[operator, arg-type]


def _open(folder: Path, settings: Mapping[str, Any]) -> RustTokenizer:
    path = folder / "tokenizer.json"
    if path.exists():
        data = read_bounded(path, MAX_TOKENIZER_BYTES)
        return guarded(lambda: RustTokenizer.from_buffer(data), str(path))
    if (folder / "vocab.txt").exists():
        return _wordpiece(folder / "vocab.txt", settings)
    others = [path.name for path in folder.glob("*.model")] + [
        name for name in ("vocab.json", "merges.txt") if (folder / name).exists()
    ]
    if others:
        raise UnsupportedModelError(
            f"[{folder}] need tokenizer.json or vocab.txt, got {min(others)}; write the former with transformers: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    raise ModelNotFoundError(f"[{path}] need this file, got none; is the download complete?")


def _wordpiece(path: Path, settings: Mapping[str, Any]) -> RustTokenizer:
    """BERT's tokenizer out of its vocabulary, a token a line (Devlin et al. 2019, section 3)."""
    try:
        lines = read_bounded(path, _MAX_VOCAB_BYTES).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise MalformedFileError(f"[{path}] need UTF-8: {error}") from None
    vocabulary = {line.rstrip("\r"): id_ for id_, line in enumerate(lines[:-1] if lines[-1] == "" else lines)}
    names = {}
    for name, default in (("unk_token", "[UNK]"), ("cls_token", "[CLS]"), ("sep_token", "[SEP]")):
        token = settings.get(name, default)
        token = token.get("content") if isinstance(token, dict) else token
        if not isinstance(token, str) or token not in vocabulary:
            raise MalformedFileError(f"[{path}] need the {name} {token!r:.60} in the vocabulary, got none")
        names[name] = token
    tokenizer = RustTokenizer(models.WordPiece(vocabulary, unk_token=names["unk_token"], max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=_switch(settings, "tokenize_chinese_chars", path) is not False,
        strip_accents=_switch(settings, "strip_accents", path),
        lowercase=_switch(settings, "do_lower_case", path) is not False,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cls, sep = names["cls_token"], names["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])],
    )
    return tokenizer


def _switch(settings: Mapping[str, Any], name: str, path: Path) -> bool | None:
    value = settings.get(name)
    if value is not None and not isinstance(value, bool):
        place = f"{path.parent / 'tokenizer_config.json'}: {name}"
        raise MalformedFileError(f"[{place}] need true or false, got {value!r:.40}")
    return value
