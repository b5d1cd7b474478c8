"""Text that repeats its prompt or itself comes several tokens a step, and is the same text."""

from llm_decoder import LLM, SamplingParams

PROMPT = "The cat said meow. The dog said woof. " * 8
GREEDY = SamplingParams(max_tokens=256, temperature=0.0, ignore_eos=True)

texts = []
for speculation in ("none", "prompt-lookup"):
    with LLM(speculation=speculation) as llm:
        llm.generate("Once upon a time", GREEDY)  # warms up
        (output,) = llm.generate(PROMPT, GREEDY)
        metrics = output.metrics
        print(
            f"{speculation:14} {metrics.tokens_per_s:6.0f} tokens/s, "
            f"{metrics.n_accepted_tokens} of {metrics.n_drafted_tokens} drafted tokens accepted"
        )
        texts.append(output.outputs[0].text)

print("the same text" if texts[0] == texts[1] else "another text")
