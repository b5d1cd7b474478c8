"""One answer as the events that the page reads: text, reasoning, blocks as they are finished, numbers at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm_decoder.answers import AnswerParser, Part
from llm_decoder.outputs import RequestOutput, StreamEvent
from llm_decoder.serving.errors import as_http_error
from llm_decoder.serving.sse import Chunk
from llm_decoder.web.blocks import Block, BlockSplitter
from llm_decoder.web.rendering import BlockRenderer

__all__ = ["PageEvents"]


class PageEvents:
    """calls.StreamedAnswer. parser: tells reasoning from content. before: what the message says already when the answer
    goes on with it; the blocks are those of the whole."""

    def __init__(self, stream_id: str, model: str, max_model_len: int, parser: AnswerParser, before: str = "") -> None:
        self._stream_id = stream_id
        self._model = model
        self._max_model_len = max_model_len
        self._parser = parser
        self._before = before
        self._splitter = BlockSplitter()
        self._renderer = BlockRenderer()
        self._n_blocks = 0
        self._until = 0  # characters (code points) of the content that stand in blocks

    def begin(self) -> list[Chunk]:
        data = {"stream": self._stream_id, "model": self._model, "max_model_len": self._max_model_len}
        return [Chunk(data, "start"), *self._blocks(self._splitter.push(self._before))]

    def chunks(self, prompt_index: int, event: StreamEvent) -> list[Chunk]:
        return self._texts(self._parser.push(event.text))

    def end(self, outputs: Sequence[RequestOutput]) -> list[Chunk]:
        return [*self._rest(), Chunk(self._summary(outputs[0]), "end")]

    def fail(self, error: BaseException) -> list[Chunk]:
        """What a stream ends with that did not end well."""
        return [*self._rest(), Chunk(as_http_error(error).body(), "error")]

    def _rest(self) -> list[Chunk]:
        return [*self._texts(self._parser.finish()), *self._blocks(self._splitter.finish())]

    def _texts(self, parts: Sequence[Part]) -> list[Chunk]:
        chunks = []
        for part in parts:
            data = {"text": part.text}
            if part.kind == "reasoning":
                chunks.append(Chunk(data, "reasoning"))
            else:
                chunks += [Chunk(data), *self._blocks(self._splitter.push(part.text))]
        return chunks

    def _blocks(self, blocks: list[Block]) -> list[Chunk]:
        chunks = []
        for block in blocks:
            self._until += block.n_chars
            if not block.markdown.isspace():
                html = self._renderer.render(block.markdown)
                chunks.append(Chunk({"index": self._n_blocks, "html": html, "until": self._until}, "block"))
                self._n_blocks += 1
        return chunks

    def _summary(self, output: RequestOutput) -> dict[str, Any]:
        metrics = output.metrics
        n_used = metrics.n_prompt_tokens + metrics.n_generated_tokens
        return {
            "finish_reason": output.outputs[0].finish_reason,
            "usage": {
                "prompt_tokens": metrics.n_prompt_tokens,
                "completion_tokens": metrics.n_generated_tokens,
                "total_tokens": n_used,
                "prompt_tokens_details": {"cached_tokens": metrics.n_cached_tokens},
            },
            "tokens_per_s": round(metrics.tokens_per_s, 2),
            "time_to_first_token_s": round(metrics.time_to_first_token_s, 4),
            "context": {"used": n_used, "max": self._max_model_len},
            "dropped_messages": output.dropped_messages,
        }
