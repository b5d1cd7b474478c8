"""Stands for the tokenizer of a model folder that has none: token ids go in and come out, nothing is text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_decoder.errors import InvalidRequestError, ModelNotFoundError
from llm_decoder.sampling import SamplingParams
from llm_decoder.search.params import SearchParams

__all__ = ["TOKENIZER_FILES", "NoTokenizer", "has_tokenizer"]

# Any one of them is a tokenizer; the first needs no further library.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "spiece.model")
_INSTEAD = {"stop": "stop_token_ids", "bad_words": "bad_token_ids", "structured_outputs": "allowed_token_ids"}


class NoTokenizer:
    """Decodes to no text, and refuses what is asked for in text with InvalidRequestError."""

    chat_template: None = None
    eos_token_ids: frozenset[int] = frozenset()

    def __init__(self, folder: Path) -> None:
        self._reason = f"the model has no tokenizer: {folder} holds none of {', '.join(TOKENIZER_FILES)}"

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return ""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        raise self._refusal("prompt")

    def apply_chat_template(
        self, messages: Any, add_generation_prompt: bool = True, continue_final_message: bool = False, **kwargs: Any
    ) -> list[int]:
        raise self._refusal("messages")

    def check(self, params: SamplingParams) -> None:
        """Raises InvalidRequestError for fields that are texts."""
        for name in _INSTEAD:
            if getattr(params, name):
                raise self._refusal(name)
        if isinstance(params, SearchParams) and params.is_scored:
            raise InvalidRequestError(
                f'[scorer] needs answers with a text, and {self._reason}; give scorer="logprob", or name a folder with '
                "a tokenizer: LLM(..., tokenizer=FOLDER)",
                param="scorer",
                code="no_tokenizer",
            )

    def _refusal(self, param: str) -> InvalidRequestError:
        instead = _INSTEAD.get(param, "token ids")
        return InvalidRequestError(
            f"[{param}] need {instead}, got text, and {self._reason}; give {instead}, or name a folder with a "
            "tokenizer: LLM(..., tokenizer=FOLDER)",
            param=param,
            code="no_tokenizer",
        )

    def missing(self) -> ModelNotFoundError:
        """What asking for the tokenizer itself raises."""
        return ModelNotFoundError(
            f"[tokenizer] {self._reason}; work with token ids, or name a folder with a tokenizer: "
            "LLM(..., tokenizer=FOLDER)"
        )


def has_tokenizer(folder: Path) -> bool:
    """Whether a model folder holds a tokenizer, or the settings of one that should be there."""
    return any((folder / name).exists() for name in (*TOKENIZER_FILES, "tokenizer_config.json"))
