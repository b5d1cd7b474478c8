"""/v1/rerank and /v1/score: their requests and their answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, RootModel, WithJsonSchema

from llm_decoder.sampling import MAX_INT
from llm_decoder.search.params import MAX_QUERY_CHARS
from llm_decoder.serving.schemas_base import WHOLE, Reply, Schema

__all__ = ["MAX_DOCUMENT_CHARS", "RerankReply", "RerankRequest", "ScoreReply", "ScoreRequest"]

MAX_DOCUMENT_CHARS = 1 << 24  # the largest body that a server is likely to take
MAX_DOCUMENTS = 1 << 16

Query = Annotated[str, Field(min_length=1, max_length=MAX_QUERY_CHARS)]
Text = Annotated[str, Field(max_length=MAX_DOCUMENT_CHARS)]


def _document(value: Any) -> str:
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise ValueError('need a text, or {"text": ...}')
    if len(text) > MAX_DOCUMENT_CHARS:
        raise ValueError(f"need at most {MAX_DOCUMENT_CHARS} characters")
    return text


def _texts(value: Any) -> list[str]:
    """One text is a list of one."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError("need a text, or a list of texts that is not empty")
    if len(texts) > MAX_DOCUMENTS or any(len(text) > MAX_DOCUMENT_CHARS for text in texts):
        raise ValueError(f"need at most {MAX_DOCUMENTS} texts of at most {MAX_DOCUMENT_CHARS} characters")
    return texts


_TEXT = {"type": "string", "maxLength": MAX_DOCUMENT_CHARS}
Document = Annotated[
    Any,
    PlainValidator(_document),
    WithJsonSchema({"anyOf": [_TEXT, {"type": "object", "properties": {"text": _TEXT}, "required": ["text"]}]}),
]
Texts = Annotated[
    Any,
    PlainValidator(_texts),
    WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": MAX_DOCUMENTS}]}),
]


class RerankRequest(Schema):
    """One of documents (Jina, Cohere) and texts (text-embeddings-inference), which says what is answered."""

    query: Query
    documents: Annotated[list[Document], Field(min_length=1, max_length=MAX_DOCUMENTS, fail_fast=True)] | None = None
    texts: Annotated[list[Text], Field(min_length=1, max_length=MAX_DOCUMENTS, fail_fast=True)] | None = None
    model: str | None = Field(default=None, max_length=1024)
    top_n: Annotated[int, Field(ge=1, le=MAX_INT), WHOLE] | None = None
    return_documents: bool | None = None
    return_text: bool | None = None
    raw_scores: bool | None = None

    # Changes nothing.
    user: str | None = Field(default=None, description="no-op")


class RankedDocuments(Reply):
    id: str
    model: str
    results: list[dict[str, Any]]
    usage: dict[str, Any]


class RankedText(Reply):
    index: int
    score: float


class RerankReply(RootModel[RankedDocuments | list[RankedText]]):
    """Of documents, and of texts."""


class ScoreRequest(Schema):
    """text_1 and text_2, or the same as queries and documents."""

    text_1: Texts | None = None
    text_2: Texts | None = None
    queries: Texts | None = None
    documents: Texts | None = None
    model: str | None = Field(default=None, max_length=1024)

    # Changes nothing.
    user: str | None = Field(default=None, description="no-op")


class ScoreReply(Reply):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[dict[str, Any]]
    usage: dict[str, Any]
