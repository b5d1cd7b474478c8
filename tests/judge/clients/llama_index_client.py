"""llama-index with a server that is like OpenAI's: completion, chat, streams."""

from __future__ import annotations

import asyncio
from typing import Any

from asked import CHAT, MODEL, N_TOKENS, PROMPT, tell, told
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

STORIES, _ = told()
FIELDS: dict[str, Any] = {"model": MODEL, "api_base": f"{STORIES}/v1", "api_key": "secret", "context_window": 1024}
FIELDS |= {"max_tokens": N_TOKENS, "temperature": 0.0, "max_retries": 0}
completing = OpenAILike(**FIELDS)
chatting = OpenAILike(**FIELDS, is_chat_model=True)
messages = [ChatMessage(**message) for message in CHAT]


async def with_asyncio() -> dict[str, str]:
    stream = await chatting.astream_chat(messages)
    return {
        "text": (await chatting.achat(messages)).message.content,
        "streamed": "".join([part.delta or "" async for part in stream]),
    }


tell(
    {
        "completion": {
            "text": completing.complete(PROMPT).text,
            "streamed": "".join(part.delta or "" for part in completing.stream_complete(PROMPT)),
        },
        "chat": {
            "text": chatting.chat(messages).message.content,
            "streamed": "".join(part.delta or "" for part in chatting.stream_chat(messages)),
        },
        "asyncio": asyncio.run(with_asyncio()),
    }
)
