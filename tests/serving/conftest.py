from __future__ import annotations

from collections.abc import Iterator

import pytest
from direct import DirectServer, http_library, ready_service, transport

from llm_decoder.llm import LLM


@pytest.fixture(scope="session")
def storyteller() -> Iterator[LLM]:
    """The embedded model."""
    with LLM(kv_cache_bytes=32 << 20, threads=1) as llm:
        yield llm


@pytest.fixture
def server(storyteller: LLM) -> DirectServer:
    return DirectServer(ready_service(storyteller))


@pytest.fixture
def client(server):
    openai = pytest.importorskip("openai")
    httpx = http_library()
    http = httpx.Client(transport=transport(server, httpx))
    with openai.OpenAI(base_url="http://server/v1", api_key="none", http_client=http, max_retries=0) as client:
        yield client


@pytest.fixture
def async_client(server):
    openai = pytest.importorskip("openai")
    httpx = http_library()
    http = httpx.AsyncClient(transport=transport(server, httpx))
    return openai.AsyncOpenAI(base_url="http://server/v1", api_key="none", http_client=http, max_retries=0)
