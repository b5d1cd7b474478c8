"""A conversation with a model: its messages, its sampling, and the slash commands that change them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_decoder.cli._output import to_json
from llm_decoder.errors import InvalidRequestError

if TYPE_CHECKING:
    from llm_decoder.cli._remote import RemoteLLM
    from llm_decoder.cli._stream import Events
    from llm_decoder.llm import LLM
    from llm_decoder.sampling import SamplingParams

MAX_FILE_BYTES = 16 << 20


class Leave(Exception):
    """The conversation is over."""


@dataclass
class Conversation:
    """What has been said so far. `system` goes in front of every request; `attached` in front of the next message."""

    llm: LLM | RemoteLLM
    params: SamplingParams
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    attached: str = ""
    _saved: set[Path] = field(default_factory=set)
    _draw: int = 0

    def say(self, text: str) -> None:
        """Adds what the user says; `ask` gets the answer."""
        self.messages.append({"role": "user", "content": self.attached + text})
        self.attached = ""

    def ask(self) -> Events:
        """The events of an answer to the messages so far. The caller puts the text it received into `keep`."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        params = self.params
        if params.seed is not None and self._draw:
            params = replace(params, seed=(params.seed + self._draw) % 2**64)
        return self.llm.stream([*system, *self.messages], params)

    def keep(self, answer: str) -> None:
        self.messages.append({"role": "assistant", "content": answer})

    def take_back(self) -> None:
        """Forgets the last message of the user and what followed: it could not be answered."""
        while self.messages and self.messages.pop()["role"] != "user":
            pass

    # Slash commands: the text behind the command in, a line for the user out.

    def clear(self, _: str) -> str:
        self.messages.clear()
        self.attached = ""
        return "The conversation starts anew."

    def prepare_again(self) -> None:
        """Drops the last answer, so that `ask` draws another one."""
        if not self.messages:
            raise InvalidRequestError("[/regen] there is no answer yet; say something first")
        if self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        self._draw += 1

    def read(self, name: str) -> str:
        path = _path("/read", name)
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InvalidRequestError(f"[/read] {path} must have at most {MAX_FILE_BYTES >> 20} MiB")
        text = path.read_text(encoding="utf-8")
        self.attached += text.rstrip("\n") + "\n\n"
        return f"{len(text)} characters of {path} go in front of your next message."

    def set(self, words: str) -> str:
        name, _, value = words.partition(" ")
        name = name.removeprefix("--").replace("-", "_")
        if not name:
            return ", ".join(f"{key} {to_json(value)}" for key, value in vars(self.params).items() if value is not None)
        if not value.strip():
            raise InvalidRequestError("[/set] need NAME VALUE, such as /set temperature 0.7; null takes it back")
        given = vars(self.params) | {name: _value(value.strip())}
        self.params = type(self.params).from_dict(given)
        return f"{name} is {to_json(getattr(self.params, name))}."

    def save(self, name: str) -> str:
        path = _path("/save", name)
        if path.exists() and path not in self._saved:
            raise InvalidRequestError(f"[/save] {path} exists already; give another name")
        system = [{"role": "system", "content": self.system}] if self.system else []
        path.write_text(to_json({"messages": [*system, *self.messages]}) + "\n", encoding="utf-8")
        self._saved.add(path)
        return f"{len(self.messages)} messages are in {path}."

    def set_system(self, text: str) -> str:
        self.system = text or None
        return "The model is told so from now on." if text else "The model is told nothing in advance."

    def leave(self, _: str) -> str:
        raise Leave

    def help(self, _: str) -> str:
        return HELP


HELP = """\
/exit              leave (so do Ctrl-D, and Ctrl-C twice)
/clear             forget what was said
/regen             another answer to the last message
/read FILE         put the text of a file in front of the next message
/set NAME VALUE    a sampling setting, such as /set temperature 0.7; /set alone lists them
/save FILE         write the conversation as JSON
/system TEXT       what the model is told in advance; /system alone takes it back
/help              this list
Ctrl-C stops an answer."""

COMMANDS: dict[str, Callable[[Conversation, str], str]] = {
    "/exit": Conversation.leave,
    "/quit": Conversation.leave,
    "/clear": Conversation.clear,
    "/read": Conversation.read,
    "/set": Conversation.set,
    "/save": Conversation.save,
    "/system": Conversation.set_system,
    "/help": Conversation.help,
}


def obey(conversation: Conversation, line: str) -> str:
    """Does what a line that starts with a slash asks for (all but /regen) and returns what to tell the user."""
    name, _, rest = line.partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        raise InvalidRequestError(f"[chat] there is no command {name}; /help lists them")
    return command(conversation, rest.strip())


def _path(command: str, name: str) -> Path:
    if not name:
        raise InvalidRequestError(f"[{command}] need the name of a file: {command} FILE")
    return Path(name).expanduser()


def _value(text: str) -> Any:
    """0.7 -> a number, ["a", "b"] -> a list, null -> None, anything else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
