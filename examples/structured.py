"""Answers of a given form: one of some choices, an expression, JSON."""

import json

from llm_decoder import LLM, SamplingParams, StructuredOutputs

PET = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{2,8}$"},
        "kind": {"enum": ["cat", "dog", "bird"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 20},
    },
    "required": ["name", "kind", "age"],
    "additionalProperties": False,
}

with LLM() as llm:
    choice = StructuredOutputs(choice=["happy", "sad", "very angry"])
    (output,) = llm.generate("When she lost her ball, Lily was", SamplingParams(structured_outputs=choice))
    print(output.outputs[0].text)

    clock = StructuredOutputs(regex=r"([01][0-9]|2[0-3]):[0-5][0-9]")
    (output,) = llm.generate("They went to bed at", SamplingParams(structured_outputs=clock, n=3))
    print([completion.text for completion in output.outputs])

    pet = SamplingParams(max_tokens=200, structured_outputs=StructuredOutputs(json=PET))
    (output,) = llm.generate("Once there was a little pet. ", pet)
    print(json.loads(output.outputs[0].text))
