"""A conversation with a model: its messages, its sampling, and the slash commands that change them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_decoder.cli._output import to_json
from llm_decoder.errors import InvalidRequestError
from llm_decoder.sampling import SamplingParams
from llm_decoder.search.params import SearchParams

if TYPE_CHECKING:
    from llm_decoder.cli._remote import RemoteLLM
    from llm_decoder.cli._stream import Events
    from llm_decoder.llm import LLM
    from llm_decoder.outputs import RequestOutput
    from llm_decoder.search.run_file import SearchRun

MAX_FILE_BYTES = 16 << 20
# What /set takes only where answers are searched.
_OF_SEARCH = {item.name for item in dataclasses.fields(SearchParams)} - {
    item.name for item in dataclasses.fields(SamplingParams)
}


class Leave(Exception):
    """The conversation is over."""


@dataclass
class Conversation:
    """What has been said so far. `system` goes in front of every request; `attached` in front of the next message.
    search_fields: what SearchParams has beside `params`; None = answers are not searched. run: the search that the last
    answer came of, made when it is wanted."""

    llm: LLM | RemoteLLM
    params: SamplingParams
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    attached: str = ""
    search_fields: dict[str, Any] | None = None
    run: Callable[[], SearchRun] | None = None
    _saved: set[Path] = field(default_factory=set)
    _drawn: set[Path] = field(default_factory=set)
    _draw: int = 0
    _asked: SamplingParams | None = None  # what the last answer was asked with

    def say(self, text: str) -> None:
        """Adds what the user says; `ask` gets the answer."""
        self.messages.append({"role": "user", "content": self.attached + text})
        self.attached = ""

    def ask(self) -> Events:
        """The events of an answer to the messages so far. The caller puts the text it received into `keep`."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        params = self.params if self.search_fields is None else _searched(self.params, self.search_fields)
        if params.seed is not None and self._draw:
            params = replace(params, seed=(params.seed + self._draw) % 2**64)
        messages = [*system, *self.messages]
        self.run, self._asked = None, params
        if not isinstance(params, SearchParams):
            return self.llm.stream(messages, params)
        return self.llm.stream_search(messages, params)

    def keep(self, answer: str) -> None:
        self.messages.append({"role": "assistant", "content": answer})

    def keep_search(self, events: Events, output: RequestOutput) -> None:
        """What /tree writes: the search of the last answer. events: those that `output` came with."""
        from llm_decoder.cli._search_files import run_of

        params = self._asked
        if isinstance(params, SearchParams):
            self.run = lambda: run_of(self.llm, events, output, params)

    def take_back(self) -> None:
        """Forgets the last message of the user and what followed: it could not be answered."""
        while self.messages and self.messages.pop()["role"] != "user":
            pass

    # Slash commands: the text behind the command in, a line for the user out.

    def clear(self, _: str) -> str:
        self.messages.clear()
        self.attached = ""
        self.run = None
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
        given = vars(self.params) | (self.search_fields or {})
        if not name:
            return ", ".join(f"{key} {to_json(value)}" for key, value in given.items() if value is not None)
        if not value.strip():
            raise InvalidRequestError("[/set] need NAME VALUE, such as /set temperature 0.7; null takes it back")
        if name in _OF_SEARCH:
            return self._set_search(name, _value(value.strip()))
        self._change(SamplingParams.from_dict(vars(self.params) | {name: _value(value.strip())}), self.search_fields)
        return f"{name} is {to_json(getattr(self.params, name))}."

    def _set_search(self, name: str, value: Any) -> str:
        if self.search_fields is None:
            raise InvalidRequestError(f"[/set] {name} is of a search; /search WIDTH begins to search")
        fields = self.search_fields | {name: value}
        if value is None:
            del fields[name]
        params = self._change(self.params, fields)
        return f"{name} is {to_json(getattr(params, name))}."

    def _change(self, params: SamplingParams, search_fields: dict[str, Any] | None) -> SamplingParams:
        """Both together; returns what the next answer is asked with. Raises InvalidRequestError, and changes nothing
        then."""
        asked = params if search_fields is None else _searched(params, search_fields)
        self.params, self.search_fields = params, search_fields
        return asked

    def search(self, width: str) -> str:
        if not width:
            self.search_fields = None
            return "Answers are not searched any more."
        if not width.isdecimal():
            raise InvalidRequestError(
                f"[/search] need a number of answers to follow, such as /search 4, got {width:.50}"
            )
        self._change(self.params, (self.search_fields or {}) | {"width": int(width)})
        return f"Each answer is the best of {width} that are followed; /set says how, /tree FILE shows the last search."

    def tree(self, name: str) -> str:
        from llm_decoder.cli._search_files import check_file, tree_suffixes, write_tree

        path = _path("/tree", name)
        if self.run is None:
            raise InvalidRequestError("[/tree] the last answer came of no search; say /search 4, then something")
        problem = check_file(path, tree_suffixes())
        if problem is not None:
            raise InvalidRequestError(f"[/tree] {problem}")
        if path.exists() and path not in self._drawn:
            raise InvalidRequestError(f"[/tree] {path} exists already; give another name")
        write_tree(self.run(), path)
        self._drawn.add(path)
        return f"What was looked at for the last answer is in {path}."

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
/search WIDTH      follow so many answers at once and take the best; /search alone ends that
/tree FILE         what the search of the last answer has looked at, as .html, .svg, .png, .pdf or .jsonl
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
    "/search": Conversation.search,
    "/tree": Conversation.tree,
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


def _searched(params: SamplingParams, fields: dict[str, Any]) -> SearchParams:
    """Raises InvalidRequestError."""
    return SearchParams(**vars(params) | fields)


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
