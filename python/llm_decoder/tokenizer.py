"""Text to token ids and back, with the tokenizer that came with the model."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer as RustTokenizer

from llm_decoder.chat_template import ChatTemplate, Message, read_chat_template
from llm_decoder.detokenizer import TextDecoder
from llm_decoder.errors import InvalidRequestError, MalformedFileError, ModelNotFoundError, UnsupportedModelError
from llm_decoder.json_file import read_bounded, read_json_object
from llm_decoder.no_tokenizer import TOKENIZER_FILES

__all__ = ["MAX_TEXT_CHARS", "MAX_TOKENIZER_BYTES", "Tokenizer", "guarded", "load_tokenizer"]

MAX_TOKENIZER_BYTES = 512 * 2**20
MAX_TEXT_CHARS = 1 << 26  # before tokenising; far above any context

_TOKEN_FIELDS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_UNSEEN_MARK = "\ufdd1"  # a noncharacter that breaks special tokens typed by a user while a template runs
_Result = TypeVar("_Result")


class Tokenizer:
    """A tokenizer and the chat template beside it. Safe to use from several threads.

    Text that a user typed never becomes special tokens: `encode` reads "<|end|>" as characters unless
    `allow_special_tokens` is set, and `apply_chat_template` does so for every text in messages and keywords. Special
    tokens of a chat are those that its template writes.
    """

    def __init__(
        self,
        tokenizer: RustTokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        chat_template: ChatTemplate | None = None,
    ) -> None:
        """`special_tokens`: bos_token, eos_token, ... as texts. Raises MalformedFileError for one that is no token."""
        self._tokenizer = tokenizer
        self._lock = threading.Lock()  # guards the one switch that the library keeps inside the tokenizer
        self.special_tokens = dict(special_tokens or {})
        self.chat_template = chat_template
        tokenizer.no_truncation()
        tokenizer.no_padding()
        added = tokenizer.get_added_tokens_decoder()
        self._added = {id_: token.content for id_, token in added.items()}
        self._special = {id_ for id_, token in added.items() if token.special}
        self._size = tokenizer.get_vocab_size(with_added_tokens=True)
        eos = self.special_tokens.get("eos_token")
        self.eos_token_ids = frozenset() if eos is None else frozenset([self._id_of("eos_token", eos)])
        bos = self.special_tokens.get("bos_token")
        self.bos_token_id = None if bos is None else self._id_of("bos_token", bos)

    def __len__(self) -> int:
        """How many tokens it knows, added ones included; a model may have more rows than that."""
        return self._size

    @property
    def n_ids(self) -> int:
        """One more than its largest id."""
        return max(self._size, *(id_ + 1 for id_ in self._added), 0)

    def to_json(self) -> str:
        """The whole of it as the text of a tokenizer.json."""
        text: str = self._tokenizer.to_str()
        return text

    def encode(self, text: str, add_special_tokens: bool = True, *, allow_special_tokens: bool = False) -> list[int]:
        """Token ids of a text; `add_special_tokens` puts what the model expects around it (a begin token, say).

        Raises InvalidRequestError for what is no text, lone surrogates, or more than 64 Mi characters.
        """
        if not isinstance(text, str):
            raise InvalidRequestError(f"[prompt] need a text, got {type(text).__name__}", param="prompt")
        if len(text) > MAX_TEXT_CHARS:
            raise InvalidRequestError(
                f"[prompt] need at most {MAX_TEXT_CHARS:,} characters, got {len(text):,}", param="prompt"
            )
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise InvalidRequestError("[prompt] need valid Unicode, got a lone surrogate", param="prompt") from None
        with self._lock:
            self._tokenizer.encode_special_tokens = not allow_special_tokens
            ids: list[int] = guarded(
                lambda: self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids, "encode"
            )
        return ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids. Ids that the tokenizer does not know give nothing; broken UTF-8 gives U+FFFD."""
        known = [int(id_) for id_ in ids if 0 <= id_ < self._size or id_ in self._added]
        text: str = guarded(lambda: self._tokenizer.decode(known, skip_special_tokens=skip_special_tokens), "decode")
        return text

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> list[int]:
        """Token ids of a chat: [{"role": ..., "content": ...}, ...] through the model's template.

        `kwargs` are handed to the template when they are in `chat_template.ALLOWED_KWARGS`. Raises
        InvalidRequestError when the model has no template, and as ChatTemplate.render.
        """
        if self.chat_template is None:
            raise InvalidRequestError(
                "[messages] this model has no chat template; give a prompt, or a template in chat_template.json",
                param="messages",
            )
        text = self.chat_template.render(
            messages,
            self._shield,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **kwargs,
        )
        if _UNSEEN_MARK not in text:
            return self.encode(text, add_special_tokens=False, allow_special_tokens=True)
        return self._encode_shielded(text)

    def token_id(self, token: str) -> int | None:
        """The id of a token by its own text (special tokens included), or None."""
        id_: int | None = self._tokenizer.token_to_id(token)
        return id_

    def added_token_id(self, token: str) -> int | None:
        """The id of a token beside the vocabulary, special or not, by its own text; None where that is none."""
        id_ = self.token_id(token)
        return id_ if id_ in self._added else None

    def keeping(self, tokens: Iterable[str]) -> TextDecoder:
        """What decodes as this tokenizer does, but shows `tokens` even where special tokens are left out."""
        kept = self._special.intersection(self.token_id(token) for token in tokens)
        return _Keeping(self, frozenset(self._special - kept)) if kept else self

    def id_to_token(self, id_: int) -> str:
        """The token as the vocabulary spells it; "" for an id that it does not know."""
        return str(self._tokenizer.id_to_token(id_) or "") if 0 <= id_ < 2**32 else ""

    def token_bytes(self, id_: int) -> bytes:
        """The bytes that a token stands for, which need not be valid UTF-8; b"" for an id that it does not know."""
        if id_ in self._added:
            return self._added[id_].encode()
        token = self.id_to_token(id_)
        if self._is_byte_level:
            byte_of = _byte_of_char()
            if all(char in byte_of for char in token):
                return bytes(byte_of[char] for char in token)
        if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token):
            return bytes([int(token[3:5], 16)])
        return token.replace("\u2581", " ").encode()

    @functools.cached_property
    def _is_byte_level(self) -> bool:
        decoder = self._tokenizer.decoder
        return decoder is not None and b"ByteLevel" in decoder.__getstate__()

    @functools.cached_property
    def _shield(self) -> _Shield:
        return _Shield([self._added[id_] for id_ in self._special if self._added[id_]])

    def _encode_shielded(self, text: str) -> list[int]:
        """Special tokens of the template become ids; those that a user typed were broken and become characters."""
        ids: list[int] = []
        position = 0
        for match in self._shield.whole.finditer(text):
            ids += self._encode_plain(text[position : match.start()])
            ids.append(self._id_of("chat template", match.group()))
            position = match.end()
        return ids + self._encode_plain(text[position:])

    def _encode_plain(self, text: str) -> list[int]:
        text = text.replace(_UNSEEN_MARK, "")
        return self.encode(text, add_special_tokens=False) if text else []

    def _id_of(self, place: str, token: str) -> int:
        id_ = self.token_id(token)
        if id_ is None:
            raise MalformedFileError(f"[tokenizer: {place}] need a token of the vocabulary, got {token[:60]!r}")
        return id_


