"""Log probabilities as clients read them: /v1/completions' columns, /v1/chat/completions' entries."""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llm_decoder.errors import ModelNotFoundError
from llm_decoder.outputs import TokenLogprob

if TYPE_CHECKING:
    from llm_decoder.llm import LLM
    from llm_decoder.tokenizer import Tokenizer

__all__ = ["LogprobColumns", "TokenTexts", "chat_logprobs", "prompt_logprobs"]

# JSON has no infinity: a token that cannot be.
_LOWEST = -9999.0


class TokenTexts:
    """Tokens one by one as text. as_ids: their names are "token_id:5", as vLLM's return_tokens_as_token_ids has it; so
    it is with a model that has no tokenizer."""

    def __init__(self, llm: LLM, as_ids: bool = False) -> None:
        self._tokenizer: Tokenizer | None = None
        with contextlib.suppress(ModelNotFoundError):
            self._tokenizer = llm.tokenizer
        self._as_ids = as_ids
        self._names: dict[int, str] = {}
        self._are_shown: dict[int, bool] = {}

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's; None when it has none."""
        return self._tokenizer

    def bytes_of(self, token: int) -> bytes:
        return self.name(token).encode() if self._tokenizer is None else self._tokenizer.token_bytes(token)

    def name(self, token: int) -> str:
        """Its text; of bytes that are no characters "bytes:\\xe2\\x80", as OpenAI writes them, so that two tokens are
        not one."""
        name = self._names.get(token)
        if name is None:
            name = self._names[token] = self._name(token)
        return name

    def _name(self, token: int) -> str:
        return f"token_id:{token}" if self._as_ids else self.decoded(token)

    def decoded(self, token: int) -> str:
        """As `name`, whatever the client wants tokens to be called."""
        if self._tokenizer is None:
            return f"token_id:{token}"
        raw = self._tokenizer.token_bytes(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def text(self, prompt: Any) -> str:
        """A prompt as text: itself, or what its token ids say."""
        if isinstance(prompt, str):
            return prompt
        return "" if self._tokenizer is None else self._tokenizer.decode(prompt)

    def is_shown(self, token: int) -> bool:
        """Whether it gives text when special tokens are left out."""
        is_shown = self._are_shown.get(token)
        if is_shown is None:
            is_shown = self._are_shown[token] = self._is_shown(token)
        return is_shown

    def _is_shown(self, token: int) -> bool:
        if self._tokenizer is None:
            return False
        # Alone, a token that is a space may decode to nothing in both ways.
        return self._tokenizer.decode([token]) == self._tokenizer.decode([token], skip_special_tokens=False)


def _number(logprob: float) -> float:
    return max(logprob, _LOWEST)


class LogprobColumns:
    """tokens, token_logprobs, top_logprobs, text_offset of one answer, also in pieces. A token that ends in the middle
    of a character has the offset of that character."""

    def __init__(self, texts: TokenTexts, n_top: int) -> None:
        self._texts = texts
        self._n_top = n_top
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, entries: Sequence[TokenLogprob | None], first_token_id: int | None = None) -> dict[str, Any]:
        """first_token_id: of the prompt's first token, which has no entry."""
        columns: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for entry in entries:
            token_id = first_token_id if entry is None else entry.token_id
            assert token_id is not None
            columns["tokens"].append(self._texts.name(token_id))
            columns["token_logprobs"].append(None if entry is None else _number(entry.logprob))
            columns["top_logprobs"].append(None if entry is None or not self._n_top else self._best(entry))
            columns["text_offset"].append(self._offset)
            self._offset += len(self._decoder.decode(self._shown_bytes(token_id)))
        if not self._n_top:
            columns["top_logprobs"] = None
        return columns

    def _shown_bytes(self, token_id: int) -> bytes:
        return self._texts.bytes_of(token_id) if self._texts.is_shown(token_id) else b""

    def _best(self, entry: TokenLogprob) -> dict[str, float]:
        best: dict[str, float] = {}
        for token_id, logprob in (*entry.top[: self._n_top], (entry.token_id, entry.logprob)):
            name = self._texts.name(token_id)
            best[name] = max(best.get(name, _LOWEST), _number(logprob))
        return best


def chat_logprobs(texts: TokenTexts, entries: Sequence[TokenLogprob], n_top: int) -> dict[str, Any]:
    """{"content": an entry a token, "refusal": None}"""
    content = []
    for entry in entries:
        content.append(
            _chat_entry(texts, entry.token_id, entry.logprob)
            | {"top_logprobs": [_chat_entry(texts, *alternative) for alternative in entry.top[:n_top]]}
        )
    return {"content": content, "refusal": None}


def _chat_entry(texts: TokenTexts, token_id: int, logprob: float) -> dict[str, Any]:
    return {"token": texts.name(token_id), "logprob": _number(logprob), "bytes": list(texts.bytes_of(token_id))}


def prompt_logprobs(texts: TokenTexts, entries: Sequence[TokenLogprob | None] | None) -> list[Any] | None:
    """As vLLM gives them: of each token of the prompt but the first, {token id: {logprob, rank, decoded_token}}."""
    if entries is None:
        return None
    result: list[Any] = []
    for entry in entries:
        if entry is None:
            result.append(None)
            continue
        ranked = [(token_id, logprob, rank) for rank, (token_id, logprob) in enumerate(entry.top, 1)]
        ranked.append((entry.token_id, entry.logprob, entry.rank))
        result.append(
            {
                str(token_id): {"logprob": _number(logprob), "rank": rank, "decoded_token": texts.decoded(token_id)}
                for token_id, logprob, rank in ranked
            }
        )
    return result
