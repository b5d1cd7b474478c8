"""The forms in which a prompt may come, and how each becomes token ids, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from llm_decoder.chat import Message, fit_chat
from llm_decoder.errors import ContextLengthExceededError, InvalidRequestError
from llm_decoder.sampling import SamplingParams

if TYPE_CHECKING:
    from llm_decoder.no_tokenizer import NoTokenizer
    from llm_decoder.tokenizer import Tokenizer

__all__ = ["Prompt", "TokenizedPrompt", "as_prompts", "checked_messages", "is_chat", "tokenize_prompt"]

# A text, token ids, or the messages of a chat.
Prompt: TypeAlias = str | Sequence[int] | Sequence[Message]

# No token is longer than this many characters in any vocabulary we know of: a text longer than as many contexts of
# them is refused before it costs anything.
MAX_TOKEN_CHARS = 512


@dataclass(frozen=True)
class TokenizedPrompt:
    token_ids: Sequence[int]
    text: str | None = None
    dropped_messages: int = 0


def as_prompts(prompts: str | Sequence[Any]) -> list[Prompt]:
    """A list of prompts of what may be one prompt or several. Raises InvalidRequestError for an empty list."""
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, np.ndarray):
        prompts = prompts.tolist()
    if isinstance(prompts, (bytes, Mapping)) or not isinstance(prompts, Sequence):
        raise _wrong_form(prompts)
    if not prompts:
        raise InvalidRequestError("[prompts] need at least one prompt, got an empty list", param="prompt")
    if _is_token(prompts[0]) or isinstance(prompts[0], Mapping):
        return [cast(Prompt, prompts)]
    return list(prompts)


def tokenize_prompt(
    prompt: Prompt,
    tokenizer: Tokenizer | NoTokenizer,
    max_model_len: int,
    params: SamplingParams,
    **template_options: Any,
) -> TokenizedPrompt:
    """The token ids of a prompt. Raises InvalidRequestError when it is empty, no valid text, or of another form, and
    for texts and chats where there is no tokenizer."""
    if isinstance(prompt, str):
        _check_text(prompt, max_model_len)
        return TokenizedPrompt(tokenizer.encode(prompt), prompt)
    if isinstance(prompt, np.ndarray):
        return TokenizedPrompt(prompt.tolist())
    if isinstance(prompt, (bytes, Mapping)) or not isinstance(prompt, Sequence):
        raise _wrong_form(prompt)
    if is_chat(prompt):
        messages = cast(Sequence[Message], prompt)
        chat = fit_chat(tokenizer, messages, max_model_len, params.max_tokens, **template_options)
        return TokenizedPrompt(chat.token_ids, None, chat.dropped_messages)
    if not all(_is_token(token) for token in prompt):
        raise _wrong_form(prompt)
    return TokenizedPrompt(cast(Sequence[int], prompt))


def is_chat(prompt: Any) -> bool:
    """Whether a prompt is the messages of a chat."""
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def checked_messages(messages: Any) -> Sequence[Message]:
    """`messages` themselves. Raises InvalidRequestError when they are not those of a chat."""
    if not is_chat(messages):
        got = "an empty list" if messages == [] else type(messages).__name__
        raise InvalidRequestError(
            f'[messages] need a list such as [{{"role": "user", "content": "..."}}], got {got}', param="messages"
        )
    return cast(Sequence[Message], messages)


def _check_text(text: str, max_model_len: int) -> None:
    """Refuses an empty text, one that is no valid Unicode, and one far too long for the context (in tokens)."""
    if not text:
        raise InvalidRequestError("[prompt] needs some text, got none", param="prompt")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"[prompt] needs valid Unicode, got a lone surrogate at character {error.start}", param="prompt"
        ) from None
    if len(text) > MAX_TOKEN_CHARS * max_model_len:
        raise ContextLengthExceededError(
            f"[prompt] the context holds {max_model_len} tokens (n_ctx = {max_model_len}), the text has {len(text)} "
            "characters; shorten it"
        )


def _is_token(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _wrong_form(prompt: Any) -> InvalidRequestError:
    return InvalidRequestError(
        f"[prompt] must be a text, a list of token ids or a list of messages, got {type(prompt).__name__}",
        param="prompt",
    )