class _Keeping:
    """Leaves out some special tokens and shows the others."""

    def __init__(self, tokenizer: Tokenizer, left_out: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._left_out = left_out

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        if skip_special_tokens:
            ids = [id_ for id_ in ids if id_ not in self._left_out]
        return self._tokenizer.decode(ids, skip_special_tokens=False)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder: tokenizer.json, settings from tokenizer_config.json, and the chat template.

    Folders without tokenizer.json go through transformers' AutoTokenizer (the extra `hf`), never running code from the
    folder. Raises ModelNotFoundError, MalformedFileError or UnsupportedModelError.
    """
    settings_path = folder / "tokenizer_config.json"
    settings = read_json_object(settings_path) if settings_path.exists() else {}
    tokens = _special_tokens(folder, settings)
    path = folder / "tokenizer.json"
    if path.exists():
        data = read_bounded(path, MAX_TOKENIZER_BYTES)
        tokenizer = guarded(lambda: RustTokenizer.from_buffer(data), str(path))
    else:
        tokenizer = _through_transformers(folder)
    return Tokenizer(tokenizer, special_tokens=tokens, chat_template=read_chat_template(folder, settings, tokens))


def _special_tokens(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens as texts, from tokenizer_config.json or the older special_tokens_map.json."""
    map_path = folder / "special_tokens_map.json"
    fallback = read_json_object(map_path) if map_path.exists() else {}
    tokens = {}
    for name in _TOKEN_FIELDS:
        value = settings.get(name, fallback.get(name))
        if isinstance(value, dict):
            value = value.get("content")
        if value is None:
            continue
        if not isinstance(value, str):
            raise MalformedFileError(
                f"[{folder / 'tokenizer_config.json'}: {name}] need a text, got {type(value).__name__}"
            )
        tokens[name] = value
    return tokens


def _through_transformers(folder: Path) -> RustTokenizer:
    found = [name for name in TOKENIZER_FILES[1:] if (folder / name).exists()]
    if not found:
        raise ModelNotFoundError(f"[{folder / 'tokenizer.json'}] need this file, got none; is the download complete?")
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise UnsupportedModelError(
            f"[{folder}] it has {found[0]} but no tokenizer.json; reading that needs transformers: "
            'pip install "llm_decoder[hf]"'
        ) from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever the many tokenizers of another library raise
        raise MalformedFileError(f"[{folder / found[0]}] transformers cannot read it: {str(error)[:300]}") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, RustTokenizer):
        raise UnsupportedModelError(f"[{folder / found[0]}] transformers has no fast tokenizer for it")
    return backend


