"""langchain-openai: invoke, stream, batch, asyncio, tools, structured output, embeddings."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import openai
from asked import CHAT, MODEL, N_TOKENS, PROMPT, QUESTION, TEXTS, TOOLS_MODEL, tell, told
from langchain_core.messages import ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

STORIES, TOOLS = told()
AT: dict[str, Any] = {"base_url": f"{STORIES}/v1", "api_key": "secret", "max_retries": 0}
AT_TOOLS = AT | {"base_url": f"{TOOLS}/v1"}
chat = ChatOpenAI(model=MODEL, temperature=0, max_tokens=N_TOKENS, stream_usage=True, **AT)
completion = OpenAI(model=MODEL, temperature=0, max_tokens=N_TOKENS, **AT)
caller = ChatOpenAI(model=TOOLS_MODEL, temperature=0, max_tokens=200, **AT_TOOLS)


class Trip(BaseModel):
    """Where to, and for how long."""

    city: Literal["Paris", "Rome"]
    days: Literal[1, 2, 3]


@tool
def weather(city: Literal["Paris", "Rome"], days: Literal[1, 2, 3]) -> str:
    """The weather in a city."""
    return f"{city}: 21 degrees for {days} days"


def chats() -> dict[str, Any]:
    whole = chat.invoke(CHAT)
    parts = list(chat.stream(CHAT))
    joined = parts[0]
    for part in parts[1:]:
        joined += part
    return {
        "text": whole.content,
        "n_tokens": whole.usage_metadata,
        "finish_reason": whole.response_metadata["finish_reason"],
        "streamed": joined.content,
        "streamed_n_tokens": joined.usage_metadata,
        "n_parts": len(parts),
        "batch": [answer.content for answer in chat.batch([CHAT] * 3)],
        "logprobs": len(chat.bind(logprobs=True).invoke(CHAT).response_metadata["logprobs"]["content"]),
    }


async def with_asyncio() -> dict[str, Any]:
    return {
        "text": (await chat.ainvoke(CHAT)).content,
        "streamed": "".join([part.content async for part in chat.astream(CHAT)]),
        "batch": [answer.content for answer in await chat.abatch([CHAT] * 3)],
    }


def completions() -> dict[str, Any]:
    return {
        "text": completion.invoke(PROMPT),
        "streamed": "".join(completion.stream(PROMPT)),
        "batch": completion.batch([PROMPT] * 3),
    }


def calls() -> dict[str, Any]:
    bound = caller.bind_tools([weather], tool_choice="weather")
    asked = bound.invoke(QUESTION)
    parts = list(bound.stream(QUESTION))
    joined = parts[0]
    for part in parts[1:]:
        joined += part
    (call,) = asked.tool_calls
    result: ToolMessage = weather.invoke(call)
    after = caller.bind(max_tokens=N_TOKENS).invoke([*QUESTION, asked, result])
    free = caller.bind_tools([weather]).bind(max_tokens=N_TOKENS).invoke(QUESTION)
    return {
        "name": call["name"],
        "arguments": call["args"],
        "streamed": [joined.tool_calls[0]["name"], joined.tool_calls[0]["args"]],
        "n_tokens_after": after.usage_metadata["output_tokens"],
        "n_tokens_free": free.usage_metadata["output_tokens"],
    }


def forms() -> dict[str, Any]:
    methods = ["json_schema", "function_calling"]
    found = {name: caller.with_structured_output(Trip, method=name).invoke(QUESTION) for name in methods}
    raw = caller.with_structured_output(Trip, method="json_schema", include_raw=True).invoke(QUESTION)
    return {name: trip.model_dump() for name, trip in found.items()} | {"error": raw["parsing_error"]}


def vectors() -> dict[str, Any]:
    plain: dict[str, Any] = {"model": MODEL, "check_embedding_ctx_length": False, **AT}
    embeddings = OpenAIEmbeddings(**plain)
    many = embeddings.embed_documents([f"Dog number {number}." for number in range(1100)])
    one_by_one = OpenAIEmbeddings(**plain, chunk_size=1)
    few = [0, 1, 999, 1000, 1099]
    return {
        "documents": embeddings.embed_documents(TEXTS),
        "query": embeddings.embed_query(TEXTS[0]),
        "n_many": len(many),
        "are_their_own": [many[i] == one_by_one.embed_query(f"Dog number {i}.") for i in few],
    }


def error() -> str:
    try:
        chat.bind(temperature=-5).invoke(CHAT)
    except openai.BadRequestError as caught:
        return str(caught)
    return ""


tell(
    {
        "chat": chats(),
        "asyncio": asyncio.run(with_asyncio()),
        "completion": completions(),
        "calls": calls(),
        "forms": forms(),
        "vectors": vectors(),
        "error": error(),
    }
)
