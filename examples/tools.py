"""Tools: the model calls a function of this program, and gets the result back.

The embedded model tells stories and has never seen a tool, so it is given a template that shows some, and is made to
call; what it says of the result is a story. A model trained on tools brings its own template and chooses by itself.
"""

import json

from llm_decoder import LLM, SamplingParams

TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|' + ('user' if message.role == 'tool' else message.role) + '|>\\n' + message.content }}
    {%- for call in message.tool_calls %}
        {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
        {{- call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""

PETS = {"cat": "Tom", "dog": "Max", "bird": "Pip"}
NAME = {
    "type": "function",
    "function": {
        "name": "name_of_pet",
        "description": "What the pet of a kind is called.",
        "parameters": {
            "type": "object",
            "properties": {"kind": {"enum": list(PETS)}},
            "required": ["kind"],
            "additionalProperties": False,
        },
    },
}

with LLM(chat_template=TEMPLATE) as llm:
    messages: list[dict[str, object]] = [{"role": "user", "content": "Tell me a story about my pets."}]
    params = SamplingParams(max_tokens=100, temperature=0.7, repetition_penalty=1.1, seed=3)
    output = llm.chat(messages, params, tools=[NAME], tool_choice="required", parallel_tool_calls=False)
    answer = output.outputs[0].message
    assert answer is not None
    messages.append(answer.as_dict())
    for call in answer.tool_calls:
        kind = json.loads(call.arguments)["kind"]
        print(f"{call.name}({call.arguments}) -> {PETS[kind]}")
        result = f"Tell me a story about {PETS[kind]}, the {kind}."
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    for event in llm.stream_chat(messages, params, tools=[NAME]):
        for part in event.parts or ():
            print(part.text, end="", flush=True)
    print()