class _Shield:
    """Puts a mark, which is taken out again before text becomes tokens, where a user's text holds a special token, and
    where it ends like the beginning of one or begins like the end of one: what stands beside it could complete it."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._longest = max(map(len, tokens), default=0)
        self._heads = {token[:n] for token in tokens for n in range(1, len(token)) if _has_sign(token[:n])}
        self._tails = {token[n:] for token in tokens for n in range(1, len(token)) if _has_sign(token[n:])}
        longest_first = sorted(tokens, key=len, reverse=True)
        # A token of one character has no inside: its mark stands before it.
        parts = [("" if len(token) > 1 else f"(?<!{_UNSEEN_MARK})") + re.escape(token) for token in longest_first]
        self.whole = re.compile("|".join(parts) or r"(?!)")

    def __call__(self, text: str) -> str:
        text = self.whole.sub(_broken, text.replace(_UNSEEN_MARK, ""))
        lengths = range(1, min(self._longest, len(text) + 1))
        if self._is_inside_of_one(text) or any(text[:n] in self._tails for n in lengths):
            text = _UNSEEN_MARK + text
        if any(text[-n:] in self._heads for n in lengths):
            text += _UNSEEN_MARK
        return text

    def _is_inside_of_one(self, text: str) -> bool:
        return len(text) < self._longest and _has_sign(text) and any(text in token for token in self._tokens)


def _broken(match: re.Match[str]) -> str:
    token = match.group()
    return token[0] + _UNSEEN_MARK + token[1:] if len(token) > 1 else _UNSEEN_MARK + token


def _has_sign(text: str) -> bool:
    """Whether it has more than letters and digits: words alone, such as `user` and `text`, are no sign of anything."""
    return re.search(r"[^\w\s]", text) is not None


def guarded(call: Callable[[], _Result], place: str) -> _Result:
    """What the Rust library raises, panics included, as one of our errors."""
    try:
        return call()
    except BaseException as error:
        is_panic = type(error).__name__ == "PanicException"
        if not is_panic and not isinstance(error, Exception):
            raise
        raise MalformedFileError(f"[{place}] the tokenizers library refuses it: {str(error)[:300]}") from error


@functools.cache
def _byte_of_char() -> dict[str, int]:
    """GPT-2's spelling of bytes as visible characters, inverted (Radford et al. 2019)."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in visible}
    hidden = [byte for byte in range(256) if byte not in set(visible)]
    return table | {chr(256 + index): byte for index, byte in enumerate(hidden)}
