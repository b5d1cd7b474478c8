"""litellm: completion, text completion, streams, asyncio, tools, embeddings, and its errors."""

from __future__ import annotations

import asyncio
from typing import Any

import litellm
from asked import CHAT, MODEL, N_TOKENS, PROMPT, QUESTION, TEXTS, TOOLS_MODEL, WEATHER, tell, told

litellm.telemetry = False
STORIES, TOOLS = told()
AT = {"api_base": f"{STORIES}/v1", "api_key": "secret", "max_retries": 0}
AT_TOOLS = {"api_base": f"{TOOLS}/v1", "api_key": "secret", "max_retries": 0}
ASKED: dict[str, Any] = {"model": f"openai/{MODEL}", "messages": CHAT, "max_tokens": N_TOKENS, "temperature": 0, **AT}
ASKED_TOOLS = {
    "model": f"openai/{TOOLS_MODEL}",
    "messages": QUESTION,
    "tools": [WEATHER],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "temperature": 0,
    **AT_TOOLS,
}


def chat() -> dict[str, Any]:
    answer = litellm.completion(**ASKED)
    usage = answer.usage
    return {
        "text": answer.choices[0].message.content,
        "finish_reason": answer.choices[0].finish_reason,
        "n_tokens": [usage.prompt_tokens, usage.completion_tokens, usage.total_tokens],
    }


def streamed() -> dict[str, Any]:
    chunks = list(litellm.completion(**ASKED, stream=True, stream_options={"include_usage": True}))
    joined = litellm.stream_chunk_builder(chunks, messages=CHAT)
    return {
        "text": "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
        "rebuilt": joined.choices[0].message.content,
        "n_completion_tokens": joined.usage.completion_tokens,
    }


async def with_asyncio() -> dict[str, Any]:
    whole = await asyncio.gather(*(litellm.acompletion(**ASKED) for _ in range(4)))
    stream = await litellm.acompletion(**ASKED, stream=True)
    return {
        "texts": [answer.choices[0].message.content for answer in whole],
        "streamed": "".join([chunk.choices[0].delta.content or "" async for chunk in stream]),
    }


def completion() -> dict[str, Any]:
    asked = {"model": f"text-completion-openai/{MODEL}", "prompt": PROMPT, "max_tokens": N_TOKENS, "temperature": 0}
    whole = litellm.text_completion(**asked, **AT)
    chunks = litellm.text_completion(**asked, **AT, stream=True)
    return {
        "text": whole.choices[0].text,
        "streamed": "".join(chunk.choices[0].text or "" for chunk in chunks if chunk.choices),
    }


def calls() -> dict[str, Any]:
    whole = litellm.completion(**ASKED_TOOLS).choices[0]
    chunks = list(litellm.completion(**ASKED_TOOLS, stream=True))
    joined = litellm.stream_chunk_builder(chunks, messages=QUESTION).choices[0]
    (call,) = whole.message.tool_calls
    (streamed_call,) = joined.message.tool_calls
    after = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": '{"degrees": 21}'},
    ]
    end = litellm.completion(**ASKED_TOOLS | {"messages": after, "tool_choice": "none", "max_tokens": N_TOKENS})
    return {
        "name": call.function.name,
        "arguments": call.function.arguments,
        "finish_reason": whole.finish_reason,
        "streamed": [streamed_call.function.name, streamed_call.function.arguments],
        "n_tokens_after": end.usage.completion_tokens,
    }


def vectors() -> list[list[float]]:
    answer = litellm.embedding(model=f"openai/{MODEL}", input=TEXTS, encoding_format="float", **AT)
    return [entry["embedding"] for entry in answer.data]


def error(**fields: Any) -> dict[str, Any]:
    try:
        litellm.completion(**ASKED | fields)
    except Exception as caught:  # noqa: BLE001 - which one it is, the judge asks
        return {"kind": type(caught).__name__, "status": getattr(caught, "status_code", None), "text": str(caught)}
    return {"kind": None}


tell(
    {
        "chat": chat(),
        "streamed": streamed(),
        "asyncio": asyncio.run(with_asyncio()),
        "completion": completion(),
        "calls": calls(),
        "vectors": vectors(),
        "errors": {
            "bad_field": error(temperature=-5),
            "no_such_model": error(model="openai/another"),
            "wrong_key": error(api_key="wrong"),
            "too_long": error(messages=[{"role": "user", "content": "dog " * 3000}]),
            "no_tools": error(tools=[WEATHER]),
            "nobody": error(api_base="http://127.0.0.1:9/v1"),
        },
    }
)
