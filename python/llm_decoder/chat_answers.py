"""The answers of one chat: the form that they must have, and how each is taken apart."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llm_decoder.answers import PLAIN, AnswerMessage, AnswerParser, ChatStyle, Part, message_of
from llm_decoder.chat import Message
from llm_decoder.chat_grammar import chat_grammar
from llm_decoder.chat_template import ALLOWED_KWARGS
from llm_decoder.detokenizer import TextDecoder
from llm_decoder.errors import InvalidRequestError
from llm_decoder.no_tokenizer import NoTokenizer
from llm_decoder.outputs import RequestOutput, StreamEvent
from llm_decoder.sampling import SamplingParams
from llm_decoder.structured import as_structured_outputs
from llm_decoder.tools import ToolUse, as_tool_use

if TYPE_CHECKING:
    from llm_decoder.tokenizer import Tokenizer

__all__ = ["ChatAnswers", "StreamParts"]


class ChatAnswers:
    """What a chat's options say of its answers. template_options: those that the template gets; of tools that must not
    be called it is not told.

    Raises InvalidRequestError for tools, a tool_choice or parallel_tool_calls that are none, and for tools where the
    model's template knows no calls that can be read.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | NoTokenizer,
        style: ChatStyle,
        messages: Sequence[Message],
        template_options: Mapping[str, Any],
    ) -> None:
        options = dict(template_options)
        self.style = style
        self.use: ToolUse = as_tool_use(
            options.pop("tools", None), options.get("tool_choice"), options.pop("parallel_tool_calls", None)
        )
        if self.use.callable_tools:
            if style.calls is None:
                raise InvalidRequestError(
                    "[tools] need a model whose chat template teaches it calls in the form of ChatML (<tool_call>), "
                    "Llama 3 or Mistral ([TOOL_CALLS]), got another; leave tools out",
                    param="tools",
                )
            options["tools"] = [tool.definition for tool in self.use.tools]
        self.template_options = options
        self._tokenizer = tokenizer
        self._messages = messages

    @functools.cached_property
    def begins_in_reasoning(self) -> bool:
        """Whether the prompt ends where the model reasons, as some templates leave it."""
        if self.style.reasoning is None:
            return False
        template = self._tokenizer.chat_template
        assert template is not None, "the style was read off it"
        begin, end = self.style.reasoning
        if self.template_options.get("continue_final_message"):
            content = self._messages[-1].get("content") if self._messages else None
            return isinstance(content, str) and content.rfind(begin) > content.rfind(end)
        try:
            # What stands behind the last message is the same behind any.
            text = template.render([{"role": "user", "content": "x"}], **self._for_generation())
        except InvalidRequestError:
            return False  # the chat itself will be refused for it
        return text.rstrip().endswith(begin)

    def _for_generation(self) -> dict[str, Any]:
        """The options that have a say in what stands behind the last message."""
        names = (ALLOWED_KWARGS - {"tools", "documents"}) | {"add_generation_prompt"}
        return {name: value for name, value in self.template_options.items() if name in names}

    def parser(self) -> AnswerParser:
        """For one of the answers."""
        return AnswerParser(
            self.style,
            tools=[tool.name for tool in self.use.callable_tools],
            begins_in_reasoning=self.begins_in_reasoning,
            max_calls=None if self.use.parallel else 1,
        )

    def constrained(self, params: SamplingParams) -> SamplingParams:
        """`params` with the form that the answers must have. Raises InvalidRequestError where tools and
        structured_outputs cannot be had together."""
        asked = params.structured_outputs
        tokenizer = self._tokenizer
        is_free = asked is None and not self.use.has_form
        if self.style == PLAIN or isinstance(tokenizer, NoTokenizer) or is_free:
            return params
        form = None if asked is None else as_structured_outputs(asked)
        grammar = chat_grammar(self.style, self.use, form, tokenizer.added_token_id, self.begins_in_reasoning)
        return replace(params, structured_outputs=grammar)

    def explained(self, error: InvalidRequestError) -> InvalidRequestError:
        """`error` of the grammar, by the name of the tools where it was made of them."""
        if not self.use.has_form:
            return error
        text = str(error).removeprefix("[structured_outputs] ")
        return InvalidRequestError(f"[tools] their parameters cannot be made a form of answers: {text}", param="tools")

    def text_decoder(self) -> TextDecoder | None:
        """What shows the marks by which an answer is taken apart, also where they are special tokens. None = the
        tokenizer does."""
        marks = self.style.mark_tokens(bool(self.use.callable_tools))
        if not marks or isinstance(self._tokenizer, NoTokenizer):
            return None
        return self._tokenizer.keeping(marks)

    def with_messages(self, output: RequestOutput) -> RequestOutput:
        """`output`, whose answers have a `message` now."""
        for completion in output.outputs:
            parser = self.parser()
            completion.message = message_of([*parser.push(completion.text), *parser.finish()])
        return output


class StreamParts:
    """Takes the answers of a chat apart as their events come."""

    def __init__(self, answers: ChatAnswers) -> None:
        self._answers = answers
        self._parsers: dict[int, AnswerParser] = {}
        self._parts: dict[int, list[Part]] = {}

    def add(self, event: StreamEvent) -> StreamEvent:
        """`event`, which has its `parts` now, and `message` in the answers of its output."""
        if event.index not in self._parsers:
            self._parsers[event.index] = self._answers.parser()
        parser = self._parsers[event.index]
        parts = parser.push(event.text)
        if event.finish_reason is not None:
            parts += parser.finish()
        self._parts.setdefault(event.index, []).extend(parts)
        event.parts = parts
        for completion in event.output.outputs if event.output is not None else ():
            completion.message = self._message(completion.index)
        return event

    def _message(self, index: int) -> AnswerMessage:
        return message_of(self._parts.get(index, ()))
