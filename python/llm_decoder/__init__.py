"""LLM inference for the box you have: INT8 kernels on an x86 CPU, or an NVIDIA GPU; one paged KV cache under all of it.

>>> from llm_decoder import LLM, SamplingParams
>>> with LLM() as llm:
...     for event in llm.stream("Once upon a time", SamplingParams(max_tokens=100)):
...         print(event.text, end="", flush=True)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_decoder.answers import AnswerMessage, Part, ToolCall
    from llm_decoder.async_llm import AsyncLLM
    from llm_decoder.backends import DeviceInfo, devices
    from llm_decoder.decoders import CUDADecoder, INT8Decoder
    from llm_decoder.encoders.cross_encoder import CrossEncoder, RankedDocument, ReadPairs
    from llm_decoder.encoders.sentence_encoder import SentenceEncoder
    from llm_decoder.errors import (
        BackendError,
        ConfigError,
        ContextLengthExceededError,
        DeviceLostError,
        EngineClosedError,
        InvalidArgumentError,
        InvalidRequestError,
        LLMDecoderError,
        MalformedFileError,
        ModelLoadError,
        ModelNotFoundError,
        NotEnoughMemoryError,
        QueueFullError,
        RequestFailedError,
        ServerError,
        UnsupportedModelError,
    )
    from llm_decoder.llm import LLM
    from llm_decoder.outputs import (
        CandidateScores,
        Completion,
        RequestMetrics,
        RequestOutput,
        SearchStep,
        StreamEvent,
        TokenLogprob,
    )
    from llm_decoder.sampling import SamplingParams
    from llm_decoder.search.params import SearchParams
    from llm_decoder.search.tree import SearchTree, TreeNode
    from llm_decoder.structured import StructuredOutputs

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "AnswerMessage",
    "AsyncLLM",
    "BackendError",
    "CUDADecoder",
    "CandidateScores",
    "Completion",
    "ConfigError",
    "ContextLengthExceededError",
    "CrossEncoder",
    "DeviceInfo",
    "DeviceLostError",
    "EngineClosedError",
    "INT8Decoder",
    "InvalidArgumentError",
    "InvalidRequestError",
    "LLMDecoderError",
    "MalformedFileError",
    "ModelLoadError",
    "ModelNotFoundError",
    "NotEnoughMemoryError",
    "Part",
    "QueueFullError",
    "RankedDocument",
    "ReadPairs",
    "RequestFailedError",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "SearchParams",
    "SearchStep",
    "SearchTree",
    "SentenceEncoder",
    "ServerError",
    "StreamEvent",
    "StructuredOutputs",
    "TokenLogprob",
    "ToolCall",
    "TreeNode",
    "UnsupportedModelError",
    "__version__",
    "devices",
]

# Nothing is imported before it is asked for: `import llm_decoder` and `--help` cost no NumPy and no compiled core.
_HOMES = {
    "AnswerMessage": "answers",
    "AsyncLLM": "async_llm",
    "CUDADecoder": "decoders",
    "CandidateScores": "outputs",
    "Completion": "outputs",
    "CrossEncoder": "encoders.cross_encoder",
    "DeviceInfo": "backends",
    "INT8Decoder": "decoders",
    "LLM": "llm",
    "Part": "answers",
    "RankedDocument": "encoders.cross_encoder",
    "ReadPairs": "encoders.cross_encoder",
    "RequestMetrics": "outputs",
    "RequestOutput": "outputs",
    "SamplingParams": "sampling",
    "SearchParams": "search.params",
    "SearchStep": "outputs",
    "SearchTree": "search.tree",
    "SentenceEncoder": "encoders.sentence_encoder",
    "StreamEvent": "outputs",
    "StructuredOutputs": "structured",
    "TokenLogprob": "outputs",
    "ToolCall": "answers",
    "TreeNode": "search.tree",
    "devices": "backends",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'llm_decoder' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"llm_decoder.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
