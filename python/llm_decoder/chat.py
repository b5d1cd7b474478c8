"""A chat as a prompt: messages through the template, and what happens when they outgrow the context.

The rule: system messages at the beginning stay. The rest falls into turns, each a user message with all that answers
it. The oldest turns are dropped, whole, until the prompt leaves room for the answer: max_tokens, but no more than a
quarter of the context. The last turn always stays, whatever room it leaves, as long as one token fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llm_decoder.errors import ContextLengthExceededError, InvalidRequestError

__all__ = ["ChatTokenizer", "FittedChat", "Message", "fit_chat", "last_user_text"]

Message = Mapping[str, Any]
MAX_MESSAGES = 16384


class ChatTokenizer(Protocol):
    def apply_chat_template(
        self, messages: Any, add_generation_prompt: bool = True, continue_final_message: bool = False, **kwargs: Any
    ) -> list[int]: ...


@dataclass(frozen=True)
class FittedChat:
    """token_ids: the chat as a prompt. dropped_messages: how many messages it left out."""

    token_ids: list[int]
    dropped_messages: int = 0


def fit_chat(
    tokenizer: ChatTokenizer,
    messages: Sequence[Message],
    max_model_len: int,
    max_tokens: int | None,
    drop_turns: bool = True,
    **template_options: Any,
) -> FittedChat:
    """The prompt of a chat, without its oldest turns where they do not fit. drop_turns: false = all of them stay.

    Raises InvalidRequestError for messages of another form, ContextLengthExceededError when what stays does not fit.
    """
    _check_messages(messages)
    system, turns = _split(messages)
    room = max(1, min(max_model_len // 4, max_model_len if max_tokens is None else max_tokens))

    def render(n_dropped: int) -> list[int]:
        kept = [*system, *(message for turn in turns[n_dropped:] for message in turn)]
        return tokenizer.apply_chat_template(kept, **template_options)

    token_ids = render(0)
    if len(token_ids) + room <= max_model_len or (not drop_turns and len(token_ids) < max_model_len):
        return FittedChat(token_ids)
    if not drop_turns:
        raise ContextLengthExceededError(
            f"[messages] the context holds {max_model_len} tokens (n_ctx = {max_model_len}), the chat has "
            f"{len(token_ids)} and leaves no room for an answer; shorten it, or raise max_model_len",
            param="messages",
        )
    # A prompt gets shorter with every turn it loses: look for the first number of turns that is enough.
    low, high = 1, len(turns) - 1
    while low < high:
        middle = (low + high) // 2
        if len(render(middle)) + room <= max_model_len:
            high = middle
        else:
            low = middle + 1
    n_dropped = min(low, len(turns) - 1)
    token_ids = render(n_dropped)
    if len(token_ids) >= max_model_len:
        raise ContextLengthExceededError(
            f"[messages] the context holds {max_model_len} tokens (n_ctx = {max_model_len}), the last turn with the "
            f"system message has {len(token_ids)} and leaves no room for an answer; shorten it, or raise max_model_len",
            param="messages",
        )
    return FittedChat(token_ids, sum(len(turn) for turn in turns[:n_dropped]))


def last_user_text(messages: Sequence[Message]) -> str:
    """What the user said last; empty when that was nothing."""
    content = next((message.get("content") for message in reversed(messages) if message["role"] == "user"), None)
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else ()
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, Mapping))


def _split(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """(system messages at the beginning, turns)"""
    n_system = 0
    while n_system < len(messages) - 1 and messages[n_system]["role"] in ("system", "developer"):
        n_system += 1
    turns: list[list[Message]] = []
    for message in messages[n_system:]:
        if message["role"] == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return list(messages[:n_system]), turns


def _check_messages(messages: Sequence[Message]) -> None:
    """What the turns are told by; the template checks the rest of each message."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise InvalidRequestError("[messages] need a list with at least one message, got none", param="messages")
    if len(messages) > MAX_MESSAGES:
        raise InvalidRequestError(
            f"[messages] need at most {MAX_MESSAGES} messages, got {len(messages)}", param="messages"
        )
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InvalidRequestError(
                f"[messages.{i}] needs a mapping with a role, got {str(message)[:40]!r}", param="messages"
            )
