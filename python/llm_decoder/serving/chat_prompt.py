"""A chat's messages and options as the prompt of a Call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from llm_decoder.chat_template import ALLOWED_KWARGS
from llm_decoder.errors import ModelNotFoundError
from llm_decoder.serving.errors import HttpError
from llm_decoder.serving.schemas_messages import ChatMessage, as_messages
from llm_decoder.serving.service import Service

__all__ = ["chat_messages", "template_options"]


class ChatFields(Protocol):
    """Schemas that have a chat's options."""

    add_generation_prompt: bool | None
    continue_final_message: bool | None
    chat_template_kwargs: dict[str, Any] | None


def chat_messages(service: Service, messages: list[ChatMessage]) -> list[dict[str, Any]]:
    return as_messages(messages, _knows_developer(service))


def _knows_developer(service: Service) -> bool:
    try:
        template = getattr(service.llm.tokenizer, "chat_template", None)
    except ModelNotFoundError:
        return False  # the chat will be refused
    return template is not None and "developer" in template.source


def template_options(request: ChatFields, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """more: what other fields of the request say to the template. Raises HttpError 400 for options that contradict each
    other or are none."""
    # Only these: others are options of ours, which a request must not reach.
    for name in (request.chat_template_kwargs or {}).keys() - ALLOWED_KWARGS:
        raise HttpError(
            400,
            f"[chat_template_kwargs.{name[:64]}] need one of {', '.join(sorted(ALLOWED_KWARGS))}",
            param="chat_template_kwargs",
        )
    options = {**(more or {}), **(request.chat_template_kwargs or {})}
    if request.continue_final_message:
        if request.add_generation_prompt:
            raise HttpError(
                400,
                "[continue_final_message] the last message goes on, or an answer begins (add_generation_prompt); got "
                "both",
                param="continue_final_message",
            )
        return options | {"continue_final_message": True, "add_generation_prompt": False}
    if request.add_generation_prompt is not None:
        options["add_generation_prompt"] = request.add_generation_prompt
    return options
