"""/tokenize, /detokenize, /tokenizer_info: text to token ids and back, without the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_decoder.errors import ContextLengthExceededError, ModelNotFoundError
from llm_decoder.prompts import MAX_TOKEN_CHARS
from llm_decoder.serving import exchange
from llm_decoder.serving.chat_prompt import chat_messages, template_options
from llm_decoder.serving.errors import HttpError
from llm_decoder.serving.exchange import Endpoint, Incoming
from llm_decoder.serving.logprobs import TokenTexts
from llm_decoder.serving.parse import parse_body
from llm_decoder.serving.plan import check_model
from llm_decoder.serving.schemas_tokens import (
    DetokenizeReply,
    DetokenizeRequest,
    TokenizeReply,
    TokenizeRequest,
    TokenizerInfo,
)
from llm_decoder.serving.service import Service

if TYPE_CHECKING:
    from llm_decoder.tokenizer import Tokenizer

__all__ = ["ENDPOINTS"]


def tokenize(service: Service, incoming: Incoming) -> exchange.Reply:
    """Raises HttpError or InvalidRequestError."""
    request, headers = parse_body(incoming, TokenizeRequest)
    check_model(service, request.model)
    ids = _ids(service, _tokenizer(service), request)
    body: dict[str, Any] = {"count": len(ids), "max_model_len": service.llm.max_model_len, "tokens": ids}
    texts = TokenTexts(service.llm)
    if request.return_token_strs:
        body["token_strs"] = [texts.name(id_) for id_ in ids]
    if request.with_pieces:
        body["tokens"] = [{"id": id_, "piece": _piece(texts.bytes_of(id_))} for id_ in ids]
    return exchange.Reply.of_json(body, headers=headers)


def _ids(service: Service, tokenizer: Tokenizer, request: TokenizeRequest) -> list[int]:
    given = [name for name in ("prompt", "messages", "content") if getattr(request, name) is not None]
    if len(given) != 1:
        raise HttpError(400, f"[prompt] need one of prompt, messages, content, got {given or 'none'}", param="prompt")
    _refuse_fields_of_others(given[0], request)
    if request.messages is not None:
        tools = {"tools": request.tools} if request.tools else {}
        messages = chat_messages(service, request.messages)
        return tokenizer.apply_chat_template(messages, **template_options(request, tools))
    text = request.prompt if request.prompt is not None else request.content or ""
    max_chars = MAX_TOKEN_CHARS * service.llm.max_model_len
    if len(text) > max_chars:
        raise ContextLengthExceededError(f"[{given[0]}] need at most {max_chars} characters, got {len(text)}",
                                         param=given[0])  # fmt: skip
    if request.prompt is not None and _is_special(tokenizer, text):
        return tokenizer.encode(text, False, allow_special_tokens=True)
    is_whole = request.add_special_tokens is not False if request.prompt is not None else bool(request.add_special)
    return tokenizer.encode(text, is_whole, allow_special_tokens=bool(request.parse_special))


# What says how one form of text is read, and means nothing to the others.
_FIELDS_OF = {
    "prompt": ("add_special_tokens",),
    "content": ("add_special",),
    "messages": ("add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools"),
}


def _refuse_fields_of_others(given: str, request: TokenizeRequest) -> None:
    for kind, names in _FIELDS_OF.items():
        for name in names if kind != given else ():
            if getattr(request, name):
                raise HttpError(400, f"[{name}] this is for {kind}, got {given}; leave it out", param=name)
    if given == "messages" and request.parse_special:
        raise HttpError(400, "[parse_special] this is for prompt and content, got messages; leave it out",
                        param="parse_special")  # fmt: skip


def _is_special(tokenizer: Tokenizer, text: str) -> bool:
    """Whether a text is a special token and nothing else: so evaluation harnesses ask for the id of an end token."""
    id_ = tokenizer.token_id(text)
    return id_ is not None and text == tokenizer.decode([id_], skip_special_tokens=False) != tokenizer.decode([id_])


def detokenize(service: Service, incoming: Incoming) -> exchange.Reply:
    """Raises HttpError or InvalidRequestError."""
    request, headers = parse_body(incoming, DetokenizeRequest)
    check_model(service, request.model)
    bad = next((id_ for id_ in request.tokens if id_ >= service.llm.vocab_size), None)
    if bad is not None:
        raise HttpError(
            400, f"[tokens] token ids must be from 0 to {service.llm.vocab_size - 1}, got {bad}", param="tokens"
        )
    text = _tokenizer(service).decode(request.tokens, skip_special_tokens=False)
    return exchange.Reply.of_json({"prompt": text, "content": text}, headers=headers)


def tokenizer_info(service: Service, incoming: Incoming) -> exchange.Reply:
    """vLLM's: what a client that tokenizes through this server needs beside. Raises HttpError."""
    tokenizer = _tokenizer(service)
    template = tokenizer.chat_template
    texts = {name: tokenizer.special_tokens.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    return exchange.Reply.of_json(
        texts
        | {
            "chat_template": None if template is None else template.source,
            "vocab_size": len(tokenizer),
            "model_max_length": service.llm.max_model_len,
        }
    )


def _tokenizer(service: Service) -> Tokenizer:
    try:
        return service.llm.tokenizer
    except ModelNotFoundError:
        raise HttpError(400, "[model] it came without a tokenizer; work with token ids", param="model") from None


def _piece(raw: bytes) -> str | list[int]:
    """llama.cpp's: a text, or its bytes where they are none."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)


ENDPOINTS = (
    Endpoint("POST", "/tokenize", tokenize, "Text as token ids", request=TokenizeRequest, response=TokenizeReply),
    Endpoint(
        "POST",
        "/detokenize",
        detokenize,
        "Token ids as text",
        request=DetokenizeRequest,
        response=DetokenizeReply,
    ),
    Endpoint(
        "GET",
        "/tokenizer_info",
        tokenizer_info,
        "Special tokens and the chat template",
        response=TokenizerInfo,
    ),
)
