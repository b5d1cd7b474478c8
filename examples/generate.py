"""One prompt, and several at once: the engine computes them together."""

from llm_decoder import LLM, SamplingParams

with LLM() as llm:
    prompts = ["Once upon a time, there was a little dog", "One day, Lily found a red ball"]
    outputs = llm.generate(prompts, SamplingParams(max_tokens=48, temperature=0.8, top_p=0.95, seed=1))
    for output in outputs:
        print(f"{output.prompt}{output.outputs[0].text}")
        print(f"  [{output.outputs[0].finish_reason}, {output.metrics.n_generated_tokens} tokens]")

    # Several answers to one prompt share its pages: the prompt is computed once.
    (output,) = llm.generate("The best day of the year is", SamplingParams(max_tokens=12, n=3, seed=1))
    for answer in output.outputs:
        print(f"{answer.index}: {output.prompt}{answer.text}")
