"""What all clients ask, and how they tell what they were told. The judge imports it too."""

from __future__ import annotations

import json
import sys
from typing import Any

MODEL = "storyteller"
TOOLS_MODEL = "caller"
PROMPT = "Once upon a time"
CHAT = [{"role": "user", "content": "Tell me a story about a dog."}]
QUESTION = [{"role": "user", "content": "Is it warm in Paris?"}]
TEXTS = ["Once upon a time", "The dog barks."]
N_TOKENS = 12
# Every value is one of few, so that a call ends whatever a model writes.
PLACE_AND_DAYS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Rome"]},
        "days": {"type": "integer", "enum": [1, 2, 3]},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather in a city.", "parameters": PLACE_AND_DAYS},
}


def told() -> tuple[str, str]:
    """The addresses of the server of stories and of the one that calls tools, as the judge gives them."""
    return sys.argv[1], sys.argv[2]


def tell(findings: dict[str, Any]) -> None:
    print(json.dumps(findings))  # noqa: T201 - the judge reads it
