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
from llm_decoder.errors import InvalidRequestError, MalformedFileError, ModelNotFoundError, UnsupportedModelError
from llm_decoder.json_file import read_bounded, read_json_object

__all__ = ["Tokenizer", "load_tokenizer"]

MAX_TOKENIZER_BYTES = 512 * 2**20
MAX_TEXT_CHARS = 1 << 26  # before tokenising; far above any context

_TOKEN_FIELDS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_OTHER_FORMATS = ("tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "spiece.model")
_UNSEEN_MARK = "\ufdd1"  # a noncharacter that breaks special tokens typed by a user while a template runs
_Result = TypeVar("_Result")


class Tokenizer:
    """A tokenizer and the chat template beside it. Safe to use from several threads.

    Text that a user typed never becomes special tokens: `encode` reads "<|end|>" as characters unless
    `allow_special_tokens` is set, and `apply_chat_template` does so for what stands inside messages.
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
            ids: list[int] = _guarded(
                lambda: self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids, "encode"
            )
        return ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids. Ids that the tokenizer does not know give nothing; broken UTF-8 gives U+FFFD."""
        known = [int(id_) for id_ in ids if 0 <= id_ < self._size or id_ in self._added]
        text: str = _guarded(lambda: self._tokenizer.decode(known, skip_special_tokens=skip_special_tokens), "decode")
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
        InvalidRequestError when the model has no template or the template refuses the messages.
        """
        if self.chat_template is None:
            raise InvalidRequestError(
                "[messages] this model has no chat template; give a prompt, or a template in chat_template.json",
                param="messages",
            )
        shielded, n_found = _shield(messages, self._special_pattern)
        text = self.chat_template.render(
            shielded,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **kwargs,
        )
        if n_found == 0:
            return self.encode(text, add_special_tokens=False, allow_special_tokens=True)
        return self._encode_shielded(text)

    def token_id(self, token: str) -> int | None:
        """The id of a token by its own text (special tokens included), or None."""
        id_: int | None = self._tokenizer.token_to_id(token)
        return id_

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

    def is_special(self, id_: int) -> bool:
        """Whether `decode` leaves the token out by default."""
        return id_ in self._special

    @functools.cached_property
    def _is_byte_level(self) -> bool:
        decoder = self._tokenizer.decoder
        return decoder is not None and b"ByteLevel" in decoder.__getstate__()

    @functools.cached_property
    def _special_pattern(self) -> re.Pattern[str] | None:
        texts = sorted({self._added[id_] for id_ in self._special if self._added[id_]}, key=len, reverse=True)
        return re.compile("|".join(re.escape(text) for text in texts)) if texts else None

    def _encode_shielded(self, text: str) -> list[int]:
        """Special tokens of the template become ids; those that a user typed were shielded and become characters."""
        pattern = self._special_pattern
        ids: list[int] = []
        position = 0
        for match in pattern.finditer(text) if pattern else ():
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
        tokenizer = _guarded(lambda: RustTokenizer.from_buffer(data), str(path))
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
    found = [name for name in _OTHER_FORMATS if (folder / name).exists()]
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


def _shield(messages: Sequence[Message], pattern: re.Pattern[str] | None) -> tuple[Sequence[Message], int]:
    """The messages with special tokens in their texts broken by a mark, and how many there were."""
    n_found = 0

    def shield(value: Any, depth: int = 0) -> Any:
        nonlocal n_found
        if isinstance(value, str) and pattern is not None:
            if _UNSEEN_MARK in value:
                value = value.replace(_UNSEEN_MARK, "")
            value, n = pattern.subn(lambda match: match.group()[0] + _UNSEEN_MARK + match.group()[1:], value)
            n_found += n
        elif depth < 64 and isinstance(value, Mapping):
            value = {key: item if key == "role" else shield(item, depth + 1) for key, item in value.items()}
        elif depth < 64 and isinstance(value, list | tuple):
            value = [shield(item, depth + 1) for item in value]
        return value

    shielded = shield(messages) if isinstance(messages, list | tuple) else messages
    return shielded, n_found


def _guarded(call: Callable[[], _Result], place: str) -> _Result:
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
