"""llm-decoder chat: a conversation at the terminal, or line by line from a pipe."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_decoder.cli import _open
from llm_decoder.cli._options import ModelOptions, QuietFlag, SamplingOptions
from llm_decoder.cli._output import complain, describe_speed, emit_text, note
from llm_decoder.cli._stream import stdin
from llm_decoder.cli._verb import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK

if TYPE_CHECKING:
    from prompt_toolkit.history import History

    from llm_decoder.cli._conversation import Conversation
    from llm_decoder.outputs import RequestOutput, StreamEvent

DEMO = (
    "This is Llama-Storyteller, a small demo that came with the package: it tells children's stories and knows nothing "
    "else. For a real model: llm-decoder chat --model FOLDER, or a hub id such as --model Qwen/Qwen3-0.6B"
)


def chat(
    *,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="What the model is told in advance.")] = None,
    quiet: QuietFlag = False,
    model: ModelOptions,
    sampling: SamplingOptions,
) -> int:
    """Talk with a model. Ctrl-C stops an answer, a second one leaves; /help lists the slash commands.

    When standard input is not a terminal, every line of it is a message.
    """
    from llm_decoder.cli._conversation import Conversation

    params = _open.sampling_params(sampling, model)
    if params.n != 1:
        raise typer.BadParameter("a conversation has one answer at a time", param_hint="--n")
    with _open.open_llm(model) as llm:
        if _open.is_embedded(model):
            note(DEMO)
        talk = Talk(Conversation(llm, params, system), quiet=quiet)
        return talk.run(_line_reader())


class Talk:
    """Reads lines, obeys commands, shows answers. Knows whether the last thing that happened was a Ctrl-C."""

    def __init__(self, conversation: Conversation, *, quiet: bool = False) -> None:
        self.conversation = conversation
        self.quiet = quiet
        self.interrupted = False
        self.failed = False

    def run(self, read_line: Callable[[], str]) -> int:
        """Until /exit, the end of the input or the second Ctrl-C. Returns the exit code.

        From a pipe, a message that could not be answered makes it 1; at a terminal the user has seen it.
        """
        from llm_decoder.cli._conversation import Leave

        while True:
            try:
                line = read_line()
                self._take(line)
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
            self.failed = True
            complain("error", str(error))

    def _answer(self) -> None:
        from llm_decoder.errors import LLMDecoderError

        parts: list[str] = []
        output: RequestOutput | None = None
        try:
            with contextlib.closing(self.conversation.ask()) as events:
                for event in events:
                    self._show(event, parts)
                    output = event.output or output
        except LLMDecoderError:
            self.conversation.take_back()
            raise
        except KeyboardInterrupt:
            self.interrupted = True
        emit_text("\n")
        self.conversation.keep("".join(parts))
        if output is None:
            note("stopped; Ctrl-C again leaves.")
        elif not self.quiet and sys.stderr.isatty():
            note(describe_speed(output))

    def _show(self, event: StreamEvent, parts: list[str]) -> None:
        if event.dropped_messages and not parts:
            note(
                f"The conversation has outgrown the context; its oldest {event.dropped_messages} messages are dropped. "
                "/clear starts anew."
            )
        parts.append(event.text)
        emit_text(event.text)


def _line_reader() -> Callable[[], str]:
    """How the next line is read: with editing and history at a terminal, plainly elsewhere. EOFError is the end."""
    if not stdin().isatty():
        return _next_line
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.output import create_output

    from llm_decoder.cli._conversation import COMMANDS

    completer = WordCompleter([*COMMANDS, "/regen"], sentence=True)
    session: PromptSession[str] = PromptSession(
        history=_history(), completer=completer, complete_while_typing=False, output=create_output(sys.stderr)
    )
    return lambda: session.prompt("> ")


def _next_line() -> str:
    line = stdin().readline()
    if not line:
        raise EOFError
    return line


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
