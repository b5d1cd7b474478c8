"""A conversation: messages go through the model's own chat template, and the cache keeps what was computed before."""

from llm_decoder import LLM, SamplingParams

QUESTIONS = ["Tell me a story about a dog and a red ball.", "Tell me another one, about a cat."]

with LLM() as llm:
    messages: list[dict[str, str]] = []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        output = llm.chat(messages, SamplingParams(max_tokens=60, temperature=0.7, seed=2))
        answer = output.outputs[0].text
        messages.append({"role": "assistant", "content": answer})
        metrics = output.metrics
        print(f"> {question}\n{answer}")
        print(f"  [{metrics.n_cached_tokens} of {metrics.n_prompt_tokens} prompt tokens were cached]")
