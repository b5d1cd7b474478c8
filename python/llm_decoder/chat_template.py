"""Chat messages -> the text that a model was trained to see, by the template that came with it."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_decoder.errors import InvalidRequestError, MalformedFileError
from llm_decoder.json_file import read_bounded, read_json_object

if TYPE_CHECKING:
    import jinja2

__all__ = ["ALLOWED_KWARGS", "ChatTemplate", "Message", "read_chat_template"]

Message = Mapping[str, Any]
Shield = Callable[[str], str]

# What a request may hand to a template beside its messages. Anything else could shadow what the template relies on.
ALLOWED_KWARGS = frozenset(
    [
        *("tools", "documents", "enable_thinking", "thinking", "thinking_budget", "reasoning_effort", "date_string"),
        *(
            "builtin_tools",
            "custom_tools",
            "tools_in_user_message",
            "tool_choice",
            "add_vision_id",
            "preserve_thinking",
        ),
    ]
)
ROLES_SHOWN = "system, user or assistant"
# Templates write roles between the signs of their special tokens.
_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_CONTINUE_MARK = "\ufdd0continue\ufdd0"  # noncharacters: no text that people exchange holds them
_MAX_MESSAGES = 100_000
MAX_TEMPLATE_BYTES = 1 << 22


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template with what it may name.

    `source` is the template, `named` holds further ones by name (`tool_use` is taken when a request has tools),
    `tokens` the texts of special tokens (`bos_token`, ...), `system` a system message for chats that begin without
    one, `stop` texts that end an answer.
    """

    source: str
    named: Mapping[str, str] = field(default_factory=dict)
    tokens: Mapping[str, str] = field(default_factory=dict)
    system: str | None = None
    stop: tuple[str, ...] = ()

    def render(
        self,
        messages: Sequence[Message],
        shield: Shield = str,
        /,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The text of a chat. With `continue_final_message` it ends inside the last message, for the model to go on.

        `shield` is laid around every text of messages and keywords, at any depth: the template sees what it returns.
        Only roles go without; they are plain words. Raises InvalidRequestError for messages or keywords that it cannot
        take, and when the template itself refuses them, fails, or asks for too much time or memory; MalformedFileError
        when the template does not compile.
        """
        plain = [
            _plain_message(index, self._with_arguments(index, message), shield)
            for index, message in enumerate(_checked_list(messages))
        ]
        if self.system and plain[0]["role"] != "system":
            plain.insert(0, {"role": "system", "content": shield(self.system)})
        if continue_final_message:
            add_generation_prompt = False
            plain[-1]["content"] += _CONTINUE_MARK
        text = self._run(plain, {"add_generation_prompt": add_generation_prompt, **_checked_kwargs(kwargs, shield)})
        return _cut_at_mark(text) if continue_final_message else text

    def check(self) -> None:
        """Raises MalformedFileError when the template, or one of those by name, does not compile."""
        for source in (self.source, *self.named.values()):
            _compiled(source)

    def _with_arguments(self, index: int, message: Message) -> Message:
        """A message whose calls of tools have their arguments as this template reads them. Some templates take a list
        without calls for one with."""
        if not isinstance(message, Mapping) or "tool_calls" not in message:
            return message
        calls = message["tool_calls"]
        if calls is None or calls == []:
            return {key: value for key, value in message.items() if key != "tool_calls"}
        if not isinstance(calls, list | tuple):
            raise InvalidRequestError(
                f"[messages[{index}].tool_calls] need a list, got {type(calls).__name__}", param="messages"
            )
        as_text = self._takes_arguments_as_text
        return {
            **message,
            "tool_calls": [_call(f"messages[{index}].tool_calls[{i}]", call, as_text) for i, call in enumerate(calls)],
        }

    @functools.cached_property
    def _takes_arguments_as_text(self) -> bool:
        """Whether calls have their arguments as JSON text in this template, which adds them to other text; most take
        the object and spell it. Found by showing it one."""
        return not self._shows_arguments({"mark": "x"}) and self._shows_arguments('{"mark": "x"}')

    def _shows_arguments(self, arguments: Any) -> bool:
        call = {"id": "a1b2c3d4e", "type": "function", "function": {"name": "f", "arguments": arguments}}
        tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "x", "name": "f", "tool_call_id": "a1b2c3d4e"},
        ]
        try:
            text = self._run(messages, {"add_generation_prompt": True, "tools": [tool]})
        except InvalidRequestError:
            return False
        return '"mark":' in text

    def _run(self, messages: list[dict[str, Any]], variables: dict[str, Any]) -> str:
        from llm_decoder.template_sandbox import render  # Jinja, which a model that never chats does without

        source = self.named.get("tool_use", self.source) if variables.get("tools") else self.source
        template = _compiled(source)
        variables = {"tools": None, "documents": None, **self.tokens, **variables, "messages": messages}
        try:
            return render(template, variables)
        except RecursionError:
            reason = "it is nested too deeply, or calls itself without end"
        except MemoryError:
            reason = "it ran out of memory"
        except Exception as error:  # noqa: BLE001 - a template's operations may raise anything
            reason = str(error)[:500] or type(error).__name__
        # Raised here, without a cause, whose traceback would hold all that the template has made.
        raise _refused(reason)


def read_chat_template(
    folder: Path, tokenizer_config: Mapping[str, Any], tokens: Mapping[str, str]
) -> ChatTemplate | None:
    """The template of a model folder, or None when it has none.

    Looked for in chat_template.json when that has a `template` (with `system` and `stop`, as in `weights/`), then in
    chat_template.jinja, tokenizer_config.json (a text, or a list of named ones), and chat_template.json as HF writes
    it.
    """
    jinja_path, json_path = folder / "chat_template.jinja", folder / "chat_template.json"
    values = read_json_object(json_path) if json_path.exists() else {}
    if values.get("template") is not None:
        return _from_json(json_path, values, values["template"], tokens)
    if jinja_path.exists():
        try:
            return ChatTemplate(read_bounded(jinja_path, MAX_TEMPLATE_BYTES).decode("utf-8"), tokens=tokens)
        except UnicodeDecodeError as error:
            raise MalformedFileError(f"[{jinja_path}] need UTF-8 text: {error}") from error
    given = tokenizer_config.get("chat_template")
    if given is not None:
        named = _named_templates(folder / "tokenizer_config.json", given)
        return ChatTemplate(named.pop("default"), named, tokens)
    if values.get("chat_template") is not None:
        return _from_json(json_path, values, values["chat_template"], tokens)
    return None


def _from_json(path: Path, values: Mapping[str, Any], source: Any, tokens: Mapping[str, str]) -> ChatTemplate:
    system, stop = values.get("system"), values.get("stop") or []
    if not isinstance(source, str):
        raise MalformedFileError(f"[{path}: template] need a text, got {type(source).__name__}")
    if not isinstance(system, str | None):
        raise MalformedFileError(f"[{path}: system] need a text or null, got {type(system).__name__}")
    if not isinstance(stop, list) or not all(isinstance(text, str) for text in stop):
        raise MalformedFileError(f"[{path}: stop] need a list of texts, got {type(stop).__name__}")
    return ChatTemplate(source, {}, tokens, system, tuple(stop))


def _named_templates(path: Path, given: Any) -> dict[str, str]:
    if isinstance(given, str):
        return {"default": given}
    is_list = isinstance(given, list) and all(isinstance(item, dict) for item in given)
    named = {item.get("name"): item.get("template") for item in given} if is_list else {}
    if not all(isinstance(key, str) and isinstance(value, str) for key, value in named.items()) or not named:
        raise MalformedFileError(f"[{path}: chat_template] need a text, or a list of objects with name and template")
    named.setdefault("default", next(iter(named.values())))
    return named


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    from jinja2 import TemplateError

    from llm_decoder.template_sandbox import compile_template

    try:
        return compile_template(source)
    except TemplateError as error:
        raise MalformedFileError(f"[chat template] it does not compile: {str(error)[:500]}") from error


def _checked_list(messages: Sequence[Message]) -> Sequence[Message]:
    if not isinstance(messages, list | tuple) or not messages:
        raise InvalidRequestError(
            f"[messages] need a list of at least one message, got {type(messages).__name__}", param="messages"
        )
    if len(messages) > _MAX_MESSAGES:
        raise InvalidRequestError(
            f"[messages] need at most {_MAX_MESSAGES:,} messages, got {len(messages):,}", param="messages"
        )
    return messages


def _plain_message(index: int, message: Message, shield: Shield) -> dict[str, Any]:
    """A copy in plain types, content as one text."""
    place = f"messages[{index}]"
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InvalidRequestError(
            f"[{place}] need an object with role ({ROLES_SHOWN}) and content, got {str(message)[:80]}", param="messages"
        )
    role = str(message["role"])
    if not _ROLE.fullmatch(role):
        raise InvalidRequestError(
            f"[{place}.role] need a plain word such as {ROLES_SHOWN}, got {role!r:.80}", param="messages"
        )
    plain: dict[str, Any] = {"role": role}
    for key, value in message.items():
        if key not in ("role", "content"):
            plain[shield(str(key))] = _plain(value, f"{place}.{key}", shield)
    # An answer may consist of calls of tools alone.
    if message.get("content") is None and role != "assistant" and not message.get("tool_calls"):
        raise InvalidRequestError(f"[{place}.content] need a text in a {role} message, got none", param="messages")
    return plain | {"content": shield(_text_of(message.get("content"), place))}


def _call(place: str, call: Any, as_text: bool) -> dict[str, Any]:
    """A call of a tool, as OpenAI's API and templates have it, with its arguments in the one form or the other. Text
    that is no JSON, which a model may have written, stays as it is."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidRequestError(
            f"[{place}] need an object with function, which has name and arguments, got {type(call).__name__}",
            param="messages",
        )
    arguments = function.get("arguments")
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, str | Mapping):
        raise InvalidRequestError(
            f"[{place}.function.arguments] need an object, or JSON text with one, got {type(arguments).__name__}",
            param="messages",
        )
    try:
        if as_text and not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        elif not as_text and isinstance(arguments, str):
            arguments = json.loads(arguments or "{}")
    except (ValueError, TypeError, RecursionError):
        pass
    others = {key: value for key, value in call.items() if key not in ("function", "name", "arguments")}
    return {**others, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _text_of(content: Any, place: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequestError(f"[{place}.content] need a text, got {type(content).__name__}", param="messages")
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            got = "a text part without a text" if kind == "text" else f"a part of type {str(kind)[:64]!r}"
            raise InvalidRequestError(
                f"[{place}.content] this model reads text parts only, got {got}", param="messages"
            )
    return "".join(part["text"] for part in content)


def _checked_kwargs(kwargs: Mapping[str, Any], shield: Shield) -> dict[str, Any]:
    for name in kwargs.keys() - ALLOWED_KWARGS:
        raise InvalidRequestError(
            f"[chat_template_kwargs: {name}] need one of {', '.join(sorted(ALLOWED_KWARGS))}",
            param="chat_template_kwargs",
        )
    return {name: _plain(value, f"chat_template_kwargs.{name}", shield) for name, value in kwargs.items()}


def _plain(value: Any, place: str, shield: Shield, depth: int = 0) -> Any:
    """JSON's types alone: a template never gets an object with methods of ours."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return shield(str(value))
    for number in (int, float):
        if isinstance(value, number):
            return number(value)
    if depth < 64 and isinstance(value, Mapping):
        return {shield(str(key)): _plain(item, place, shield, depth + 1) for key, item in value.items()}
    if depth < 64 and isinstance(value, list | tuple):
        return [_plain(item, place, shield, depth + 1) for item in value]
    raise InvalidRequestError(f"[{place}] need plain JSON data, got {type(value).__name__}", param="messages")


def _cut_at_mark(text: str) -> str:
    at = text.rfind(_CONTINUE_MARK)
    if at < 0:
        raise _refused("it does not show the last message, so it cannot be continued")
    return text[:at]


def _refused(reason: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"[chat template] the model's template refuses these messages: {reason}", param="messages"
    )
