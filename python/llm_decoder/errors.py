"""Every error that the library raises on purpose.

LLMDecoderError
├── ModelLoadError                 a checkpoint, weights folder, tokenizer or template cannot be used
│   ├── ModelNotFoundError         no such path, hub id or file
│   ├── UnsupportedModelError      a family, field, format or option that this build does not run
│   └── MalformedFileError         a file whose bytes contradict its own format
├── ConfigError                    a settings file, environment variable or option with a bad name or value
├── BackendError                   the device or the compiled core cannot do what was asked
│   ├── NotEnoughMemoryError       needs X, has Y
│   └── DeviceLostError            a GPU has failed for good in the middle of its work
├── InvalidArgumentError           (also ValueError) an array or option of llm_decoder.ops that no kernel computes with
├── InvalidRequestError            (also ValueError) a request that could never be served; `param` names the field
│   └── ContextLengthExceededError prompt (and answer) do not fit the context
├── RequestFailedError             one request failed while it ran (non-finite logits, ...); others go on
├── QueueFullError                 the engine has as many waiting requests as it accepts; try again later
├── EngineClosedError              the engine was closed, or its thread has died
└── ServerError                    a server that was asked over HTTP cannot be reached, refuses, or breaks off

A message says where, what was needed, what was there, and what to do.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "ConfigError",
    "ContextLengthExceededError",
    "DeviceLostError",
    "EngineClosedError",
    "InvalidArgumentError",
    "InvalidRequestError",
    "LLMDecoderError",
    "MalformedFileError",
    "ModelLoadError",
    "ModelNotFoundError",
    "NotEnoughMemoryError",
    "QueueFullError",
    "RequestFailedError",
    "ServerError",
    "UnsupportedModelError",
]


class LLMDecoderError(Exception):
    """Base of all errors of this package."""


class ModelLoadError(LLMDecoderError):
    """A checkpoint, weights folder, tokenizer or template cannot be used."""


class ModelNotFoundError(ModelLoadError):
    """No such path, hub id or file."""


class UnsupportedModelError(ModelLoadError):
    """A family, config field, file format or option that this build does not run."""


class MalformedFileError(ModelLoadError):
    """A file whose bytes contradict its own format."""


class ConfigError(LLMDecoderError):
    """A settings file, environment variable or option with a bad name or value."""


class BackendError(LLMDecoderError):
    """The device or the compiled core cannot do what was asked."""


class NotEnoughMemoryError(BackendError):
    """The model, its KV cache, or the rows that a request asks for do not fit the memory that is there."""


class DeviceLostError(BackendError):
    """A GPU has failed in the middle of its work, for this process for good: a kernel that read what is not there, an
    error of its memory, a device that was removed. Whatever it computed or held is gone; start the process again."""


class InvalidArgumentError(LLMDecoderError, ValueError):
    """An argument of llm_decoder.ops of the wrong shape, dtype, layout or device, or a combination that no kernel
    computes; the message lists what is supported."""


class InvalidRequestError(LLMDecoderError, ValueError):
    """A request that could never be served.

    `param` names the field at fault (None when it is the request as a whole), `code` is a short reason for programs.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthExceededError(InvalidRequestError):
    """The prompt, or the prompt and what must be generated, does not fit the context."""

    def __init__(self, message: str, *, param: str | None = "prompt") -> None:
        super().__init__(message, param=param, code="context_length_exceeded")


class RequestFailedError(LLMDecoderError):
    """One request failed while it ran; the others go on.

    `param` names the field that made it fail, where the request itself is at fault: what it asks for turned out to
    contradict itself, or to be too much work.
    """

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class QueueFullError(LLMDecoderError):
    """The engine has as many waiting requests as it accepts."""


class EngineClosedError(LLMDecoderError):
    """The engine was closed, or its thread has died."""


class ServerError(LLMDecoderError):
    """A server that was asked over HTTP cannot be reached, refuses, or breaks off."""
