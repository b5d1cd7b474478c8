"""docs/serving.md names every field of every schema, and says of each what the schema says."""

import re
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from llm_decoder.serving.schemas_base import NOT_IN_THIS_VERSION, SamplingFields
from llm_decoder.serving.schemas_chat import ChatRequest
from llm_decoder.serving.schemas_completions import CompletionRequest
from llm_decoder.serving.schemas_embeddings import EmbeddingRequest
from llm_decoder.serving.schemas_own import BatchRequest, ChatVerbRequest, GenerateRequest, StreamRequest
from llm_decoder.serving.schemas_rerank import RerankRequest, ScoreRequest
from llm_decoder.serving.schemas_tokens import DetokenizeRequest, TokenizeRequest

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
SECTIONS = {
    "All requests for text": [SamplingFields],
    "`/v1/completions`": [CompletionRequest],
    "`/v1/chat/completions`": [ChatRequest],
    "This project's own routes": [GenerateRequest, StreamRequest, ChatVerbRequest, BatchRequest],
    "`/v1/embeddings`": [EmbeddingRequest],
    "`/v1/rerank`": [RerankRequest],
    "`/v1/score`": [ScoreRequest],
    "`/tokenize`, `/detokenize`": [TokenizeRequest, DetokenizeRequest],
}


def fields_on_the_page(section):
    """{field: what is done with it}"""
    text = PAGE.read_text().split(f"### {section}\n")[1].split("\n###")[0]
    rows = re.findall(r"^\| (`.*?) \| (honoured|400|no-op) \|", text, re.M)
    return {name: what for names, what in rows for name in re.findall(r"`(\w+)`", names)}


def fields_of(section):
    result = {}
    for schema in SECTIONS[section]:
        for name, field in schema.model_fields.items():
            if (
                schema is not SamplingFields
                and name in SamplingFields.model_fields
                and issubclass(schema, SamplingFields)
            ):
                continue
            result[name] = field
    return result


def what_is_done(name, field):
    if (field.description or "").startswith("no-op"):
        return "no-op"
    kinds = get_args(field.annotation) or (field.annotation,)
    has_one_value = all(kind in (type(None), None) or len(get_args(kind)) == 1 for kind in kinds)
    is_literal = any(get_origin(kind) is Literal for kind in kinds) or kinds in ((None,), (type(None),))
    return "400" if name in NOT_IN_THIS_VERSION or (has_one_value and is_literal) else "honoured"


@pytest.mark.parametrize("section", SECTIONS)
def test_the_page_and_the_schemas_agree(section):
    assert fields_on_the_page(section) == {name: what_is_done(name, f) for name, f in fields_of(section).items()}


def test_what_is_not_in_this_version_is_a_field_of_some_schema():
    fields = {name for schemas in SECTIONS.values() for schema in schemas for name in schema.model_fields}
    assert set(NOT_IN_THIS_VERSION) <= fields
