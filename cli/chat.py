"""llm-decoder chat: a conversation at the terminal, or line by line from a pipe."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llm_decoder.cli import _open
from llm_decoder.cli._options import JsonFlag, ModelOptions, QuietFlag, RemoteOptions, SamplingOptions
from llm_decoder.cli._output import complain, describe_speed, emit_aside, emit_json, emit_text, note
from llm_decoder.cli._stream import read_stdin_line, stdin
from llm_decoder.cli._verb import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK, words

if TYPE_CHECKING:
    from prompt_toolkit.history import History

    from llm_decoder.answers import Part
    from llm_decoder.cli._conversation import Conversation
    from llm_decoder.outputs import RequestOutput, StreamEvent

DEMO = (
    "This is Llama-Storyteller, a small demo that came with the package: it tells children's stories and knows nothing "
    "else. For a real model: llm-decoder chat --model FOLDER, or a hub id such as --model Qwen/Qwen3-0.6B"
)


def chat(
    *,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    remote: RemoteOptions,
    model: ModelOptions,
    sampling: SamplingOptions,
    context: typer.Context,
) -> int:
    """Talk with a model. Ctrl-C stops an answer, a second one leaves; /help lists the slash commands.

    When standard input is not a terminal, every line of it is a message. With --json each answer is a JSON object on a
    line, written when it is complete. With --url a server of the OpenAI API answers, and no model is loaded here.
    """
    from llm_decoder.cli._conversation import Conversation

    params = _open.sampling_params(sampling, model, in_chat=True)
    if params.n != 1:
        raise typer.BadParameter("a conversation has one answer at a time", param_hint="--n")
    # The system message is the conversation's own, so that /system can change it and take it back.
    with _open.open_either(replace(model, system=None), params, remote, context) as llm:
        if remote.url is not None:
            note(f"{llm.name or 'a model'} at {remote.url}")
        elif _open.is_embedded(model):
            note(DEMO)
        talk = Talk(Conversation(llm, params, model.system), quiet=quiet, as_json=as_json)
        return talk.run(_line_reader())


class Talk:
    """Reads lines, obeys commands, shows answers. Knows whether the last thing that happened was a Ctrl-C."""

    def __init__(self, conversation: Conversation, *, quiet: bool = False, as_json: bool = False) -> None:
        self.conversation = conversation
        self.quiet = quiet
        self.as_json = as_json
        self.interrupted = False
        self.failed = False

    def run(self, read_line: Callable[[], str]) -> int:
        """Until /exit, the end of the input or the second Ctrl-C. Returns the exit code.

        From a pipe, a message that could not be answered makes it 1; at a terminal the user has seen it.
        """
        from llm_decoder.cli._conversation import Leave
        from llm_decoder.errors import InvalidRequestError

        while True:
            try:
                self._take(read_line())
            except InvalidRequestError as error:  # a line that is no text
                self._complain(error)
            except (EOFError, Leave):
                return EXIT_ERROR if self.failed and not stdin().isatty() else EXIT_OK
            except KeyboardInterrupt:
                if self.interrupted:
                    return EXIT_INTERRUPTED
                self.interrupted = True
                note("Ctrl-C again leaves.")

    def _take(self, line: str) -> None:
        from llm_decoder.cli._conversation import obey
        from llm_decoder.errors import EngineClosedError, LLMDecoderError

        text = line.strip()
        if not text:
            return
        self.interrupted = False
        try:
            if text == "/regen":
                self.conversation.prepare_again()
                self._answer()
            elif text.startswith("/"):
                note(obey(self.conversation, text))
            else:
                self.conversation.say(text)
                self._answer()
        except EngineClosedError:
            raise
        except (LLMDecoderError, OSError, UnicodeError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        self.failed = True
        complain("error", words(error))

    def _answer(self) -> None:
        from llm_decoder.errors import LLMDecoderError

        said = _Said()
        output: RequestOutput | None = None
        try:
            with contextlib.closing(self.conversation.ask()) as events:
                for event in events:
                    self._show(event, said)
                    output = event.output or output
                if output is not None:
                    self.conversation.keep_search(events, output)
        except LLMDecoderError:
            self.conversation.take_back()
            if said.has_begun and not self.as_json:
                emit_text("\n")
            raise
        except KeyboardInterrupt:
            self.interrupted = True
        self._end("".join(said.content), output)
        if output is None:
            note("stopped; Ctrl-C again leaves.")
        elif not self.quiet and sys.stderr.isatty():
            note(describe_speed(output))

    def _show(self, event: StreamEvent, said: _Said) -> None:
        if event.dropped_messages and not said.has_begun:
            note(
                f"The conversation has outgrown the context; its oldest {event.dropped_messages} messages are dropped. "
                "/clear starts anew."
            )
        said.has_begun = True
        for part in event.parts or ():
            if not self.as_json:
                _write(part, said)
            if part.kind == "content":
                said.content.append(part.text)
            said.reasons = said.reasons or part.kind == "reasoning"

    def _end(self, text: str, output: RequestOutput | None) -> None:
        self.conversation.keep(text)
        if not self.as_json:
            emit_text("\n")
        else:  # an answer that was stopped has no output of its own
            from llm_decoder.cli._candidates import plain_output

            answer = None if output is None else plain_output(output)
            emit_json(answer or {"outputs": [{"index": 0, "text": text, "finish_reason": "abort"}]})


@dataclass
class _Said:
    """What has come of an answer. content: without the reasoning before it, which a conversation does not keep."""

    content: list[str] = field(default_factory=list)
    reasons: bool = False
    has_begun: bool = False


def _write(part: Part, said: _Said) -> None:
    if part.kind == "reasoning":
        emit_aside(part.text)
    elif part.kind == "content":
        if said.reasons and not said.content:
            emit_aside("\n\n")
        emit_text(part.text)


def _line_reader() -> Callable[[], str]:
    """How the next line is read: with editing and history at a terminal, plainly elsewhere. EOFError is the end."""
    if not stdin().isatty():
        return read_stdin_line
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.output import create_output

    from llm_decoder.cli._conversation import COMMANDS

    completer = WordCompleter([*COMMANDS, "/regen"], sentence=True)
    session: PromptSession[str] = PromptSession(
        history=_history(), completer=completer, complete_while_typing=False, output=create_output(sys.stderr)
    )
    return lambda: session.prompt("> ")


def _history() -> History:
    """Past messages in the user's state folder, readable by him alone; in memory where that cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = Path(state) / "llm-decoder" / "chat_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        with path.open("a"):
            pass
    except OSError as error:
        note(f"messages are not remembered for the next time: {error}")
        return InMemoryHistory()
    return FileHistory(str(path))
